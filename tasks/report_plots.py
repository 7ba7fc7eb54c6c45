"""The report's figures, each with the words that go beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import report_trust as trust
from tasks.report import NBSP, Fan, FloatArray, ReportData, format_metric
from tasks.report_interpretation import finding, pictures
from tasks.report_svg import ROLES, Legend, Picture, dashed, finite, inline_svg, mean, pct
from tasks.report_time import course_finding, course_pictures, split_finding, split_pictures
from tasks.report_trust import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Section", "sections", "time_axis"]


@dataclass(frozen=True)
class Section:
    """A part of the page: heading, what the numbers say, figures, and optional (name, share) bars and tables."""

    anchor: str
    title: str
    finding: str
    pictures: tuple[Picture, ...]
    legend: tuple[Legend, ...] = ()
    bars: tuple[tuple[str, float, str], ...] = ()
    tables: tuple[Table, ...] = ()


def _opacity(n: int) -> FloatArray:
    """Return the opacity of each of ``n`` nested bands, widest first; inner bands lie on the outer ones."""
    opacity: FloatArray = np.linspace(0.16, 0.26, n) if n > 1 else np.full(n, 0.3)
    return opacity


def time_axis(axes: Axes, ds: Any) -> None:
    """Give dates short labels and integers whole ones."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import MaxNLocator

    if np.issubdtype(np.asarray(ds).dtype, np.datetime64):
        locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _fan(fan: Fan, place: int) -> Picture:
    """Draw one fan chart: the tail of the history, the cutoff, nested bands, joint band, median and actual values."""
    horizon = len(fan.ds)
    tail = max(2 * horizon, 24)
    past_ds, past = np.asarray(fan.history_ds)[-tail:], np.asarray(fan.history_y, dtype=float)[-tail:]
    levels = sorted(fan.lo, reverse=True)
    edges = [np.asarray(edge, dtype=float) for edge in (*fan.lo.values(), *fan.hi.values(), fan.joint_lo, fan.joint_hi)]
    seen = finite(np.concatenate([past, np.asarray(fan.y, dtype=float), np.asarray(fan.median, dtype=float), *edges]))
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    room = 0.06 * (high - low or 1.0)

    def clip(edge: FloatArray) -> FloatArray:
        clipped: FloatArray = np.clip(np.asarray(edge, dtype=float), low - 10 * room, high + 10 * room)
        return clipped

    def draw(axes: Axes) -> None:
        axes.plot(past_ds, past, color=ROLES["muted"], linewidth=1.2)
        for level, opacity in zip(levels, _opacity(len(levels)), strict=True):
            lo, hi = clip(fan.lo[level]), clip(fan.hi[level])
            if horizon == 1:
                axes.vlines(fan.ds, lo, hi, color=ROLES["accent"], alpha=opacity, linewidth=9)
            else:
                axes.fill_between(fan.ds, lo, hi, facecolor=ROLES["accent"], alpha=opacity, edgecolor="none")
        for edge in (fan.joint_lo, fan.joint_hi):
            axes.plot(fan.ds, clip(edge), color=ROLES["brass"], linewidth=1.3, linestyle=(0, (4, 2)),
                      marker="_" if horizon == 1 else None)  # fmt: skip
        axes.plot(fan.ds, fan.median, color=ROLES["accent"], marker="_" if horizon == 1 else None)
        axes.plot(fan.ds, fan.y, color=ROLES["ink"], linewidth=0.9, marker="o", markersize=2.6 if horizon < 60 else 0)
        axes.set_ylim(low - room, high + 2.4 * room)
        if len(past_ds):
            axes.axvline(past_ds[-1], color=ROLES["ink"], linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate("cutoff ", (past_ds[-1], 1), xycoords=("data", "axes fraction"), ha="right", va="top",
                          color=ROLES["muted"])  # fmt: skip
        time_axis(axes, fan.ds)

    y = np.asarray(fan.y, dtype=float)
    known = np.isfinite(y)
    inner = 90 if 90 in fan.lo else (levels[0] if levels else None)
    inside = int(((y >= fan.lo[inner]) & (y <= fan.hi[inner]))[known].sum()) if inner is not None else 0
    left = int(((y < fan.joint_lo) | (y > fan.joint_hi))[known].sum())
    joint = "the path stays inside the joint band" if not left else f"it leaves the joint band at {left}"
    held = f"{inside} of {int(known.sum())} actual values lie inside the {inner} % band; {joint}"
    score = format_metric("wql", fan.score)
    label = f"Fan chart of {fan.unique_id} ({fan.label}, WQL {score}), {horizon} steps after {fan.cutoff}: {held}."
    heading = f"{fan.label.capitalize()}: {fan.unique_id}"
    caption = f"WQL {score}, cutoff {fan.cutoff}. {_upper(held)}."
    return Picture(heading, inline_svg(f"fan-{place}", label, draw), caption)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


BEFORE_AFTER = (Legend("dash", "brass", "before calibration"), Legend("line", "accent", "after"))


def _change(before: float, after: float) -> str:
    """Say how an error moved, in either direction."""
    if f"{before:.4f}" == f"{after:.4f}":
        return f"stays at {after:.4f}"
    return f"{'falls' if after < before else 'rises'} from {before:.4f} to {after:.4f}"


def _reliability(data: ReportData) -> Picture:
    """Draw observed against nominal quantile level."""
    r = data.reliability

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=ROLES["muted"], linewidth=1)
        marker = 3.2 if len(r.nominal) <= 30 else 0
        dashed(axes, r.nominal, r.before, marker="o", markersize=marker, markerfacecolor=ROLES["card"])
        axes.plot(r.nominal, r.after, color=ROLES["accent"], marker="o", markersize=marker)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal quantile level", ylabel="observed share at or below")

    gap = _change(mean(np.abs(r.before - r.nominal)), mean(np.abs(r.after - r.nominal)))
    label = f"Reliability diagram: the mean distance from the diagonal {gap} with calibration."
    caption = "On the diagonal a quantile lies above just the share of values it names; flatter is overconfident."
    return Picture("Reliability", inline_svg("reliability", label, draw), caption, BEFORE_AFTER)


def _ks(values: FloatArray) -> float:
    """Return the Kolmogorov-Smirnov distance from the uniform distribution: max over i of i/n - u_i, u_i - (i-1)/n."""
    u = np.sort(finite(values))
    ranks = np.arange(1, len(u) + 1)
    return float(max((ranks / len(u) - u).max(), (u - (ranks - 1) / len(u)).max())) if len(u) else float("nan")


def _pit(data: ReportData, bins: int = 20) -> Picture:
    """Draw the PIT histograms against the flat line of a calibrated forecast and its binomial 95 % range."""
    edges = np.linspace(0, 1, bins + 1)
    before, after = (finite(side) for side in (data.pit.before, data.pit.after))
    heights = [np.histogram(side, edges)[0] * bins / max(len(side), 1) for side in (before, after)]
    spread = 1.96 * np.sqrt((bins - 1) / max(len(after), 1))

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], heights[1], 0.94 / bins, align="edge", color=ROLES["accent"], alpha=0.45)
        axes.stairs(heights[0], edges, color=ROLES["brass"], linewidth=1.5, linestyle=(0, (4, 2)), baseline=None)
        axes.axhspan(max(1 - spread, 0), 1 + spread, color=ROLES["muted"], alpha=0.18, linewidth=0)
        axes.axhline(1, color=ROLES["ink"], linewidth=1)
        axes.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="density")
        axes.set_ylim(0, 1.1 * max(1 + spread, *(side.max() for side in heights)))

    label = f"PIT histograms: the distance from uniform (KS) {_change(_ks(before), _ks(after))} with calibration."
    caption = ("Flat at 1 is calibrated; a U shape is too narrow, a hump too wide, a slope biased. Grey: the 95 % "
               f"range of one bar for {len(after):,} independent values.")  # fmt: skip
    legend = (BEFORE_AFTER[0], Legend("fill", "accent", "after", 0.45), Legend("line", "ink", "calibrated"))
    return Picture("PIT histogram", inline_svg("pit", label, draw), caption, legend)


def _steps(data: ReportData) -> tuple[Picture, Picture]:
    """Draw coverage and width of the interval at each step ahead."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    s, (lo, hi) = data.steps, data.coverage_band
    x = np.arange(1, len(s.coverage_after) + 1)
    marker = 3.2 if len(x) <= 31 else 0

    def both(axes: Axes, before: FloatArray, tempered: FloatArray | None, after: FloatArray) -> None:
        dashed(axes, x, np.where(np.isfinite(before), before, np.nan), marker="o", markersize=marker,
                markerfacecolor=ROLES["card"])  # fmt: skip
        if tempered is not None:
            axes.plot(x, np.where(np.isfinite(tempered), tempered, np.nan), color=ROLES["muted"], linewidth=1.3)
        axes.plot(x, np.where(np.isfinite(after), after, np.nan), color=ROLES["accent"], marker="o", markersize=marker)
        axes.set(xlabel="step ahead")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

    def coverage(axes: Axes) -> None:
        axes.axhspan(lo, hi, color=ROLES["muted"], alpha=0.18, linewidth=0)
        axes.axhline(s.nominal, color=ROLES["ink"], linewidth=1)
        both(axes, s.coverage_before, s.coverage_tempered, s.coverage_after)
        seen = [*finite(s.coverage_before), *finite(s.coverage_after), lo, hi, s.nominal]
        pad = 0.1 * max(max(seen) - min(seen), 0.02)
        axes.set(ylim=(max(min(seen) - pad, 0), min(max(seen) + pad, 1)), ylabel="coverage")
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=f"{NBSP}%"))

    def width(axes: Axes) -> None:
        both(axes, s.width_before, s.width_tempered, s.width_after)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("mean width, units of y")

    level = pct(s.nominal, 0)
    after = finite(s.coverage_after)
    seen = f"from {pct(after.min())} to {pct(after.max())}" if len(after) else "not measured"
    first = f"Coverage of the {level} interval at each of {len(x)} steps: {seen} after calibration, nominal {level}."
    second = f"Mean width of the {level} interval by step: {_widths(data)}."
    middle = (Legend("line", "muted", "after temperature"),) if s.coverage_tempered is not None else ()
    repairs = (BEFORE_AFTER[0], *middle, Legend("line", "accent", "after all"))
    infinite = " Steps with infinite intervals are left out." if np.isinf(s.width_after).any() else ""
    return (
        Picture("Coverage by step", inline_svg("coverage", first, coverage),
                f"At each step {level} of values should lie inside; grey is the sampling band of the pooled coverage.",
                (*repairs, Legend("line", "ink", f"nominal {level}"))),
        Picture("Width by step", inline_svg("width", second, width),
                f"The price of coverage: lower is sharper, and a rise with the step is lost foresight.{infinite}", repairs),
    )  # fmt: skip


def _widths(data: ReportData) -> str:
    """Say how the mean width changed with calibration."""
    before, after = mean(data.steps.width_before), mean(data.steps.width_after)
    if not before > 0 or not np.isfinite(after):
        return "width not measured"
    change = after / before - 1
    if abs(change) < 5e-4:
        return f"the mean width stays at {format_metric('width', after)}"
    more = "wider" if change > 0 else "narrower"
    return f"{pct(abs(change))} {more} on average, {format_metric('width', before)} to {format_metric('width', after)}"


def sections(data: ReportData) -> tuple[Section, ...]:
    """Return the page's figures in reading order, each with its finding in words."""
    levels = sorted({level for fan in data.fans for level in fan.lo})
    opacity = np.cumsum(_opacity(len(levels)))[::-1]
    bands = (Legend("fill", "accent", f"{level}{NBSP}%", float(o)) for level, o in zip(levels, opacity, strict=True))
    fan_legend = (Legend("line", "muted", "history"), Legend("dot", "ink", "actual"),
                  Legend("line", "accent", "median"), *bands, Legend("dash", "brass", f"joint 90{NBSP}%"))  # fmt: skip
    fans = ("How to read: the dotted line is the cutoff, the last moment the model saw; each shaded band should hold "
            "its share of single values, the dashed band the whole path at once.")  # fmt: skip
    r, s = data.reliability, data.steps
    gap = _change(mean(np.abs(r.before - r.nominal)), mean(np.abs(r.after - r.nominal)))
    ks = _change(_ks(data.pit.before), _ks(data.pit.after))
    calibration = f"With calibration the mean distance from the diagonal {gap}; the PIT's from uniform {ks}."
    after = finite(s.coverage_after)
    lo, hi = data.coverage_band
    inside = int(((after >= lo) & (after <= hi)).sum())
    worst = pct(float(after[np.argmax(np.abs(after - s.nominal))])) if len(after) else "–"
    steps = (f"After calibration {inside} of {len(s.coverage_after)} steps lie inside the band; the step furthest from "
             f"{pct(s.nominal, 0)} covers {worst}. The price: {_widths(data)}.")  # fmt: skip
    return (
        Section("forecasts", "Forecasts against what happened", fans,
                tuple(_fan(fan, i) for i, fan in enumerate(data.fans)), fan_legend),
        Section("calibration", "Calibration", calibration, (_reliability(data), _pit(data))),
        Section("steps", "Coverage and width by step", steps, _steps(data)),
        Section("trust", "Unfamiliar input and abstention", trust.finding(data), trust.pictures(data),
                bars=trust.bars(data.ood), tables=trust.tables(data)),
        *_split(data),
        *_course(data),
        *_interpretation(data),
    )  # fmt: skip


def _split(data: ReportData) -> tuple[Section, ...]:
    """Return the section on aleatoric and epistemic variance, nothing where it was not measured."""
    if data.split is None:
        return ()
    return (Section("split", "What the uncertainty is made of", split_finding(data.split), split_pictures(data.split)),)


def _course(data: ReportData) -> tuple[Section, ...]:
    """Return the section on how the test fold went by in time, nothing where it was not measured."""
    if data.course is None:
        return ()
    return (Section("course", "Drift over the test fold", course_finding(data.course), course_pictures(data.course)),)


def _interpretation(data: ReportData) -> tuple[Section, ...]:
    """Return the section on TFT, a sentence where it is not among the families, nothing where it was not interpreted."""
    look, anchor, title = data.interpretation, "interpretation", "What TFT looks at"
    if look is not None:
        return (Section(anchor, title, finding(look), pictures(look)),)
    if "tft" in data.families:
        return ()
    absent = f"TFT is not among the families of this run ({', '.join(data.families)}), so there is nothing to interpret."
    return (Section(anchor, title, absent, ()),)
