"""Members become one forecast: weights from the early-stopping fold, pooled quantiles for every later fold."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.predictive import Predictive
from models.predictive_parts import ROWS, in_parts
from models.uncertainty.ensemble import all_aleatoric, decompose, greedy_weights, pool
from tasks.arrays import ArrayFile, ArrayRows
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import claim
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.settings import FOLDS
from tasks.train import TRAINED

POOLED = Path("artifacts/ensemble")
ENSEMBLE = "ensemble"


class FoldMembers:
    """Quantiles of a family's members on a fold, float32 ``(M, n, H, Q)``, and their variances; read some windows at a time."""

    def __init__(self, root: Path, family: str, fold: str) -> None:
        self._quantiles, self._split = (root / TRAINED / family / f"{name}_{fold}.npy" for name in ("quantiles", "split"))
        self.shape = np.load(self._quantiles, mmap_mode="r").shape

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        return torch.from_numpy(np.array(np.load(self._quantiles, mmap_mode="r")[index]))

    def splits(self, windows: slice, values: Tensor) -> Tensor:
        """Aleatoric and epistemic variance of ``windows`` within each member, ``(M, 2, n, H)`` float64.

        From the family's MC dropout passes, or without such all aleatoric: the variance of its quantiles ``values``.
        """
        if self._split.exists():
            return torch.from_numpy(np.load(self._split, mmap_mode="r")[:, :, windows].astype(np.float64))
        return all_aleatoric(values, dim=1)


class AllMembers:
    """The members of several families, one after the other."""

    def __init__(self, families: Sequence[FoldMembers]) -> None:
        self._families = families
        self.shape = (sum(family.shape[0] for family in families), *families[0].shape[1:])

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        return torch.cat([family[index] for family in self._families])


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
        early = AllMembers([FoldMembers(root, family, "early_stopping") for family in families])
        weights = greedy_weights(early, target)
    else:
        weights = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    method = params.ensemble.pooling
    with atomic_dir(root / POOLED) as folder:
        for fold in FOLDS:
            pool_fold(root, families, fold, weights, method, folder)
        rows = [
            {"family": family, "index": index, "weight": float(weight), "weight_in_family": 1 / count}
            for (family, index), weight in zip(members, weights, strict=True)
        ]
        write_json(folder / "weights.json", {"pooling": method, "members": rows})
    return root / POOLED


def pool_fold(root: Path, families: Sequence[str], fold: str, weights: Tensor, method: str, folder: Path) -> None:
    """Write the pooled forecasts of the ensemble and of each family on a fold, and the ensemble's variances, part by part."""
    members = [FoldMembers(root, family, fold) for family in families]
    count, n = members[0].shape[:2]
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    names = (ENSEMBLE, *families, "aleatoric", "epistemic")
    with ExitStack() as files:
        written = [files.enter_context(ArrayFile(folder / f"{name}_{fold}.npy", n)) for name in names]
        for start in range(0, max(n, 1), ROWS):
            windows = slice(start, start + ROWS)
            by_family = [family[:, windows] for family in members]
            values = torch.cat(by_family)
            splits = [family.splits(windows, own) for family, own in zip(members, by_family, strict=True)]
            parts = [pool(values, weights, method).values, *(pool(own, even, method).values for own in by_family)]
            parts += decompose(values, weights, torch.cat(splits))
            for file, part in zip(written, parts, strict=True):
                file.add(part.float().numpy())


def pooled(root: Path, model: str, fold: str, purpose: str) -> Predictive:
    """Pooled forecast of ``ensemble`` or a family on a fold, for a purpose that is the fold's own."""
    return in_parts(pooled_rows(root, model, fold, purpose))


def pooled_rows(root: Path, model: str, fold: str, purpose: str) -> ArrayRows:
    """The quantiles ``(n, H, Q)`` that `pooled` is made of, read when asked for."""
    return ArrayRows(root / POOLED / f"{model}_{claim(fold, purpose)}.npy")


def member_weights(root: Path) -> list[dict[str, str | int | float]]:
    """Members in the order in which they are pooled."""
    return list(read_json(root / POOLED / "weights.json")["members"])
