"""The report's section on unfamiliar input and abstention: what the gate catches and what withholding forecasts buys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.report import MISSING, NBSP, FloatArray, Found, Ood, ReportData, format_metric
from tasks.report_svg import ROLES, Legend, Picture, dashed, finite, inline_svg, pct, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Table", "bars", "finding", "pictures", "tables"]


@dataclass(frozen=True)
class Table:
    """A small table: the first cell of each row is its heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def finding(data: ReportData) -> str:
    """False alarms, detection of held-out perturbations, and what abstention buys, in words."""
    ood = data.ood
    rates = f"{pct(ood.test_rate)} of clean test windows; it was set for {pct(ood.nominal_rate)}"
    caught = ""
    if ood.mean is not None:
        caught = f"Averaged over kinds of change that it was not tuned on, {_told(ood.mean)}. "
    withheld = data.metrics.get(f"{data.ensemble}/abstain_rate")
    share = "" if withheld is None else f"{pct(withheld)} of test forecasts are withheld. "
    return f"The gate flags {rates}. {caught}{share}{_selective(data)[1]}"


def _told(mean: Found) -> str:
    ranges = f"AUROC is {_ranged(mean.auroc)} and its FPR at 95{NBSP}% TPR {_ranged(mean.fpr95)}"
    return f"its {ranges}, with 95{NBSP}% intervals of a block bootstrap"


def pictures(data: ReportData) -> tuple[Picture, ...]:
    """Scores against the threshold, and risk against coverage."""
    return _ood(data.ood), _selective(data)[0]


def bars(ood: Ood) -> tuple[tuple[str, float, str], ...]:
    """Share flagged of clean windows and of each perturbation at the middle size: (name, share, text)."""
    caught = ((name, _flagged(scores, ood.threshold)) for name, scores in ood.perturbed.items())
    return tuple((name, rate, pct(rate)) for name, rate in (("clean test (false alarms)", ood.test_rate), *caught))


def tables(data: ReportData) -> tuple[Table, ...]:
    """Detection by kind and size of change, and error by share of windows kept; those that were measured."""
    found = [_detection(data.ood)] if data.ood.kinds else []
    return tuple([*found, _kept(data)] if data.selective.kept else found)


def _detection(ood: Ood) -> Table:
    sizes = tuple(ood.kinds[0].by_size)
    columns = ("change", *(f"AUROC, {size:g}" for size in sizes), *(f"FPR, {size:g}" for size in sizes))
    rows = tuple(
        (
            kind.name if kind.held_out else f"{kind.name} (tuned on)",
            *(_decimals(kind.by_size[size][0]) for size in sizes),
            *(_decimals(kind.by_size[size][1]) for size in sizes),
        )
        for kind in ood.kinds
    )
    note = f"How well the score tells changed windows from clean ones, by size of the change; FPR is at 95{NBSP}% TPR."
    shown = "; ".join(f"{kind.name} {_ranged(kind.middle.auroc)}" for kind in ood.kinds if kind.middle is not None)
    if shown:
        note += f" AUROC at the middle size with its 95{NBSP}% interval: {shown}."
    return Table("Detection by size of change", columns, rows, note)


def _kept(data: ReportData) -> Table:
    rows = tuple(
        (pct(share, 0), f"{windows:,}", format_metric("aurc", loss), pct(ratio))
        for share, windows, loss, ratio in data.selective.kept
    )
    area = data.metrics.get(f"{data.ensemble}/aurc_ratio")
    units = data.metrics.get(f"{data.ensemble}/error_ratio_80_units")
    note = "Error is the mean absolute error in standard deviations of the window; those expected to err least are kept."
    if area is not None:
        note += f" The area under the curve is {area:.3f} times that of a perfect ranking."
    if units is not None:
        note += f" Ranked and measured in the target's own units, the surest 80{NBSP}% have {pct(units)} of the error of all."
    return Table("Error by share kept", ("kept", "windows", "error", "of all"), rows, note)


def _decimals(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else MISSING


def _ranged(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def _flagged(scores: FloatArray, threshold: float) -> float:
    """Return the share of scores above the threshold, NaN scores left out, NaN where none is left."""
    known = np.ravel(scores)[~np.isnan(np.ravel(scores))]
    return float((known > threshold).mean()) if len(known) else float("nan")


def _ood(ood: Ood) -> Picture:
    """Draw the scores of calibration, clean test and perturbed windows against the threshold."""
    from matplotlib.ticker import PercentFormatter

    perturbed = np.concatenate([np.empty(0), *(np.ravel(scores) for scores in ood.perturbed.values())])
    groups = [finite(ood.calibration), finite(ood.test), finite(perturbed)]
    pooled = np.concatenate(groups) if any(map(len, groups)) else np.zeros(1)
    limit = ood.threshold if np.isfinite(ood.threshold) else float(np.median(pooled))
    low, high = min(float(pooled.min()), limit), max(float(pooled.max()), limit)
    log = low > 0 and high > 30 * float(np.median(groups[0] if len(groups[0]) else pooled))
    if not log:
        high = max(float(np.quantile(pooled, 0.995)), limit + 0.1 * (limit - low))
    high = high if high > low else low + 1.0
    edges = np.geomspace(low, high, 37) if log else np.linspace(low, high, 37)
    share = [np.histogram(np.clip(group, low, high), edges)[0] / max(len(group), 1) for group in groups]

    def draw(axes: Axes) -> None:
        axes.stairs(share[1], edges, fill=True, color=ROLES["accent"], alpha=0.4)
        axes.stairs(share[0], edges, color=ROLES["ink"], linewidth=1.3)
        if len(groups[2]):
            axes.stairs(share[2], edges, color=ROLES["brass"], linewidth=1.5, linestyle=(0, (4, 2)))
        if np.isfinite(ood.threshold):
            axes.axvline(ood.threshold, color=ROLES["ink"], linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(" flagged →", (ood.threshold, 1), xycoords=("data", "axes fraction"), va="top",
                          color=ROLES["muted"])  # fmt: skip
        axes.set(xscale="log" if log else "linear", xlabel="out-of-distribution score", ylabel="share of windows")
        axes.set_ylim(0, 1.18 * max(float(side.max()) for side in share) or 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=f"{NBSP}%"))

    label = (f"Histogram of out-of-distribution scores: {pct(ood.test_rate)} of clean test windows lie above the "
             f"threshold of {ood.threshold:.4g}, nominal {pct(ood.nominal_rate)}.")  # fmt: skip
    beyond = "" if log else " The last bar holds all higher scores."
    caption = f"Right of the dotted line is flagged; test should look like calibration, perturbed should not.{beyond}"
    legend = (Legend("line", "ink", "calibration"), Legend("fill", "accent", "clean test", 0.4),
              Legend("dash", "brass", "perturbed"))  # fmt: skip
    return Picture("Scores and threshold", inline_svg("ood", label, draw), caption, legend)


def _selective(data: ReportData) -> tuple[Picture, str]:
    """Draw risk against coverage, with what sorting by the true loss would reach, and say what abstention gains."""
    from matplotlib.ticker import PercentFormatter

    s = data.selective
    order = np.argsort(s.coverage)
    coverage, risk, oracle = (np.asarray(side, dtype=float)[order] for side in (s.coverage, s.risk, s.oracle_risk))

    def draw(axes: Axes) -> None:
        keep = thin(len(coverage))
        if len(risk):
            axes.axhline(risk[-1], color=ROLES["muted"], linewidth=1)
        dashed(axes, coverage[keep], oracle[keep])
        axes.plot(coverage[keep], risk[keep], color=ROLES["accent"])
        axes.set(xlim=(0, 1), xlabel="share of windows answered", ylabel="mean loss of those answered")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=f"{NBSP}%"))

    finding = "Abstention was not measured."
    if len(risk):
        at = int(np.argmin(np.abs(coverage - 0.8)))
        kept, everything = (format_metric("aurc", value) for value in (risk[at], risk[-1]))
        verb = "lowers" if risk[at] < risk[-1] else "does not lower"
        finding = (f"Answering only the {pct(coverage[at], 0)} it is surest of {verb} the mean loss: {kept} against "
                   f"{everything} for all; a perfect ranking reaches {format_metric('aurc', oracle[at])}.")  # fmt: skip
    caption = "The further the curve lies below the grey line (random abstention), the better uncertainty ranks errors."
    legend = (Legend("line", "accent", "by uncertainty"), Legend("dash", "brass", "oracle"),
              Legend("line", "muted", "random"))  # fmt: skip
    drawing = inline_svg("selective", f"Risk-coverage curve. {finding}", draw)
    return Picture("Risk and coverage", drawing, caption, legend), finding
