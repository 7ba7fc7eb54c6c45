"""One member: trained from its own seed, or loaded; a killed run goes on from its checkpoint.

Lightning, which trains networks and takes seconds to import, is behind `tasks.descent`: to load a member nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

import torch

from models.forecasters.base import Forecaster
from models.forecasters.factory import build_forecaster
from tasks.files import atomic_path, read_json, write_json
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared

PREDICTED = "predicted.json"

Report = Callable[[int, float], None]
"""Is told the epochs done and the last early-stopping loss."""


class DivergedError(RuntimeError):
    """Training produced a loss that is not a number."""


@dataclass(frozen=True)
class MemberSpec:
    """What a member's process needs to know; ``folder`` keeps its checkpoint and, when done, its weights."""

    root: Path
    params: Params
    family: str
    index: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.family} member {self.index}"

    @property
    def seed(self) -> int:
        return self.params.train.seed + self.index

    @property
    def done(self) -> bool:
        return (self.folder / PREDICTED).exists()

    @property
    def config(self):  # type: ignore[no-untyped-def]
        return getattr(self.params.forecasters, self.family)


def train_member(spec: MemberSpec, report: Report = lambda epoch, loss: None) -> Path:
    """Train a member, or go on from its checkpoint, and write its best weights; returns the weights' path.

    Ends at once when the weights are there. The result depends on params.yaml, the data and the seed alone, not on
    how often the run was interrupted.
    """
    from safetensors.torch import save_model

    weights = spec.folder / "weights.safetensors"
    if weights.exists():
        report(spec.config.max_epochs, float("nan"))
        return weights
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning|pytorch_forecasting|torch")
    torch.set_num_threads(1)
    prepared = load_prepared(spec.root)
    if spec.family == "gradient_boosting":
        forecaster, history = _boost(spec, prepared)
        report(1, history[0]["early_stopping_loss"])
    else:
        from tasks.descent import descend

        forecaster, history = descend(spec, prepared, report)
    write_json(spec.folder / "history.json", history)
    with atomic_path(weights) as temporary:
        save_model(forecaster, str(temporary))
    return weights


def _boost(spec: MemberSpec, prepared: Prepared) -> tuple[Forecaster, list[dict[str, float]]]:
    """Fitted trees, and their losses as those of a single epoch; soon done, so a killed run begins anew."""
    from models.forecasters.gradient_boosting import fit_boosting

    train, check = prepared.fold("train", "fit networks"), prepared.fold("early_stopping", "choose epoch")
    forecaster, losses = fit_boosting(prepared.panel, train, check, spec.config, spec.seed)
    return forecaster, [{"epoch": 1.0, **losses}]


def load_member(family: str, config, schema, weights: Path) -> Forecaster:  # type: ignore[no-untyped-def]
    """A trained forecaster from its safetensors file, ready to predict."""
    from safetensors.torch import load_model

    forecaster = build_forecaster(family, schema, config)
    load_model(forecaster, str(weights), strict=True)
    return forecaster.eval()


def member_history(folder: Path) -> list[dict[str, float]]:
    """Losses by epoch of a finished member."""
    return read_json(folder / "history.json")


def die_with_parent() -> None:
    """End this process when the one that started it is gone, so that a killed run leaves nothing computing."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
