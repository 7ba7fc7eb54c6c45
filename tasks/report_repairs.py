"""The report's words on recalibration: what temperature changed, and the joint band beside the union bound's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tasks.repairs import BAND_KEY
from tasks.report import ReportData, format_metric, format_percent
from tasks.sets import SET_LEVEL

__all__ = ["Repair", "Repairs", "repairs", "without_repairs"]

SCORES = (
    ("ece", "Quantile calibration error", "mean distance of nominal and observed quantile level"),
    ("bin_ece", "Expected calibration error", "confidence against accuracy of the likeliest tenth of the series' range"),
    ("pit_ks", "PIT distance", "Kolmogorov distance from the uniform distribution"),
    ("crps", "CRPS", "mean, in units of y"),
)


@dataclass(frozen=True)
class Repair:
    """A score before and after temperature, and their ratio, as text."""

    name: str
    meaning: str
    before: str
    after: str
    ratio: str


@dataclass(frozen=True)
class Repairs:
    """The rows of the table, and sentences on the joint band's width and on conformal sets where they were measured."""

    rows: tuple[Repair, ...]
    sentences: tuple[str, ...]


def repairs(data: ReportData) -> Repairs:
    """Before and after of every score that was measured."""
    own = _own(data.metrics, data.ensemble)
    rows = []
    for key, name, meaning in SCORES:
        before, after = own.get(f"{key}_before", math.nan), own.get(f"{key}_after", math.nan)
        if math.isfinite(before) and math.isfinite(after):
            ratio = f"{after / before:.2f}" if before > 0 else "–"
            rows.append(Repair(name, meaning, format_metric(key, before), format_metric(key, after), ratio))
    joint, union = own.get("joint_width_90", math.nan), own.get(BAND_KEY, math.nan)
    if math.isfinite(joint) and math.isfinite(union) and union > 0:
        more = "narrower" if joint <= union else "wider"
        share = format_percent(abs(1 - joint / union))
        band = (
            f"The joint 90 % band is {format_metric('width', joint)} wide on average, {share} {more} than the "
            f"{format_metric('width', union)} that Bonferroni's bound takes for the same promise."
        )
    elif math.isfinite(joint):
        band = "Bonferroni's bound has no finite band here: each step's level asks for more calibration windows than there are."
    else:
        band = ""
    sets = ""
    covered, size = (own.get(f"set_{name}_{SET_LEVEL}", math.nan) for name in ("coverage", "size"))
    if math.isfinite(covered):
        sets = (
            f"The {SET_LEVEL} % sets hold {format_percent(covered)} of test values and are {size:.1f} of a series' ten decile "
            "bins wide on average."
        )
    return Repairs(tuple(rows), tuple(sentence for sentence in (band, sets) if sentence))


def without_repairs(data: ReportData) -> ReportData:
    """The data without the scores that this section shows, for the leaderboard."""
    hidden = {f"{data.ensemble}/{key}_{when}" for key, _, _ in SCORES for when in ("before", "after")}
    hidden |= {f"{data.ensemble}/{key}" for key in (BAND_KEY, f"set_coverage_{SET_LEVEL}", f"set_size_{SET_LEVEL}")}
    return replace(data, metrics={key: value for key, value in data.metrics.items() if key not in hidden})


def _own(metrics: Mapping[str, float], model: str) -> dict[str, float]:
    return {key.removeprefix(f"{model}/"): value for key, value in metrics.items() if key.startswith(f"{model}/")}
