"""The figures of the monitor, and the threshold of each: what the champion was, plus what matters, or what chance does.

A figure alarms when it is beyond its threshold, which is the further of two: the champion's own figure and the tolerance
of ``monitor`` in params.yaml, and the limit that chance alone exceeds with probability 1 - ``monitor.confidence`` (for all
series together: each has an equal share of it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.uncertainty.drift import Population, block_means, distance_limit, rate_limit, rise_limit, uniform_distance
from models.uncertainty.guarantee import coverage_band, effective_sample_size
from tasks.bundle import Bundle
from tasks.encoding import Encoding
from tasks.live_panel import LivePanel
from tasks.params_monitor import Monitor
from tasks.reference import LEVEL, Judged, Reference, covariates, observed_rows, together

WORDS = {
    f"coverage_{LEVEL}": f"coverage of the {LEVEL} % intervals",
    "crps": "CRPS",
    f"width_{LEVEL}": f"width of the {LEVEL} % intervals",
    "pit_ks": "distance of the probability integral transforms from uniform",
    "ood_rate": "share of windows flagged as out of distribution",
    "psi": "population stability index",
    "range": "share of values outside of the training range",
}
LEAST_STRETCHES = 3  # of the past that say how much such stretches differ
SHARES = {f"coverage_{LEVEL}", "ood_rate", "range"}
Values = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Figure:
    """One figure of a group: ``kind`` is all, series or column. ``threshold`` is a least one for coverage, else a largest."""

    kind: str
    group: str
    metric: str
    value: float
    reference: float
    threshold: float

    @property
    def alarm(self) -> bool:
        beyond = self.value < self.threshold if self.metric.startswith("coverage") else self.value > self.threshold
        return beyond and not math.isnan(self.reference)

    @property
    def where(self) -> str:
        """The group in words."""
        return "all series" if self.kind == "all" else f"{self.kind} {self.group}"

    @property
    def sentence(self) -> str:
        """What an alarm says."""
        side = "below" if self.metric.startswith("coverage") else "above"
        value, threshold, reference = (shown(self.metric, each) for each in (self.value, self.threshold, self.reference))
        return (
            f"{self.metric}: the {WORDS[self.metric]} of {self.where} is {value}, {side} {threshold} (reference {reference})."
        )

    def row(self) -> dict[str, Any]:
        """For JSON and tables, with None for what is not a finite number."""
        numbers = {name: plain(getattr(self, name)) for name in ("value", "reference", "threshold")}
        return {"kind": self.kind, "group": self.group, "metric": self.metric, **numbers, "alarm": self.alarm}


def plain(value: float) -> float | None:
    """The number rounded to 9 digits, None where it is not finite."""
    return round(float(value), 9) if math.isfinite(value) else None


def shown(metric: str, value: float) -> str:
    """A figure in a sentence."""
    if not math.isfinite(value):
        return "infinite" if value > 0 else "not known"
    return f"{value:.1%}".replace("%", " %") if metric in SHARES else f"{value:.4g}"


def figures(rules: Monitor, reference: Reference, bundle: Bundle, live: Judged, panel: LivePanel) -> list[Figure]:
    """All figures of the windows judged, and of the values that came with them."""
    alpha, names, nominal = 1 - rules.confidence, sorted(set(live.series.tolist())), bundle.gate.alpha
    found = forecast_figures(rules, reference, "all", "all", live, reference.test, alpha, nominal)
    rows, none = [_rows_of(judged.series) for judged in (live, reference.test)], np.empty(0, dtype=np.int64)
    for name in names:
        parts = live[rows[0][name]], reference.test[rows[1].get(name, none)]
        found += forecast_figures(rules, reference, "series", name, *parts, alpha / len(names), nominal)
    return found + population_figures(rules, reference, bundle.encoding, panel)


def _rows_of(series: np.ndarray) -> dict[str, np.ndarray]:
    """Where each name stands, in order."""
    return {str(name): np.asarray(rows) for name, rows in pd.Series(series).groupby(series).indices.items()}


def forecast_figures(
    rules: Monitor, reference: Reference, kind: str, group: str, live: Judged, past: Judged, alpha: float, nominal: float
) -> list[Figure]:
    """Coverage, CRPS, width, uniformity and alarm rate of one group against its test fold."""
    most = len(live.block.unique()) * (reference.worth if kind == "all" else 1.0)

    def effective(share: Tensor) -> float:
        return min(effective_sample_size(share, live.block), most)

    covered = live.covered.double().mean(1)
    low = coverage_band(reference.effective, effective(covered), LEVEL / 100, 1 - 2 * alpha)[0]
    found = {f"coverage_{LEVEL}": (float(covered.mean()), LEVEL / 100, min(LEVEL / 100 - rules.coverage_tolerance, low))}
    increases = {"crps": rules.crps_increase, f"width_{LEVEL}": rules.width_increase}
    for (metric, increase), name in zip(increases.items(), ("crps", "width"), strict=True):
        now, before = (block_means(getattr(each, name).mean(1), each.block) for each in (live, past))
        usual = float(getattr(past, name).mean())
        found[metric] = (float(getattr(live, name).mean()), usual, max(usual * (1 + increase), rise_limit(now, before, alpha)))
    distance, level = uniform_distance(live.pit)
    usual = uniform_distance(past.pit)[0] if len(past) else math.nan
    chance = distance_limit(effective((live.pit <= level).double().mean(1)), alpha)
    found["pit_ks"] = (distance, usual, max(usual + rules.pit_distance, chance))
    rate = max(nominal, float(past.flagged.double().mean())) if len(past) else nominal
    chance = rate_limit(effective(live.flagged.double()), rate, alpha)
    found["ood_rate"] = (float(live.flagged.double().mean()), rate, max(rate + rules.ood_rate, chance))
    return [Figure(kind, group, metric, *numbers) for metric, numbers in found.items()]


def population_figures(rules: Monitor, reference: Reference, encoding: Encoding, panel: LivePanel) -> list[Figure]:
    """Stability index and range of the targets and covariates that came with the judged truths, against the training fold.

    What is usual is the largest that any stretch of the same length had between the training fold's end and that of the
    champion's data, which knows the season and the trend that a stretch may differ by; how much such stretches differ from one
    another says how far beyond it chance alone reaches.
    """
    seen, steps = observed_rows(panel.panel), panel.steps()
    names = list(panel.ids)
    first = max(panel.until, panel.newest - (rules.window or reference.window)) + 1
    live = seen & (steps >= first)
    length = panel.newest - first + 1
    stretches = [
        seen & (steps > end - length) & (steps <= end) for end in range(panel.until, panel.trained_until + length - 1, -length)
    ]
    alpha = 1 - rules.confidence
    groups: list[tuple[str, str, Population, Values, float]] = [
        ("all", "all", reference.together, lambda rows: together(panel.panel, rows, names, reference.targets), alpha)
    ]
    for index, name in enumerate(names):
        if name in reference.targets:
            groups.append(("series", name, reference.targets[name], _series(panel, index), alpha / len(reference.targets)))
    for name, column in covariates(encoding):
        population = reference.columns[name]
        groups.append(("column", name, population, _column(panel, column, seen), alpha / len(reference.columns)))
    found = []
    for kind, group, population, values, share in groups:
        now, before = values(live), [values(stretch) for stretch in stretches]
        chance = population.stability_limit(min(length, len(now)), share)
        for metric, measure, tolerance, limit in (
            ("psi", population.stability, rules.psi, chance),
            ("range", population.outside, rules.range, 0.0),
        ):
            usual = torch.tensor([value for each in before if not math.isnan(value := measure(each))], dtype=torch.float64)
            value, most = measure(now), float(usual.max()) if len(usual) else 0.0
            if len(usual) >= LEAST_STRETCHES:
                limit = max(limit, rise_limit(torch.tensor([value]), usual, share))
            found.append(Figure(kind, group, metric, value, most, max(tolerance, most, limit)))
    return [figure for figure in found if not math.isnan(figure.value)]


def _column(panel: LivePanel, column: int, among: np.ndarray) -> Values:
    return lambda rows: panel.panel.rows[torch.from_numpy(rows & among), column].to(torch.float64)


def _series(panel: LivePanel, index: int) -> Values:
    own = slice(*panel.panel.offsets[index : index + 2].tolist())
    return lambda rows: panel.panel.rows[own, 0][torch.from_numpy(rows[own])].to(torch.float64)


def timeline(live: Judged, times: dict[int, Any], adaptive: Tensor) -> list[dict[str, Any]]:
    """Figures of all series at each cutoff, in order; ``times`` names the cutoffs and ``adaptive`` (n, H) says whether the
    live interval held the truth, NaN for a series without one."""
    rows = []
    for block in sorted(times):
        which = (live.block == block).numpy()
        part, own = live[which], adaptive[torch.from_numpy(which)]
        numbers = {
            f"coverage_{LEVEL}": part.covered.double().mean(),
            f"coverage_{LEVEL}_live": own.nanmean(),
            "crps": part.crps.mean(),
            f"width_{LEVEL}": part.width.mean(),
            "ood_rate": part.flagged.double().mean(),
        }
        rows.append(
            {"cutoff": times[block], "windows": len(part), **{name: plain(float(each)) for name, each in numbers.items()}}
        )
    return rows
