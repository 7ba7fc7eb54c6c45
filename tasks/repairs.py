"""What temperature and the joint band gained, measured on the test fold: before and after, band beside union bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.calibration import JOINT_LEVEL, Calibration
from models.uncertainty.decomposition import bin_index, bin_probabilities
from models.uncertainty.scores import binned_error, calibration_summary, likeliest
from tasks.bins import series_edges
from tasks.ensemble import ENSEMBLE, pooled
from tasks.prepare import Prepared

NAMES = {"calibration_error": "ece", "pit_distance": "pit_ks", "crps": "crps"}
"""Scores of `calibration_summary` and the names under which ``metrics/test.json`` has them."""
BAND_KEY = f"bonferroni_width_{JOINT_LEVEL}"


def repair_metrics(root: Path, prepared: Prepared, calibration: Calibration, metrics: Mapping[str, float]) -> dict[str, float]:
    """Of the ensemble on the test fold, by flat names without the model.

    ``<score>_before`` and ``<score>_after`` temperature: ``ece`` the mean distance of nominal and observed quantile level,
    ``bin_ece`` the expected calibration error of the likeliest decile bin, ``pit_ks`` and ``crps``. The mean width of the
    band that Bonferroni's bound would give, to hold beside ``joint_width``; infinite where the fold is too short for it.
    ``metrics`` has ``ensemble/<score>``, which are those after temperature.
    """
    windows = prepared.fold("test", "evaluate")
    target, edges = prepared.panel.targets(windows), series_edges(prepared)[0][windows.series][:, None]
    before = pooled(root, ENSEMBLE, "test", "evaluate")
    after = calibration.apply(before)
    found = {f"{NAMES[name]}_before": value for name, value in calibration_summary(before, target).items()}
    found |= {f"{name}_after": metrics[f"{ENSEMBLE}/{name}"] for name in NAMES.values()}
    for when, predictive in (("before", before), ("after", after)):
        found[f"bin_ece_{when}"] = bin_calibration_error(predictive, target, edges)
    lower, upper = calibration.bonferroni.band(after)
    return found | {BAND_KEY: float((upper - lower).mean())}


def bin_calibration_error(predictive: Predictive, target: Tensor, edges: Tensor) -> float:
    """Expected calibration error of the likeliest of the bins between ``edges`` ``(n, 1, K - 1)``."""

    def of(part: Predictive, truth: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        return likeliest(bin_probabilities(part, edge).clamp(min=1e-12).log(), bin_index(truth, edge))

    return binned_error(*predictive.each(of, target, edges))
