"""The report's section on what TFT looks at: three figures and what they say in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.report import Interpretation, RegimeLook, format_percent
from tasks.report_svg import ROLES, Legend, Picture, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["finding", "pictures", "season_ratio"]

KINDS = {"encoder": ("accent", "the history"), "decoder": ("brass", "the horizon"), "static": ("muted", "the series")}
SHOWN = {"encoder": 5, "decoder": 4, "static": 2}  # variables of a kind in the figure
LONGEST_NAME = 16
SEASON_STANDS_OUT = 1.1  # times the attention of the lags beside it
REGIMES = {
    ("familiarity", "familiar"): "familiar input",
    ("familiarity", "unusual"): "unusual input",
    ("familiarity", "flagged"): "flagged as unfamiliar",
    ("spread", "calm"): "calm: small spread",
    ("spread", "ordinary"): "ordinary spread",
    ("spread", "extreme"): "extreme spread",
    ("holiday", "none ahead"): "no holiday ahead",
    ("holiday", "ahead"): "holiday ahead",
}


def season_ratio(look: Interpretation) -> float | None:
    """Return the mean attention at multiples of the season over that at the other lags within half a season of them.

    None where the context holds no season, or a season of one or two steps leaves nothing to compare with.
    """
    season = look.season_length
    if season < 3 or look.context < season:
        return None
    lags = np.arange(1, look.context + 1)
    last = look.context // season * season
    near = (lags >= season - season // 2) & (lags <= last + season // 2)
    at = lags % season == 0
    attention = np.asarray(look.attention, dtype=float)[: look.context]
    beside = float(attention[near & ~at].mean())
    return float(attention[at].mean()) / beside if beside > 0 else None


def finding(look: Interpretation) -> str:
    """Return what the three interpretations say: the heaviest inputs, the season, the regime that is read differently."""
    kinds = [kind for kind in KINDS if len(look.importances.get(kind, ())) > 1]
    first = [(kind, *look.importances[kind][0]) for kind in kinds]
    heaviest = [f"{name} ({format_percent(weight)}) among the inputs of {KINDS[kind][1]}" for kind, name, weight, _ in first]
    sentences = [f"TFT gives most weight to {' and to '.join(heaviest)}."] if heaviest else []
    ratio = season_ratio(look)
    if ratio is not None:
        season = f"lags that are multiples of the season ({look.season_length} steps)"
        verdict = "finds the season" if ratio >= SEASON_STANDS_OUT else "does not single out the season"
        sentences.append(f"Its attention {verdict}: {season} get {ratio:.2f} times the attention of those around them.")
    if look.regimes:
        sentences.append(_strangest(look))
    return " ".join(sentences)


def _strangest(look: Interpretation) -> str:
    """Name the regime whose attention lies furthest from the usual pattern, and what it weighs differently."""
    regime = max(look.regimes, key=lambda row: row.distance)
    more = "more" if regime.change > 0 else "less"
    over = f" of {KINDS[regime.kind][1]}" if regime.kind in KINDS else ""
    return (
        f"Attention lies furthest from its usual pattern in the regime '{_regime(regime)}' ({regime.distance:.2f} against "
        f"{look.distance:.2f} over all, {regime.windows:,} windows), where {regime.variable}{over} weighs "
        f"{100 * abs(regime.change):.1f} points {more}."
    )


def pictures(look: Interpretation) -> tuple[Picture, Picture, Picture]:
    """Return the figures: weights of variables, attention by lag, distance of each regime."""
    return _variables(look), _lags(look), _regimes(look)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _regime(regime: RegimeLook) -> str:
    return REGIMES.get((regime.split, regime.name), f"{regime.split}: {regime.name}")


def _variables(look: Interpretation) -> Picture:
    """Draw the heaviest variables of each kind that has a choice, with the spread between members."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    kinds = [kind for kind in KINDS if len(look.importances.get(kind, ())) > 1]
    rows = [(kind, *entry) for kind in kinds for entry in look.importances[kind][: SHOWN[kind]]][::-1]

    def draw(axes: Axes) -> None:
        for place, (kind, _, weight, spread) in enumerate(rows):
            axes.barh(place, weight, 0.68, color=ROLES[KINDS[kind][0]], alpha=0.6)
            axes.plot([max(weight - spread, 0), weight + spread], [place, place], color=ROLES["ink"], linewidth=1)
        axes.set_yticks(range(len(rows)), [_short(name) for _, name, _, _ in rows])
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("mean weight among the variables of its kind")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u00a0%"))

    listed = ", ".join(f"{name} {format_percent(weight)}" for _, name, weight, _ in rows[::-1])
    caption = (f"How to read: a bar is the weight that a variable gets on average, and a line as long as its bar (one standard "
               f"deviation between the {look.members} members) means that they do not agree on it.")  # fmt: skip
    legend = tuple(Legend("fill", KINDS[kind][0], f"inputs of {KINDS[kind][1]}", 0.6) for kind in kinds)
    return Picture("Variables", inline_svg("variables", f"Weights of variables: {listed}.", draw), caption, legend)


def _lags(look: Interpretation) -> Picture:
    """Draw attention by lag up to the context, with the season's multiples."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    reach = min(look.context, len(look.attention))
    lags, season = np.arange(1, reach + 1), look.season_length
    marks = np.arange(season, reach + 1, season) if season > 1 else np.empty(0, dtype=int)
    sides = (look.attention_low, look.attention_high, look.attention)
    low, high, mean = (np.asarray(side, dtype=float)[:reach] for side in sides)

    def draw(axes: Axes) -> None:
        for mark in marks[:60]:
            axes.axvline(mark, color=ROLES["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
        axes.fill_between(lags, low, high, facecolor=ROLES["accent"], alpha=0.22, edgecolor="none")
        axes.plot(lags, mean, color=ROLES["accent"], marker="o" if reach == 1 else None)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="lag: steps before the one that is forecast", ylabel="share of attention")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol="\u00a0%"))

    strongest = ", ".join(str(lag) for lag in np.sort(lags[np.argsort(-mean, kind="stable")[:5]]))
    label = f"Attention by lag up to {reach} steps; the lags read most are {strongest}."
    caption = ("How to read: peaks on the dotted lines (multiples of the season) are seasonality that attention reads from the "
               "past itself, while a level curve leaves it to lagged and calendar inputs.")  # fmt: skip
    legend = (Legend("line", "accent", "mean"), Legend("fill", "accent", "80\u00a0% of windows", 0.22))
    return Picture("Attention by lag", inline_svg("lags", label, draw), caption, legend)


def _regimes(look: Interpretation) -> Picture:
    """Draw how far the attention of each regime's windows lies from the usual pattern."""
    from matplotlib.ticker import MaxNLocator

    rows = look.regimes[::-1]

    def draw(axes: Axes) -> None:
        names = [f"{_regime(row)} ({row.windows:,})" for row in rows]
        axes.hlines(range(len(rows)), look.distance, [row.distance for row in rows], color=ROLES["accent"], linewidth=1.8)
        axes.plot([row.distance for row in rows], range(len(rows)), "o", color=ROLES["accent"], markersize=5)
        axes.axvline(look.distance, color=ROLES["ink"], linewidth=1)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("distance of attention (0 to 1)", loc="right")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))

    listed = ", ".join(f"{_regime(row)} {row.distance:.3f}" for row in look.regimes)
    label = f"Distance of attention from the usual pattern: {look.distance:.3f} over all windows; {listed}."
    caption = ("How to read: right of the line (all windows) TFT looks elsewhere than usual, so expect its forecasts of such "
               "windows (number in brackets) to rest on other evidence.")  # fmt: skip
    legend = (Legend("dot", "accent", "windows of the regime"), Legend("line", "ink", "all windows"))
    return Picture("Regimes", inline_svg("regimes", label, draw), caption, legend)
