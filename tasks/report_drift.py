"""The drift page: what the monitor found, in the look of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.monitor import Outcome, day, headline
from tasks.monitor_figures import SHARES, WORDS, Figure
from tasks.reference import LEVEL
from tasks.report import MISSING, NBSP, FloatArray, format_metric, page_environment
from tasks.report_plots import Section, time_axis
from tasks.report_svg import ROLES, Legend, Picture, dashed, inline_svg, pct
from tasks.report_trust import Table
from tasks.report_words import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 60  # series and columns in a table, those with alarms first; figures.parquet has them all
TITLES = {
    f"coverage_{LEVEL}": f"Coverage, {LEVEL}{NBSP}%",
    "crps": "CRPS",
    f"width_{LEVEL}": f"Width, {LEVEL}{NBSP}%",
    "pit_ks": "PIT distance",
    "ood_rate": "Flagged as strange",
    "psi": "Population (PSI)",
    "range": "Out of range",
}


def render_drift(outcome: Outcome) -> str:
    """The page as HTML that loads nothing from elsewhere; the same outcome gives the same bytes."""
    summary = outcome.summary
    told = [figure.sentence for figure in outcome.alarms]
    facts = {
        "Champion": f"{summary['model']} version {summary['version']}",
        "Its training fold ended": day(summary["champion"]["trained_until"]),
        "Its data ended": day(summary["champion"]["until"]),
        "The data now ends": day(summary["data"]["until"]),
        "Data, MD5": summary["data"]["md5"],
        "Bundle": summary["champion"]["bundle"],
    }
    return (
        page_environment()
        .get_template("drift.html.j2")
        .render(
            title=f"{summary['model']}: drift since {day(summary['champion']['until'])}",
            created=f"data up to {day(summary['data']['until'])}",
            headline=_headline(outcome),
            sentences=[f"{headline(outcome)}.", *told[:3], *([f"and {len(told) - 3} more, below."] if len(told) > 3 else [])],
            checks=_checks(outcome),
            sections=_sections(outcome) if outcome.live is not None else (),
            alarms=told,
            notes=summary["notes"],
            facts=facts,
            thresholds=_thresholds(summary),
        )
    )


def _thresholds(summary: Mapping[str, Any]) -> dict[str, str]:
    """What params.yaml sets, as text; ``window`` with the steps that are judged."""
    steps, given = summary["judged"]["steps"], summary["thresholds"]["window"]
    newest = f"{steps} steps" if given is not None else f"null: {steps} steps, the champion's test fold"
    return {key: str(value) for key, value in summary["thresholds"].items()} | {"window": newest}


def _headline(outcome: Outcome) -> str:
    if not outcome.found:
        return "Nothing to judge yet"
    names = list(dict.fromkeys(TITLES[figure.metric] for figure in outcome.alarms))
    return f"{len(outcome.alarms)} alarm{'s' if len(outcome.alarms) > 1 else ''}: {', '.join(names)}" if names else "Calm"


def _shown(metric: str, value: float) -> str:
    if not np.isfinite(value):
        return MISSING
    return pct(value) if metric in SHARES else format_metric(metric, value)


def _checks(outcome: Outcome) -> list[Check]:
    """A tile for each figure of all series, and one for what live intervals cover, which raises no alarm."""
    whole = [figure for figure in outcome.found if figure.kind == "all"]
    tiles = [_check(figure) for figure in whole]
    adaptive = outcome.summary["live_intervals"]["coverage"]
    for figure in whole:
        if figure.metric == f"coverage_{LEVEL}" and adaptive is not None:
            tile = _check(replace(figure, value=adaptive))
            tiles.append(replace(tile, title="Live intervals cover", target=f"{tile.target}, no alarm"))
    return tiles


def _check(figure: Figure) -> Check:
    side = "at least" if figure.metric.startswith("coverage") else "at most"
    known = np.isfinite(figure.threshold) and np.isfinite(figure.value)
    state = ("misses" if figure.alarm else "holds") if known else "unknown"
    target = f"{side} {_shown(figure.metric, figure.threshold)}, was {_shown(figure.metric, figure.reference)}"
    return Check(
        TITLES[figure.metric], _shown(figure.metric, figure.value), target if known else "too little to judge by", state
    )


def _sections(outcome: Outcome) -> tuple[Section, ...]:
    rows, figures = outcome.summary["timeline"], {each.metric: each for each in outcome.found if each.kind == "all"}
    adaptive = outcome.summary["live_intervals"]
    coverage = figures[f"coverage_{LEVEL}"]
    where = f"each of {len(rows)} cutoffs" if len(rows) > 1 else "the one cutoff that is whole"
    return (
        Section(
            "time",
            "Cutoff by cutoff",
            f"All series together at {where}. The champion's intervals cover {pct(coverage.value)} of the "
            f"values since its data ended, its live ones, which adapt to what they missed ({adaptive['method']}), "
            f"{_shown(coverage.metric, adaptive['coverage'] if adaptive['coverage'] is not None else np.nan)}.",
            (
                _line(rows, f"coverage_{LEVEL}", coverage, f"coverage_{LEVEL}_live"),
                _line(rows, "crps", figures["crps"]),
                _line(rows, f"width_{LEVEL}", figures[f"width_{LEVEL}"]),
                _line(rows, "ood_rate", figures["ood_rate"]),
                _pit(outcome, figures["pit_ks"]),
            ),
        ),
        Section(
            "groups",
            "Series and covariates",
            "Each cell is the live figure; ▲ marks an alarm. What is usual for a series, and from where it alarms, is in "
            "artifacts/monitor/figures.parquet.",
            (),
            tables=_tables(outcome),
        ),
    )


def _line(rows: Sequence[dict[str, Any]], metric: str, figure: Figure, live: str | None = None) -> Picture:
    """A figure of all series at each cutoff, beside the champion's own and the threshold of its mean."""
    times = _times([row["cutoff"] for row in rows])
    marker = 3.2 if len(rows) <= 40 else 0

    def values(name: str) -> FloatArray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)

    def draw(axes: Axes) -> None:
        axes.plot(times, values(metric), color=ROLES["accent"], marker="o", markersize=marker)
        if live is not None:
            dashed(axes, times, values(live), marker="o", markersize=marker)
        axes.axhline(figure.reference, color=ROLES["ink"], linewidth=1)
        if np.isfinite(figure.threshold):
            axes.axhline(figure.threshold, color=ROLES["muted"], linewidth=1, linestyle=(0, (1, 2)))
        axes.set(xlabel="cutoff")
        time_axis(axes, times)
        if metric in SHARES:
            from matplotlib.ticker import PercentFormatter

            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=f"{NBSP}%"))
        else:
            axes.set_ylim(bottom=0)

    mean = f"mean {_shown(metric, figure.value)}, was {_shown(metric, figure.reference)}"
    label = f"{TITLES[metric]} of all series at {len(rows)} cutoffs: {mean}."
    second = (Legend("dash", "brass", "live intervals"),) if live is not None else ()
    legend = (Legend("line", "accent", "champion"), *second, Legend("line", "ink", "reference"))
    caption = f"{mean[:1].upper() + mean[1:]}; the dotted line is where the mean alarms, {_shown(metric, figure.threshold)}."
    return Picture(TITLES[metric], inline_svg(f"drift-{metric}", label, draw), caption, legend)


def _pit(outcome: Outcome, figure: Figure) -> Picture:
    """Transforms since the champion's data ended, and those of its test fold."""
    assert outcome.live is not None
    edges = np.linspace(0, 1, 11)
    now, before = (
        np.histogram(part.pit.numpy().ravel(), edges, density=True)[0] if len(part) else np.ones(10)
        for part in (outcome.live, outcome.past)
    )

    def draw(axes: Axes) -> None:
        axes.stairs(now, edges, fill=True, color=ROLES["accent"], alpha=0.45)
        axes.stairs(before, edges, color=ROLES["brass"], linewidth=1.5, linestyle=(0, (4, 2)), baseline=None)
        axes.axhline(1, color=ROLES["ink"], linewidth=1)
        axes.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="density")
        axes.set_ylim(0, 1.1 * max(1.0, float(now.max()), float(before.max())))

    distance, usual, limit = (_shown("pit_ks", each) for each in (figure.value, figure.reference, figure.threshold))
    label = f"Histogram of probability integral transforms: {distance} from uniform, {usual} on the test fold."
    legend = (Legend("fill", "accent", "live", 0.45), Legend("dash", "brass", "test fold"), Legend("line", "ink", "calibrated"))
    caption = (
        f"Flat at 1 is calibrated; a U shape is too narrow, a hump too wide, a slope biased. {distance} from uniform, was "
        f"{usual}; it alarms above {limit}."
    )
    return Picture("PIT histogram", inline_svg("drift-pit", label, draw), caption, legend)


def _tables(outcome: Outcome) -> tuple[Table, ...]:
    captions = {"series": "By series", "column": "Covariates against the training fold"}
    tables = []
    for kind, caption in captions.items():
        groups: dict[str, dict[str, Figure]] = {}
        for figure in outcome.found:
            if figure.kind == kind:
                groups.setdefault(figure.group, {})[figure.metric] = figure
        metrics = [metric for metric in WORDS if any(metric in row for row in groups.values())]
        ordered = sorted(groups.items(), key=lambda item: -sum(figure.alarm for figure in item[1].values()))
        cells = [
            (name, *(_cell(row[metric]) if metric in row else MISSING for metric in metrics))
            for name, row in ordered[:MOST_ROWS]
        ]
        if cells:
            more = f" The first {MOST_ROWS} of {len(groups)}." if len(groups) > MOST_ROWS else ""
            note = f"Those with most alarms first.{more}"
            tables.append(Table(caption, ("", *(TITLES[metric] for metric in metrics)), tuple(cells), note))
    return tuple(tables)


def _cell(figure: Figure) -> str:
    return f"{'▲ ' if figure.alarm else ''}{_shown(figure.metric, figure.value)}"


def _times(cutoffs: Sequence[Any]) -> Any:
    return np.array(cutoffs, dtype="datetime64[s]") if cutoffs and isinstance(cutoffs[0], str) else np.array(cutoffs)
