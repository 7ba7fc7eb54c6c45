"""Conformal scores by name, the per-step intervals they give, and Bonferroni's joint band.

A score says how badly a truth fits its forecast; the set of values whose score is at most a calibrated radius is an
interval. All scores share one interface, so that intervals, groups and live trackers are written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.conformal import conformal_quantile, conformal_rank, tail_score

Bounds = tuple[Tensor, Tensor]
TAIL_CAP = 690.0  # tails of probability below 1e-300 are not told apart


@dataclass(frozen=True)
class IntervalScore:
    """A conformity score and the intervals it gives; ``level`` is the nominal coverage, a fraction.

    Attributes
    ----------
    sides : int
        1, or 2 where the lower and the upper bound are calibrated apart, each at half the miss rate.
    score : callable
        ``(predictive (n, ...), target (n, ...), level) -> (n, ..., sides)``.
    bounds : callable
        ``(predictive (..., H), radius (..., H, sides), level) -> (lower, upper)``, for radii that are not minus infinity.
    least : float
        The smallest value that the score can have: a smaller radius leaves the empty set.
    """

    name: str
    sides: int
    score: Callable[[Predictive, Tensor, float], Tensor]
    bounds: Callable[[Predictive, Tensor, float], Bounds]
    least: float

    def side_level(self, level: float) -> float:
        """Level at which each side is calibrated, so that both together hold ``level``."""
        return 1 - (1 - level) / self.sides

    def interval(self, predictive: Predictive, radius: Tensor, level: float) -> Bounds:
        """Bounds ``(..., H)`` of the values whose score is at most ``radius`` ``(..., H, sides)``.

        An infinite radius gives the whole line; lower above upper is the empty set. Bounds lie a rounding error further
        out, so that a value whose score equals the radius is inside.
        """
        empty = (radius < self.least).any(-1) | (radius == -math.inf).any(-1)
        lower, upper = self.bounds(predictive, torch.where(radius == -math.inf, 0.0, radius.to(torch.float64)), level)
        empty, lower, upper = torch.broadcast_tensors(empty, lower, upper)
        slack = 1e-9 * _finite(upper - lower).clamp(min=0.0) + 1e-12 * torch.maximum(_finite(lower).abs(), _finite(upper).abs())
        slack = torch.where(lower <= upper, slack, 0.0)
        return torch.where(empty, math.inf, lower - slack), torch.where(empty, -math.inf, upper + slack)


def _finite(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, 0.0)


def _tail_score(predictive: Predictive, target: Tensor, level: float) -> Tensor:
    """The tail score, infinite where :func:`tail_score` has reached its cap: there nothing tells how far out truths lie."""
    scores = tail_score(predictive, target)[..., None]
    return torch.where(scores > TAIL_CAP, math.inf, scores)


def _tail_bounds(predictive: Predictive, radius: Tensor, level: float) -> Bounds:
    tail = 0.5 * torch.exp(-radius[..., 0].clamp(min=0.0))
    return predictive.tail_quantile(tail, upper=False), predictive.tail_quantile(tail, upper=True)


def _centre_and_deviation(predictive: Predictive) -> tuple[Tensor, Tensor]:
    """Median and standard deviation, ``(...)`` each, the latter floored above zero."""
    centre = predictive.median
    return centre, torch.maximum(predictive.variance.sqrt(), 1e-9 * centre.abs().clamp(min=1e-6))


def _scaled_residual(predictive: Predictive, target: Tensor, level: float) -> Tensor:
    centre, deviation = _centre_and_deviation(predictive)
    return ((target.to(torch.float64) - centre).abs() / deviation)[..., None]


def _scaled_bounds(predictive: Predictive, radius: Tensor, level: float) -> Bounds:
    centre, deviation = _centre_and_deviation(predictive)
    return centre - radius[..., 0] * deviation, centre + radius[..., 0] * deviation


def _central_quantiles(predictive: Predictive, level: float) -> Bounds:
    tail = torch.tensor((1 - level) / 2, dtype=torch.float64)
    return predictive.tail_quantile(tail, upper=False), predictive.tail_quantile(tail, upper=True)


def _outside(predictive: Predictive, target: Tensor, level: float) -> Tensor:
    """How far below the lower and above the upper nominal quantile the truth lies, ``(..., 2)``; negative inside."""
    lower, upper = _central_quantiles(predictive, level)
    target = target.to(torch.float64)
    return torch.stack([lower - target, target - upper], dim=-1)


def _moved_quantiles(predictive: Predictive, radius: Tensor, level: float) -> Bounds:
    lower, upper = _central_quantiles(predictive, level)
    return lower - radius[..., 0], upper + radius[..., -1]


#: ``tail``: distributional conformal prediction (Chernozhukov et al., 2021). ``cqr`` and ``cqr_asymmetric``: conformalised
#: quantile regression, ``max(lo - y, y - hi)`` and each side apart (Romano et al., 2019, eq. 6 and theorem 2).
#: ``scaled_residual``: ``|y - median| / standard deviation`` (Lei et al., 2018, sec. 5.2).
SCORES: dict[str, IntervalScore] = {
    score.name: score
    for score in (
        IntervalScore("tail", 1, _tail_score, _tail_bounds, 0.0),
        IntervalScore("cqr", 1, lambda *given: _outside(*given).amax(-1, keepdim=True), _moved_quantiles, -math.inf),
        IntervalScore("cqr_asymmetric", 2, _outside, _moved_quantiles, -math.inf),
        IntervalScore("scaled_residual", 1, _scaled_residual, _scaled_bounds, 0.0),
    )
}


def interval_score(name: str) -> IntervalScore:
    """The score called ``name``; ``ValueError`` names those that exist."""
    if name not in SCORES:
        raise ValueError(f"'{name}' is not a conformal score; there are {', '.join(SCORES)}")
    return SCORES[name]


def checked_scores(score: IntervalScore, predictive: Predictive, target: Tensor, level: float) -> Tensor:
    """Scores ``(n, H, sides)`` of the conformal fold ``(n, H)``.

    Raises
    ------
    ValueError
        Where a truth or a forecast is missing, naming the first; a missing truth is no evidence of a covered one.
    """
    for what, missing in (("truth", target.isnan()), ("forecast", predictive.each(lambda part: part.values.isnan().any(-1)))):
        if missing.any():
            window, step = missing.nonzero()[0, :2].tolist()
            raise ValueError(
                f"the conformal fold has {int(missing.sum())} missing {what} values, the first in window {window} at step "
                f"{step + 1}; leave such windows out"
            )
    return score.score(predictive, target, level)


@dataclass(frozen=True)
class StepIntervals:
    """Intervals that cover each step, for any score: per level in percent a radius ``(H, sides)``.

    ``n`` scores were ranked, one a ``unit`` (what is exchangeable: windows or series). ``constant`` are the steps
    (from 1) whose scores are all equal: such a fold holds no information on how far errors reach.
    """

    name: str
    n: int
    radius: dict[int, Tensor]
    constant: tuple[int, ...] = ()
    unit: str = "window"

    @classmethod
    def fit(cls, name: str, predictive: Predictive, target: Tensor, levels: tuple[int, ...] = (80, 90, 95)) -> StepIntervals:
        """Fit score ``name`` on the conformal fold's distributions and truths ``(n, H)``; ``levels`` in percent."""
        score = interval_score(name)
        return cls.from_scores(name, {level: checked_scores(score, predictive, target, level / 100) for level in levels})

    @classmethod
    def from_scores(cls, name: str, scores: Mapping[int, Tensor], unit: str = "window") -> StepIntervals:
        """Fit on scores ``(n, H, sides)`` for each level in percent."""
        score = interval_score(name)
        radius = {level: conformal_quantile(values, score.side_level(level / 100)) for level, values in sorted(scores.items())}
        values = next(iter(scores.values()))
        constant = (values == values[:1]).all(0).any(-1) if len(values) else torch.ones(values.shape[1], dtype=torch.bool)
        return cls(name, len(values), radius, tuple((constant.nonzero()[:, 0] + 1).tolist()), unit)

    def interval(self, predictive: Predictive, level: int) -> Bounds:
        """Lower and upper bounds ``(..., H)`` at ``level`` percent, nested over the fitted levels."""
        return nested_interval(interval_score(self.name), predictive, self.radius, level)

    def record(self, level: int) -> dict[str, Any]:
        """What the guarantee card says of ``level``: unit, n, rank, whether the sets are finite, constant steps."""
        rank = conformal_rank(self.n, interval_score(self.name).side_level(level / 100))
        finite = bool(self.radius[level].isfinite().all())
        return {"unit": self.unit, "n": self.n, "rank": rank, "finite": finite, "constant_steps": list(self.constant)}

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        radius = {str(level): to_plain(values) for level, values in self.radius.items()}
        return {"name": self.name, "n": self.n, "radius": radius, "constant": list(self.constant), "unit": self.unit}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StepIntervals:
        radius = {int(level): from_plain(values) for level, values in state["radius"].items()}
        return cls(state["name"], int(state["n"]), radius, tuple(state["constant"]), state["unit"])


def nested_interval(score: IntervalScore, predictive: Predictive, radius: Mapping[int, Tensor], level: int) -> Bounds:
    """Interval ``(..., H)`` at ``level`` percent that contains those of all lower levels in ``radius``.

    Where a calibrated set is empty (CQR with a negative radius) it is the median alone. Both only add coverage.
    """
    if level not in radius:
        raise ValueError(f"no interval of {level} % was calibrated; there are {', '.join(map(str, sorted(radius)))}")
    levels = [each for each in sorted(radius) if each <= level]
    radii = [radius[each] for each in levels]

    def nested(part: Predictive, *of_level: Tensor) -> Bounds:
        lower, upper = torch.full_like(part.median, math.inf), torch.full_like(part.median, -math.inf)
        for inner, reach in zip(levels, of_level, strict=True):
            low, high = score.interval(part, reach, inner / 100)
            empty = low > high
            lower = torch.minimum(lower, torch.where(empty, part.median, low))
            upper = torch.maximum(upper, torch.where(empty, part.median, high))
        return lower, upper

    shared = radii[0].dim() < 3  # (H, sides), not one for each window
    bounds: Bounds = predictive.each(lambda part: nested(part, *radii)) if shared else predictive.each(nested, *radii)
    return bounds


@dataclass(frozen=True)
class BonferroniBand:
    """A band that holds the whole path by the union bound: each of H steps at ``1 - (1 - level) / H``.

    Valid, and wider than :class:`models.uncertainty.conformal.JointConformal` where the steps' errors go together.
    """

    name: str
    level: float
    n: int
    radius: Tensor

    @classmethod
    def fit(cls, name: str, predictive: Predictive, target: Tensor, level: float = 0.9) -> BonferroniBand:
        """Fit score ``name`` on the conformal fold ``(n, H)``; infinite where the steps' level asks for more scores."""
        score, step_level = interval_score(name), cls.step_level(level, target.shape[-1])
        scores = checked_scores(score, predictive, target, step_level)
        return cls(name, level, len(scores), conformal_quantile(scores, score.side_level(step_level)))

    @staticmethod
    def step_level(level: float, horizon: int) -> float:
        """Level of each step's interval."""
        return 1 - (1 - level) / horizon

    def band(self, predictive: Predictive) -> Bounds:
        """Lower and upper bounds ``(..., H)`` that contain the whole path at ``level``."""
        step_level = self.step_level(self.level, len(self.radius))

        def bounds(part: Predictive) -> Bounds:
            lower, upper = interval_score(self.name).interval(part, self.radius, step_level)
            empty = lower > upper
            return torch.where(empty, part.median, lower), torch.where(empty, part.median, upper)

        found: Bounds = predictive.each(bounds)
        return found


def to_plain(values: Tensor) -> Any:
    """Nested lists of numbers; what JSON has no number for is one of the strings ``inf``, ``-inf`` and ``nan``."""

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(part) for part in item]
        return item if math.isfinite(item) else str(item)

    return plain(values.tolist())


def from_plain(values: float | str | Sequence[Any]) -> Tensor:
    """The float64 tensor that :func:`to_plain` wrote, bit by bit."""

    def number(item: Any) -> Any:
        return [number(part) for part in item] if isinstance(item, (list, tuple)) else float(item)

    return torch.tensor(number(values), dtype=torch.float64)
