"""The report's words: the verdict computed from the numbers, and the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tasks.report import COVERAGE, MISSING, NBSP, Band, ReportData, format_metric, format_percent

__all__ = ["Check", "Column", "Row", "Verdict", "alone", "betabinomial_band", "leaderboard", "verdict"]


@dataclass(frozen=True)
class Check:
    """One claim held against the test fold: ``state`` is 'holds', 'misses' or 'unknown'."""

    title: str
    value: str
    target: str
    state: str


@dataclass(frozen=True)
class Verdict:
    """The page's first words: a headline, at most three sentences, and the four checks behind them."""

    headline: str
    sentences: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Row:
    """A leaderboard row: cells are (text, is the best of its column), one for each column.

    ``against`` is the model's CRPS against the ensemble's with its interval, ``differs`` whether that leaves out zero.
    """

    model: str
    kind: str
    cells: tuple[tuple[str, bool], ...]
    against: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Column:
    """A leaderboard column: its heading, and the arrow and words for which direction is better."""

    metric: str
    label: str
    arrow: str
    better: str


ORDER = ("wql", "crps", "mase", "wape", "coverage_80", "coverage_90", "coverage_95", "width_90", "joint_coverage_90",
         "joint_width_90", "ece", "pit_ks", "width_80", "width_95", "aurc", "ood_auroc", "ood_fpr95")  # fmt: skip
LOWER = {"wql", "crps", "mase", "wape", "ece", "pit_ks", "aurc", "ood_fpr95"}
HIGHER = {"ood_auroc"}
ELSEWHERE = {"ood_aupr", "ood_spearman", "ood_false_alarm_rate", "abstain_rate", "aurc_oracle", "aurc_ratio",
             "error_ratio_80", "error_ratio_80_oracle", "error_ratio_80_units"}  # fmt: skip
ACRONYMS = {"wql", "crps", "mase", "wape", "ece", "pit", "ks", "aurc", "ood", "auroc", "fpr95"}


def betabinomial_band(n: int, m: int, rate: float, mass: float = 0.95) -> Band | None:
    """Return the central range of the false-alarm share among ``m`` clean windows, None where ``m`` or ``n`` is 0.

    A conformal p-value from ``n`` calibration scores is at most ``rate`` for the top j = floor(rate (n + 1)) ranks, so
    the share flagged is Beta(j, n + 1 - j) given calibration and the count is beta-binomial (Vovk 2012, Prop. 2).
    """
    j = math.floor(round(rate * (n + 1), 9))
    if m < 1 or n < 1:
        return None
    if j < 1 or j > n:
        return (0.0, 0.0) if j < 1 else (1.0, 1.0)
    b = n + 1 - j
    lgamma = math.lgamma
    const = lgamma(m + 1) + lgamma(n + 1) - lgamma(j) - lgamma(b) - lgamma(m + n + 1)
    log_mass = [const - lgamma(x + 1) - lgamma(m - x + 1) + lgamma(x + j) + lgamma(m - x + b) for x in range(m + 1)]
    tail = (1 - mass) / 2
    low, high = np.searchsorted(np.cumsum(np.exp(log_mass)), [tail, 1 - tail])
    return int(low) / m, min(int(high), m) / m


def _placed(value: float | None, band: Band | None) -> str:
    """Return 'inside', 'below', 'above' or 'unknown': where a value lies against its closed band."""
    if value is None or band is None or not math.isfinite(value):
        return "unknown"
    return "below" if value < band[0] else "above" if value > band[1] else "inside"


TOO_FEW = "too few blocks of time to judge by"
STATE = {"inside": "holds", "below": "misses", "above": "misses", "unknown": "unknown"}


def _banded(
    title: str, value: float | None, band: Band | None, says: str, unknown: str, meaning: dict[str, str]
) -> tuple[str, Check]:
    """Return the clause and the check for a rate that should lie in ``band``; ``says`` is a format of the value."""
    place = _placed(value, band)
    if value is None or band is None or place == "unknown":
        return unknown, Check(title, MISSING, "not measured", "unknown")
    if band[0] <= 0 and band[1] >= 1:
        shown = format_percent(value)
        return f"{says.format(shown)}, on too few blocks of time to be judged", Check(title, shown, TOO_FEW, "unknown")
    shown = format_percent(value, *band)
    span = f"{format_percent(band[0], value)} to {format_percent(band[1], value)}"
    judged = "" if place == "inside" else f", so {meaning[place]}"
    clause = f"{says.format(shown)}, {place} the sampling band of {span}{judged}"
    return clause, Check(title, shown, f"{place} {span}", STATE[place])


def _accuracy(data: ReportData) -> tuple[str, Check]:
    """Return the sentence and the check on WQL: who is best, and whether the ensemble beats every baseline."""
    scores = {key.rpartition("/")[0]: value for key, value in data.metrics.items()
              if key.rpartition("/")[2] == "wql" and math.isfinite(value)}  # fmt: skip
    title, name = "Accuracy", data.ensemble
    own = scores.get(name)
    if own is None:
        return f"The {name} has no WQL, so its accuracy cannot be judged.", Check(title, MISSING, "no WQL", "unknown")
    best = min(scores, key=lambda model: (scores[model], model != name))
    shown = format_metric("wql", own)
    text = f"The {name} has the lowest WQL of {len(scores)} models, {shown}"
    if best != name:
        gap = f" ({format_percent(own / scores[best] - 1)} higher)" if scores[best] > 0 else ""
        text = f"{best} has the lowest WQL, {format_metric('wql', scores[best])}; the {name} is at {shown}{gap}"
    rivals = {model: scores[model] for model in data.baselines if model in scores}
    if not rivals:
        return f"{text}; no baseline was measured.", Check(title, shown, "no baseline measured", "unknown")
    ahead = [model for model, value in sorted(rivals.items(), key=lambda item: item[1]) if value <= own]
    if ahead:
        listed = ", ".join(f"{model} ({format_metric('wql', rivals[model])})" for model in ahead)
        target = f"does not beat {len(ahead)} of {len(rivals)} baselines"
        return f"{text}, and it does not beat {listed}.", Check(title, f"WQL {shown}", target, "misses")
    near = min(rivals, key=lambda model: rivals[model])
    target = f"{format_percent(1 - own / rivals[near])} below {near}"
    every = f"every baseline ({len(rivals)})" if len(rivals) > 1 else "the one baseline"
    tail = f", and it beats {every}, the nearest being {near} at {format_metric('wql', rivals[near])}."
    return text + tail, Check(title, f"WQL {shown}", target, "holds")


def verdict(data: ReportData) -> Verdict:
    """Judge the run by its own numbers: accuracy, marginal and joint coverage, and the gate's false alarms."""
    first, accuracy = _accuracy(data)
    width = {"below": "too narrow", "above": "wider than need be"}
    get = data.metrics.get
    marginal, coverage = _banded(
        "90 % intervals", get(f"{data.ensemble}/coverage_90"), data.coverage_band,
        "The 90 % intervals cover {} of test values", "The coverage of the 90 % intervals was not measured", width,
    )  # fmt: skip
    whole, joint = _banded(
        "Joint 90 % band", get(f"{data.ensemble}/joint_coverage_90"), data.joint_band,
        "the joint band holds the whole path in {} of windows", "joint coverage was not measured", width,
    )  # fmt: skip
    ood = data.ood
    alarm, gate = _banded(
        "False alarms", ood.test_rate, betabinomial_band(len(ood.calibration), len(ood.test), ood.nominal_rate),
        f"The out-of-distribution gate flags {{}} of clean test windows, nominal {format_percent(ood.nominal_rate)}",
        "The false-alarm rate of the out-of-distribution gate was not measured",
        {"below": "with fewer false alarms than stated", "above": "with more false alarms than stated"},
    )  # fmt: skip
    checks = (accuracy, coverage, joint, gate)
    missed = [check.title[0].lower() + check.title[1:] for check in checks if check.state == "misses"]
    unjudged = [check for check in checks if check.state == "unknown"]
    unknown = [check.title[0].lower() + check.title[1:] for check in unjudged]
    how = "not judged" if any(check.target == TOO_FEW for check in unjudged) else "not measured"
    headline = f"{len(missed)} of {len(checks)} checks missed: {', '.join(missed)}" if missed else "Every check holds"
    if unknown:
        headline = f"{headline if missed else 'No {how.split()[1]} check is missed'}; {how}: {', '.join(unknown)}"
    joined = "and" if coverage.state == joint.state else "but"
    return Verdict(headline, (first, f"{marginal}, {joined} {whole}.", f"{alarm}."), checks)


def _column(metric: str) -> Column:
    """Return the heading of one metric and which direction is better."""
    level = COVERAGE.fullmatch(metric)
    words = [word.upper() if word in ACRONYMS else word for word in metric.split("_")]
    label = " ".join(f"{word}{NBSP}%" if word.isdigit() else word for word in words)
    label = label[0].upper() + label[1:]
    if level:
        return Column(metric, label, f"→{NBSP}{level[1]}", f"closest to {level[1]} % is best")
    arrow = "↓" if metric in LOWER else "↑" if metric in HIGHER else ""
    return Column(metric, label, arrow, {"↓": "lower is better", "↑": "higher is better"}.get(arrow, "not ranked"))


def _best(metric: str, values: Iterable[float]) -> float | None:
    """Return the best finite value of a metric, None where it has no direction or fewer than two were measured."""
    finite = [value for value in values if math.isfinite(value)]
    level = COVERAGE.fullmatch(metric)
    if len(finite) < 2:
        return None
    if level:
        return min(finite, key=lambda value: abs(value - int(level[1]) / 100))
    return min(finite) if metric in LOWER else max(finite) if metric in HIGHER else None


def leaderboard(data: ReportData) -> tuple[list[Column], list[Row]]:
    """Return the table of models by metrics, sorted by WQL (models without one last), the best of each marked.

    What the ensemble alone has is left out: `alone` tells it, or a section of its own.
    """
    scores, single = _scores(data), set(_single(data))
    scores = {model: {name: row[name] for name in row if name not in single} for model, row in scores.items()}
    kinds = dict.fromkeys(data.families, "family") | dict.fromkeys(data.baselines, "baseline")
    kinds[data.ensemble] = "ensemble"
    known = {metric: place for place, metric in enumerate(ORDER)}
    metrics = sorted({metric for row in scores.values() for metric in row}, key=lambda m: (known.get(m, len(ORDER)), m))
    best = {metric: _best(metric, [row[metric] for row in scores.values() if metric in row]) for metric in metrics}

    def rank(model: str) -> tuple[float, str]:
        wql = scores[model].get("wql", math.nan)
        return (wql if math.isfinite(wql) else math.inf), model

    rows = [
        Row(model, kinds.get(model, "other"), tuple(
            (format_metric(metric, scores[model].get(metric)), scores[model].get(metric, math.nan) == best[metric])
            for metric in metrics
        ), *_against(data.against.get(model)))
        for model in sorted(scores, key=rank)
    ]  # fmt: skip
    return [_column(metric) for metric in metrics], rows


def alone(data: ReportData) -> str:
    """Return what the ensemble alone was measured by, in a sentence; empty where there is nothing."""
    own = _scores(data).get(data.ensemble, {})
    told = ", ".join(f"{_column(metric).label} {format_metric(metric, own[metric])}" for metric in _single(data))
    return f"The {data.ensemble} alone has {told}." if told else ""


def _single(data: ReportData) -> list[str]:
    """Metrics that the ensemble has and no other of several models, in the order of columns."""
    scores = _scores(data)
    others = {metric for model, row in scores.items() if model != data.ensemble for metric in row}
    own = scores.get(data.ensemble, {}) if len(scores) > 1 else {}
    return sorted(set(own) - others, key=lambda metric: (ORDER.index(metric) if metric in ORDER else len(ORDER), metric))


def _scores(data: ReportData) -> dict[str, dict[str, float]]:
    """Metrics by model, without those that a section of its own tells."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in data.metrics.items():
        model, _, metric = key.rpartition("/")
        if metric not in ELSEWHERE:
            scores.setdefault(model, {})[metric] = float(value)
    return scores


def _against(found: tuple[float, float, float] | None) -> tuple[str, bool]:
    """A model's change of CRPS with its interval as text, and whether the interval leaves out zero."""
    if found is None or not all(map(math.isfinite, found)):
        return "", False
    change, low, high = (f"{100 * value:+.1f}" for value in found)
    return f"{change}{NBSP}% ({low} to {high})", found[1] > 0 or found[2] < 0
