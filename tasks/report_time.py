"""The report's sections on what uncertainty is made of, step by step, and on how the test fold went by in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.report import Course, Split, format_metric
from tasks.report_svg import ROLES, Legend, Picture, inline_svg, pct, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["course_finding", "course_pictures", "split_finding", "split_pictures"]


def split_finding(split: Split) -> str:
    """How much of the predictive variance is disagreement between members, at the first step and the last."""
    first, last = (pct(float(share)) for share in split.share[[0, -1]])
    return (
        f"Members' disagreement (epistemic, what more data or other models could settle) is {first} of the predictive variance "
        f"at the first step and {last} at the last; the rest (aleatoric) is noise that each member expects by itself. What all "
        "members get wrong alike is in neither."
    )


def split_pictures(split: Split) -> tuple[Picture, ...]:
    """Both parts of the variance by step, one on the other."""
    steps = np.arange(1, len(split.aleatoric) + 1)
    total = split.aleatoric + split.epistemic

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        if len(steps) == 1:
            axes.bar(steps, split.aleatoric, color=ROLES["accent"], alpha=0.45)
            axes.bar(steps, split.epistemic, bottom=split.aleatoric, color=ROLES["brass"], alpha=0.6)
        else:
            axes.fill_between(steps, 0, split.aleatoric, facecolor=ROLES["accent"], alpha=0.45, edgecolor="none")
            axes.fill_between(steps, split.aleatoric, total, facecolor=ROLES["brass"], alpha=0.6, edgecolor="none")
        axes.set(xlabel="step ahead", ylabel="variance, in windows' own")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

    label = f"Variance by step ahead, aleatoric and epistemic: {split_finding(split)}"
    legend = (Legend("fill", "accent", "aleatoric", 0.45), Legend("fill", "brass", "epistemic", 0.6))
    caption = "Mean over test windows, each in units of the variance of its own history; the top edge is the whole."

    def share(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        axes.plot(steps, split.share, color=ROLES["brass"], marker="o", markersize=3.2 if len(steps) <= 31 else 0)
        axes.set(xlabel="step ahead", ylabel="epistemic share")
        axes.set_ylim(0, max(0.05, 1.15 * float(split.share.max())))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u00a0%"))

    shares = f"Epistemic share of the variance by step, {pct(float(split.share.min()))} to {pct(float(split.share.max()))}."
    return (
        Picture("Variance by step", inline_svg("split", label, draw), caption, legend),
        Picture("Share of disagreement", inline_svg("split-share", shares, share),
                "Where it is large, more data or better models would help; where it is small, little but better inputs would.",
                legend[1:]),
    )  # fmt: skip


def course_finding(course: Course) -> str:
    """Where coverage was lowest and CRPS highest, and whether the second half is worse than the first."""
    low, high = int(np.argmin(course.coverage)), int(np.argmax(course.crps))
    half = len(course.crps) // 2
    sentences = [
        f"Over {len(course.times)} cutoffs coverage of the 90 % intervals is lowest after {course.times[low]} "
        f"({pct(float(course.coverage[low]))}) and CRPS highest after {course.times[high]} "
        f"({format_metric('crps', float(course.crps[high]))})."
    ]
    if half:
        early, late = (float(part.mean()) for part in (course.crps[:half], course.crps[half:]))
        more = f"{pct(abs(late / early - 1))} {'higher' if late > early else 'lower'}" if early > 0 else "not comparable"
        sentences.append(
            f"In the second half CRPS is {more} than in the first. What has come since the data ended is on the drift page of "
            "weatherglass monitor (reports/drift.html)."
        )
    return " ".join(sentences)


def course_pictures(course: Course) -> tuple[Picture, ...]:
    """Coverage and CRPS of all series at each cutoff."""
    place = np.arange(len(course.times))
    marks = thin(len(place), 3)

    def axis(axes: Axes) -> None:
        axes.set_xticks(place[marks], [str(course.times[i]) for i in marks])
        for tick, align in zip(axes.get_xticklabels(), ["left", *["center"] * (len(marks) - 2), "right"], strict=False):
            tick.set(horizontalalignment=align if len(marks) > 1 else "center")

    def coverage(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        axes.axhline(0.9, color=ROLES["ink"], linewidth=1)
        axes.plot(place, course.coverage, color=ROLES["accent"], marker="o", markersize=3.2 if len(place) <= 40 else 0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol="\u00a0%"))
        axis(axes)

    def crps(axes: Axes) -> None:
        axes.plot(place, course.crps, color=ROLES["accent"], marker="o", markersize=3.2 if len(place) <= 40 else 0)
        axes.set_ylim(bottom=0)
        axis(axes)

    told = course_finding(course)
    nominal = (Legend("line", "accent", "ensemble"), Legend("line", "ink", "nominal 90\u00a0%"))
    return (
        Picture("Coverage over time", inline_svg("course-coverage", f"Coverage by cutoff. {told}", coverage),
                "All series at each cutoff; a fall towards the end is drift.", nominal),
        Picture("CRPS over time", inline_svg("course-crps", f"CRPS by cutoff. {told}", crps),
                "Mean over series and steps, in units of y; lower is better.", nominal[:1]),
    )  # fmt: skip
