"""Members become one forecast: weights from the early-stopping fold, pooled quantiles for every later fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.ensemble import decompose, greedy_weights, pool
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import claim
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.settings import FOLDS
from tasks.train import TRAINED

POOLED = Path("artifacts/ensemble")
ENSEMBLE = "ensemble"


def member_quantiles(root: Path, family: str, fold: str) -> Tensor:
    """Quantiles of a family's members on a fold, float32 ``(M, n, H, Q)``."""
    return torch.from_numpy(np.load(root / TRAINED / family / f"quantiles_{fold}.npy"))


def member_splits(root: Path, family: str, fold: str, values: Tensor) -> Tensor:
    """Aleatoric and epistemic variance within each member of a family, ``(M, 2, n, H)`` float64.

    From the family's MC dropout passes, or without such all aleatoric: the variance of its quantiles ``values``.
    """
    path = root / TRAINED / family / f"split_{fold}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path)).double()
    variance = Predictive(values).variance
    return torch.stack([variance, torch.zeros_like(variance)], dim=1)


def make_ensemble(params: Params, root: Path) -> Path:
    """Weigh and pool; writes and returns ``artifacts/ensemble``.

    ``weights.json`` lists every member with its weight in the ensemble and in its family. ``<model>_<fold>.npy``,
    float32 ``(n, H, Q)``, are the pooled forecasts of the ensemble and of each family;
    ``aleatoric_<fold>.npy`` and ``epistemic_<fold>.npy``, ``(n, H)``, the variance split of the ensemble.
    """
    prepared = load_prepared(root)
    windows = prepared.fold("early_stopping", "weight members")
    target = prepared.panel.targets(windows)
    families = params.families
    count = params.train.members
    members = [(family, index) for family in families for index in range(count)]
    if params.ensemble.weighting == "validation":
        early = torch.cat([member_quantiles(root, family, "early_stopping") for family in families])
        weights = greedy_weights(early, target)
    else:
        weights = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    method = params.ensemble.pooling
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    with atomic_dir(root / POOLED) as folder:
        for fold in FOLDS:
            by_family = [member_quantiles(root, family, fold) for family in families]
            values = torch.cat(by_family)
            splits = [member_splits(root, name, fold, own) for name, own in zip(families, by_family, strict=True)]
            np.save(folder / f"{ENSEMBLE}_{fold}.npy", pool(values, weights, method).values.float().numpy())
            for family, own in zip(families, by_family, strict=True):
                np.save(folder / f"{family}_{fold}.npy", pool(own, even, method).values.float().numpy())
            for name, part in zip(("aleatoric", "epistemic"), decompose(values, weights, torch.cat(splits)), strict=True):
                np.save(folder / f"{name}_{fold}.npy", part.float().numpy())
        rows = [
            {"family": family, "index": index, "weight": float(weight), "weight_in_family": 1 / count}
            for (family, index), weight in zip(members, weights, strict=True)
        ]
        write_json(folder / "weights.json", {"pooling": method, "members": rows})
    return root / POOLED


def pooled(root: Path, model: str, fold: str, purpose: str) -> Predictive:
    """Pooled forecast of ``ensemble`` or a family on a fold, for a purpose that is the fold's own."""
    return Predictive(torch.from_numpy(np.load(root / POOLED / f"{model}_{claim(fold, purpose)}.npy")))


def member_weights(root: Path) -> list[dict[str, str | int | float]]:
    """Members in the order in which they are pooled."""
    return list(read_json(root / POOLED / "weights.json")["members"])
