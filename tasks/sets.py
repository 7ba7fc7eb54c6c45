"""Conformal sets: the contiguous run of a series' decile bins that holds each step's value with a promised share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.calibration import Calibration
from models.uncertainty.conformal_scores import from_plain, to_plain
from models.uncertainty.decomposition import bin_index, bin_probabilities
from models.uncertainty.sets import SetConformal, run_bounds, run_ends
from tasks.bins import LEAST_VALUES, deciles, known, series_edges
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import read_json
from tasks.prepare import Prepared

SETS = Path("artifacts/calibration/sets.json")
SET_LEVEL = 90
SET_COLUMNS = tuple(f"set-{what}-{SET_LEVEL}" for what in ("first", "last", "lo", "hi"))
"""Columns of the forecast table: first and last bin, counted from 1, and the values at the run's ends."""


@dataclass(frozen=True)
class DecileSets:
    """Ordinal conformal sets over the deciles of each series; ``shared`` are those of all training values together."""

    conformal: SetConformal
    edges: dict[str, Tensor]
    shared: Tensor

    @classmethod
    def fit(cls, root: Path, prepared: Prepared, calibration: Calibration) -> DecileSets:
        """Fit on the conformal fold, one threshold a step, around the ensemble after temperature."""
        windows = prepared.fold("conformal", "fit conformal")
        predictive = calibration.apply(pooled(root, ENSEMBLE, "conformal", "fit conformal"))
        own, shared = series_edges(prepared)
        edges = own[windows.series][:, None]
        labels = bin_index(prepared.panel.targets(windows), edges)
        conformal = SetConformal.fit("ordinal", bin_probabilities(predictive, edges), labels, SET_LEVEL / 100)
        names = [str(name) for name in prepared.ids]
        return cls(conformal, dict(zip(names, own, strict=True)), shared)

    def edges_of(self, series: str, history: Tensor) -> Tensor:
        """Edges ``(9,)`` of a series: from training, or for one not seen there from its ``history`` ``(n,)``."""
        values = known(history)
        return self.edges.get(series, deciles(values) if len(values) >= LEAST_VALUES else self.shared)

    def sets(self, predictive: Predictive, edges: Tensor) -> Tensor:
        """Bins in the set of each window and step, bool ``(n, H, 10)``, for ``edges`` ``(n, 9)``."""
        return self.conformal.sets(bin_probabilities(predictive, edges[:, None]))

    def columns(self, predictive: Predictive, edges: Tensor) -> dict[str, Tensor]:
        """`SET_COLUMNS` of the forecast table, ``(n, H)`` each; an outer bin's end is infinite."""
        chosen = self.sets(predictive, edges)
        first, last = run_ends(chosen)
        return dict(zip(SET_COLUMNS, (first + 1, last + 1, *run_bounds(chosen, edges[:, None])), strict=True))

    def record(self) -> dict[str, Any]:
        """What the guarantee card says: bins, level, n, rank and whether the sets leave bins out at all."""
        own = self.conformal.record()
        return {
            "bins": "ten of each series, by the deciles of its training values; of its own history where it is new",
            "kind": "ordinal: a contiguous run about the likeliest bin",
            "level": self.conformal.level,
            **{key: own[key] for key in ("n", "rank", "finite")},
        }

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        edges = {name: to_plain(values) for name, values in self.edges.items()}
        return {"conformal": self.conformal.state(), "edges": edges, "shared": to_plain(self.shared)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DecileSets:
        edges = {name: from_plain(values) for name, values in state["edges"].items()}
        return cls(SetConformal.from_state(state["conformal"]), edges, from_plain(state["shared"]))


def load_sets(root: Path) -> DecileSets | None:
    """The run's sets, None where it makes none."""
    return DecileSets.from_state(read_json(root / SETS)) if (root / SETS).exists() else None


def set_metrics(root: Path, prepared: Prepared, calibration: Calibration) -> dict[str, float]:
    """Covered share and mean size, in bins of ten, of the sets on the test fold; nothing where the run makes none."""
    sets = load_sets(root)
    if sets is None:
        return {}
    windows = prepared.fold("test", "evaluate")
    edges = torch.stack([sets.edges[str(name)] for name in prepared.ids])[windows.series]
    chosen = sets.sets(calibration.apply(pooled(root, ENSEMBLE, "test", "evaluate")), edges)
    label = bin_index(prepared.panel.targets(windows), edges[:, None])
    covered = chosen.gather(-1, label[..., None])
    return {
        f"set_coverage_{SET_LEVEL}": float(covered.double().mean()),
        f"set_size_{SET_LEVEL}": float(chosen.sum(-1).double().mean()),
    }
