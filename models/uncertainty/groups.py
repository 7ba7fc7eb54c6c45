"""Claims finer or wider than the fold's average: conformal sets for each group, and for series never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.conformal import conformal_quantile, conformal_rank
from models.uncertainty.conformal_scores import (
    Bounds,
    StepIntervals,
    checked_scores,
    from_plain,
    interval_score,
    nested_interval,
    to_plain,
)

Fallback = Literal["infinite", "marginal"]
Choice = Literal["random", "worst"]


@dataclass(frozen=True)
class GroupRecord:
    """What the guarantee card says of one group.

    ``finite`` is about the sets that are issued. ``promise`` is ``group`` where they cover the group itself at the level
    (an infinite set does so trivially), and ``marginal`` where the radius is that of all groups together, which promises
    nothing for this one.
    """

    group: str
    n: int
    rank: int
    finite: bool
    promise: Literal["group", "marginal"]


@dataclass(frozen=True)
class MondrianConformal:
    """One conformal radius ``(...)`` a group, each ranked among the group's own scores (Vovk et al., 2005).

    A group that was not seen, or has too few scores for a finite set, gets the whole line or, with ``fallback``
    ``marginal``, the radius of all scores together.
    """

    level: float
    fallback: Fallback
    count: dict[str, int]
    radius: dict[str, Tensor]
    marginal: Tensor

    @classmethod
    def fit(cls, scores: Tensor, groups: Sequence[str], level: float, fallback: Fallback = "infinite") -> MondrianConformal:
        """Fit on scores ``(n, ...)`` and the group of each.

        Raises
        ------
        ValueError
            If there are not as many groups as scores, a score is missing, or ``fallback`` does not exist.
        """
        if fallback not in ("infinite", "marginal"):
            raise ValueError(f"'{fallback}' is not a fallback for small groups; there are infinite and marginal")
        codes, names = _codes(scores, groups, "group")
        count = {name: int((codes == code).sum()) for code, name in enumerate(names)}
        own = {
            name: conformal_quantile(scores[codes == code], level)
            for code, name in enumerate(names)
            if conformal_rank(count[name], level) <= count[name]
        }
        return cls(level, fallback, count, own, conformal_quantile(scores, level))

    def radius_of(self, groups: Sequence[str]) -> Tensor:
        """Radius of each of m windows by its group, ``(m, ...)``."""
        other = self.marginal if self.fallback == "marginal" else torch.full_like(self.marginal, math.inf)
        if not len(groups):
            return other.new_zeros((0, *other.shape))
        return torch.stack([self.radius.get(group, other) for group in groups])

    def record(self, group: str) -> GroupRecord:
        """n, rank and promise of one group; a group unseen in calibration has n = 0."""
        n = self.count.get(group, 0)
        own = group in self.radius
        finite = bool(self.radius_of([group]).isfinite().all())
        return GroupRecord(group, n, conformal_rank(n, self.level), finite, "group" if own or not finite else "marginal")

    def records(self, groups: Sequence[str] = ()) -> list[GroupRecord]:
        """Records of all calibrated groups and of those of ``groups`` that are not among them, in order of name."""
        return [self.record(group) for group in sorted({*self.count, *groups})]

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        radius = {group: to_plain(values) for group, values in self.radius.items()}
        own = {"level": self.level, "fallback": self.fallback, "count": dict(self.count)}
        return {**own, "radius": radius, "marginal": to_plain(self.marginal)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MondrianConformal:
        radius = {group: from_plain(values) for group, values in state["radius"].items()}
        return cls(state["level"], state["fallback"], dict(state["count"]), radius, from_plain(state["marginal"]))


@dataclass(frozen=True)
class GroupIntervals:
    """Intervals that cover each step within each group, for any score: per level in percent the groups' radii."""

    name: str
    table: dict[int, MondrianConformal]

    @classmethod
    def fit(
        cls,
        name: str,
        predictive: Predictive,
        target: Tensor,
        groups: Sequence[str],
        levels: tuple[int, ...] = (80, 90, 95),
        fallback: Fallback = "infinite",
    ) -> GroupIntervals:
        """Fit score ``name`` on the conformal fold ``(n, H)``, whose windows belong to ``groups`` (n)."""
        score, table = interval_score(name), {}
        for level in levels:
            scores = checked_scores(score, predictive, target, level / 100)
            table[level] = MondrianConformal.fit(scores, groups, score.side_level(level / 100), fallback)
        return cls(name, table)

    def interval(self, predictive: Predictive, groups: Sequence[str], level: int) -> Bounds:
        """Lower and upper bounds ``(m, H)`` at ``level`` percent of m windows of ``groups``."""
        radius = {each: table.radius_of(groups) for each, table in self.table.items()}
        return nested_interval(interval_score(self.name), predictive, radius, level)

    def record(self, level: int, groups: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Rows of the guarantee card at ``level`` percent, ``groups`` that calibration has not seen included."""
        return [asdict(record) for record in self.table[level].records(groups)]

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {"name": self.name, "table": {str(level): table.state() for level, table in self.table.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GroupIntervals:
        return cls(state["name"], {int(key): MondrianConformal.from_state(one) for key, one in state["table"].items()})


def one_score_per_series(scores: Tensor, series: Sequence[str], choice: Choice = "random", seed: int = 0) -> Tensor:
    """One score for each series, ``(S, ...)`` in order of name, from those of all windows ``(n, ...)``.

    Windows of one series resemble one another, so only series are exchangeable with a new one. ``random`` keeps a window
    of each, drawn with ``seed``, and the sets then cover a random window of a new series; ``worst`` keeps the largest
    score of each step, and they cover at that step all windows of a new series at once (Dunn et al., 2023).

    Raises
    ------
    ValueError
        If there are not as many series as scores, a score is missing, or ``choice`` does not exist.
    """
    if choice not in ("random", "worst"):
        raise ValueError(f"'{choice}' is not a way to choose a series' score; there are random and worst")
    codes, names = _codes(scores, series, "series")
    draws = torch.rand(len(names), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept = []
    for code in range(len(names)):
        own = scores[codes == code]
        kept.append(own.amax(0) if choice == "worst" else own[int(draws[code] * len(own))])
    return torch.stack(kept) if kept else scores


def new_series_intervals(
    name: str,
    predictive: Predictive,
    target: Tensor,
    series: Sequence[str],
    levels: tuple[int, ...] = (80, 90, 95),
    choice: Choice = "random",
    seed: int = 0,
) -> StepIntervals:
    """Intervals whose coverage holds for a series never seen; arguments as in :func:`one_score_per_series`."""
    score = interval_score(name)
    scores = {level: checked_scores(score, predictive, target, level / 100) for level in levels}
    reduced = {level: one_score_per_series(each, series, choice, seed) for level, each in scores.items()}
    return StepIntervals.from_scores(name, reduced, unit=f"series, {choice} window")


def _codes(scores: Tensor, labels: Sequence[str], what: str) -> tuple[Tensor, list[str]]:
    """Index of each label ``(n,)`` among the sorted names, and these."""
    if len(labels) != len(scores):
        raise ValueError(f"there are {len(scores)} scores and {len(labels)} {what} names; each score needs one")
    if scores.isnan().any():
        raise ValueError(f"score {int(scores.isnan().nonzero()[0, 0])} is missing; leave windows without a truth out")
    names = sorted(set(labels))
    place = {name: code for code, name in enumerate(names)}
    return torch.tensor([place[label] for label in labels], dtype=torch.long), names
