"""Adaptive conformal inference for live series: intervals that keep their long-run coverage under any drift.

Two controllers move the radius by the misses of the intervals that were issued, ACI through the level and PID through the
radius itself; both hold S series and H steps at once. :class:`LiveConformal` joins one to a score and a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.conformal import conformal_quantile
from models.uncertainty.conformal_scores import Bounds, checked_scores, from_plain, interval_score, to_plain
from models.uncertainty.ledger import Cutoff, Ledger

Method = Literal["aci", "pid"]


def _checked_start(scores: Tensor, target: float) -> Tensor:
    """Calibration scores ``(n, H)`` in float64; ``ValueError`` if there are none, one is missing or target not in (0, 1)."""
    if not 0 < target < 1:
        raise ValueError(f"the miss rate is {target:g}; it must lie between 0 and 1")
    if scores.dim() != 2 or not len(scores):
        raise ValueError(f"calibration scores have shape {tuple(scores.shape)}; (n, steps) with n at least 1 is needed")
    if scores.isnan().any():
        raise ValueError("a calibration score is missing; leave windows without a truth out")
    return scores.to(torch.float64).clone()


@dataclass
class ACI:
    """Adaptive conformal inference: ``alpha <- alpha + gamma (target - miss)`` (Gibbs and Candes, 2021, eq. 2).

    ``alpha`` ``(S, H)`` is not clipped: at 0 or below the set is the whole line, at 1 or above it is empty, and only so do
    T misses of immediate truth average to the target within ``(max(alpha_1, 1 - alpha_1) + gamma) / (gamma T)`` for
    every sequence (their proposition 4.1). Where truths come d issues late, ``gamma`` in the numerator is ``(d + 1) gamma``.

    ``scores`` ``(W, H)`` are ranked for the radius, the same for all series; new ones replace the oldest.
    """

    target: float
    gamma: float
    alpha: Tensor
    scores: Tensor
    oldest: Tensor

    @classmethod
    def start(cls, scores: Tensor, series: int, target: float = 0.1, gamma: float = 0.02) -> ACI:
        """Begin with calibration scores ``(n, H)`` at miss rate ``target``; ``gamma`` is the step size, above 0."""
        scores = _checked_start(scores, target)
        if gamma <= 0:
            raise ValueError(f"gamma is {gamma:g}; it must be above 0")
        horizon = scores.shape[1]
        alpha = torch.full((series, horizon), target, dtype=torch.float64)
        return cls(target, gamma, alpha, scores, torch.zeros(horizon, dtype=torch.long))

    def radius(self) -> Tensor:
        """The score of rank ``ceil((W + 1)(1 - alpha))``, ``(S, H)``: infinite above W, minus infinity below 1."""
        count, horizon = self.scores.shape
        rank = torch.ceil(torch.round((count + 1) * (1 - self.alpha), decimals=9)).long()
        ranked = self.scores.sort(dim=0).values
        value = ranked[(rank - 1).clamp(0, count - 1), torch.arange(horizon)]
        return torch.where(rank > count, math.inf, torch.where(rank < 1, -math.inf, value))

    def update(self, miss: Tensor, scores: Tensor | None = None) -> None:
        """Learn from misses ``(S, H)`` and the truths' scores where known, ``(S, H)``; NaN is no evidence."""
        self.alpha = torch.where(miss.isnan(), self.alpha, self.alpha + self.gamma * (self.target - miss))
        for step in range(self.scores.shape[1]) if scores is not None else ():
            new = scores[:, step][~scores[:, step].isnan()]  # type: ignore[index]
            place = (self.oldest[step] + torch.arange(len(new))) % len(self.scores)
            self.scores[place[-len(self.scores) :], step] = new[-len(self.scores) :].to(torch.float64)
            self.oldest[step] = (self.oldest[step] + len(new)) % len(self.scores)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        own = {"method": "aci", "target": self.target, "gamma": self.gamma, "oldest": self.oldest.tolist()}
        return {**own, "alpha": to_plain(self.alpha), "scores": to_plain(self.scores)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ACI:
        alpha, scores = from_plain(state["alpha"]), from_plain(state["scores"])
        return cls(state["target"], state["gamma"], alpha, scores, torch.tensor(state["oldest"], dtype=torch.long))


@dataclass
class PID:
    """Conformal PI control (Angelopoulos, Candes and Tibshirani, 2023), which needs no truth's score to follow a shift.

    The radius ``(S, H)`` is a quantile tracked by subgradient steps ``q <- q + rate (miss - target)``, plus
    an integrator of the excess ``x`` of misses after t truths, ``integral * tan(x log(t + 1) / (saturation (t + 1)))``,
    plus or minus infinite where the tangent's argument leaves (-pi/2, pi/2) (their section 2). With ``integral`` 0 and
    scores in an interval of length b that holds the first radius, T misses of immediate truth average to the target
    within ``(b + rate) / (rate T)`` (their proposition 1).

    ``rate`` and ``integral`` ``(H,)`` are in the scores' units.
    """

    target: float
    rate: Tensor
    integral: Tensor
    saturation: float
    tracked: Tensor
    excess: Tensor
    truths: Tensor

    @classmethod
    def start(
        cls,
        scores: Tensor,
        series: int,
        target: float = 0.1,
        rate: float = 0.2,
        integral: float = 0.2,
        saturation: float = 1.0,
    ) -> PID:
        """Begin at the quantile of the calibration scores ``(n, H)``, or at the largest finite one where that is infinite.

        ``rate`` and ``integral`` are shares of the distance from the smallest score to that radius; where most scores are
        equal and the distance is 0, to the largest finite score. A few wild scores so do not make the steps wild.

        Raises
        ------
        ValueError
            Where a step's calibration scores are all equal or infinite: such a fold says nothing about the size of a
            step. Also if ``rate`` or ``saturation`` is not above 0, or ``integral`` is below.
        """
        scores = _checked_start(scores, target)
        if rate <= 0 or saturation <= 0 or integral < 0:
            raise ValueError(
                f"rate {rate:g} and saturation {saturation:g} must be above 0 and integral {integral:g} at least 0"
            )
        least, most = scores.amin(0), torch.where(scores.isfinite(), scores, -math.inf).amax(0)
        first = torch.minimum(conformal_quantile(scores, 1 - target), most)  # only a start: no coverage rests on it
        size = torch.where(first > least, first - least, most - least)
        usable = (size > 0) & size.isfinite()
        if not usable.all():
            step = int((~usable).nonzero()[0, 0])
            raise ValueError(
                f"the calibration scores of step {step + 1} are all {float(least[step]):g} or infinite; PID takes its step "
                "size from how they differ, so leave this method out or calibrate on windows that differ"
            )
        zeros = torch.zeros(series, scores.shape[1], dtype=torch.float64)
        tracked = first.expand(series, -1).clone()
        return cls(target, rate * size, integral * size, saturation, tracked, zeros, zeros.clone())

    @property
    def alpha(self) -> Tensor:
        """The nominal miss rate, ``(S, H)``."""
        return torch.full_like(self.tracked, self.target)

    def radius(self) -> Tensor:
        """``(S, H)``; infinite, or minus infinite, where the integrator saturates."""
        angle = self.excess * torch.log1p(self.truths) / (self.saturation * (self.truths + 1))
        inside = torch.tan(angle.clamp(-math.pi / 2, math.pi / 2)) * self.integral
        beyond = torch.where(angle > 0, math.inf, -math.inf)
        on = self.integral > 0
        return self.tracked + torch.where(on & (angle.abs() >= math.pi / 2), beyond, torch.where(on, inside, 0.0))

    def update(self, miss: Tensor, scores: Tensor | None = None) -> None:
        """Learn from misses ``(S, H)``, NaN for no evidence; scores are not needed."""
        change = torch.where(miss.isnan(), 0.0, miss - self.target)
        self.tracked = self.tracked + self.rate * change
        self.excess = self.excess + change
        self.truths = self.truths + (~miss.isnan()).to(torch.float64)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        own = {"method": "pid", "target": self.target, "saturation": self.saturation}
        names = ("rate", "integral", "tracked", "excess", "truths")
        return {**own, **{name: to_plain(getattr(self, name)) for name in names}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PID:
        rate, integral, *rest = (from_plain(state[name]) for name in ("rate", "integral", "tracked", "excess", "truths"))
        return cls(state["target"], rate, integral, state["saturation"], *rest)


CONTROLLERS: dict[str, type[ACI] | type[PID]] = {"aci": ACI, "pid": PID}


@dataclass
class LiveConformal:
    """Intervals for live series, from issue to truth, with all of its state in one plain dict."""

    name: str
    controller: ACI | PID
    ledger: Ledger

    @classmethod
    def start(
        cls,
        method: Method,
        name: str,
        series: Sequence[str],
        predictive: Predictive,
        target: Tensor,
        level: float = 0.9,
        **options: float,
    ) -> LiveConformal:
        """Begin with controller ``method`` and score ``name`` on the conformal fold's distributions and truths ``(n, H)``.

        ``options`` go to the controller's ``start``. Raises ``ValueError`` if the method, a series' name or a number is
        not valid, or the score calibrates two sides apart.
        """
        if interval_score(name).sides != 1:
            raise ValueError(f"score '{name}' has two radii a step; an adaptive method moves one, as cqr has")
        scores = checked_scores(interval_score(name), predictive, target, level)[..., 0]
        return cls.from_scores(method, name, series, scores, level, **options)

    @classmethod
    def from_scores(
        cls, method: Method, name: str, series: Sequence[str], scores: Tensor, level: float = 0.9, **options: float
    ) -> LiveConformal:
        """As :meth:`start`, with the conformal fold's scores ``(n, H)`` at ``level`` in place of what they came from."""
        if method not in CONTROLLERS:
            raise ValueError(f"'{method}' is not an adaptive method; there are {', '.join(CONTROLLERS)}")
        if len(set(series)) < len(series):
            raise ValueError("a series is named twice; each needs a name of its own")
        controller = CONTROLLERS[method].start(scores, len(series), round(1 - level, 12), **options)
        return cls(name, controller, Ledger(tuple(series), scores.shape[-1]))

    @property
    def level(self) -> float:
        return 1 - self.controller.target

    def interval(self, predictive: Predictive) -> Bounds:
        """Bounds ``(S, H)`` around forecasts ``(S, H)`` as they would be issued now, without a record of them."""
        radius = self.controller.radius()
        lower, upper = interval_score(self.name).interval(predictive, radius[..., None], self.level)
        empty = lower > upper
        return torch.where(empty, math.inf, lower), torch.where(empty, -math.inf, upper)

    def issue(self, cutoff: Cutoff, predictive: Predictive, issued: Tensor | None = None) -> Bounds:
        """Bounds ``(S, H)`` around forecasts ``(S, H)``, entered in the ledger; ``issued`` says which users receive.

        The whole line is (-inf, inf) and the empty set (inf, -inf); ``ledger.counts()`` counts both.
        """
        lower, upper = self.interval(predictive)
        self.ledger.issue(cutoff, self.controller.alpha, lower, upper, issued)
        return lower, upper

    def observe(self, cutoff: Cutoff, truth: Tensor, predictive: Predictive | None = None) -> Tensor:
        """Learn from truths ``(S, H)`` of steps 1 to H after ``cutoff``, NaN where there is none (yet).

        Returns the misses that counted ``(S, H)``, NaN elsewhere. With the forecasts ``predictive`` ``(S, H)`` of that
        cutoff, ACI also ranks the new scores. Raises ``ValueError`` for an interval that was never issued.
        """
        truth, scores = truth.to(torch.float64), None
        if predictive is not None:
            scores = interval_score(self.name).score(predictive, truth, self.level)[..., 0]
        miss = self.ledger.settle(cutoff, truth)
        self.controller.update(miss, None if scores is None else torch.where(miss.isnan(), torch.nan, scores))
        return miss

    def observe_rows(
        self, series: Sequence[str], cutoffs: Sequence[Cutoff], steps: Sequence[int], values: Sequence[float]
    ) -> int:
        """Learn from truths as rows of a table, steps from 1; how many counted as evidence.

        Cutoffs are learnt from in the order in which they first appear, and of rows that repeat a truth the first
        counts. If a row's interval was never issued, ``ValueError`` names it and nothing was learnt.
        """
        rows = {name: row for row, name in enumerate(self.ledger.series)}
        truths: dict[Cutoff, Tensor] = {}
        for name, cutoff, step, value in zip(series, cutoffs, steps, values, strict=True):
            if name not in rows or not 1 <= step <= self.ledger.horizon:
                raise ValueError(f"truth for series '{name}', cutoff {cutoff}, step {step}: no such interval was issued")
            if cutoff not in truths:
                truths[cutoff] = torch.full(self.ledger.shape, torch.nan, dtype=torch.float64)
            if bool(truths[cutoff][rows[name], step - 1].isnan()):
                truths[cutoff][rows[name], step - 1] = value
        for cutoff, truth in truths.items():
            self.ledger.check(cutoff, truth)
        return sum(int((~self.observe(cutoff, truth).isnan()).sum()) for cutoff, truth in truths.items())

    def state(self) -> dict[str, Any]:
        """Everything, as plain lists, numbers and strings for JSON; :meth:`from_state` goes on bit by bit the same."""
        return {"name": self.name, "controller": self.controller.state(), "ledger": self.ledger.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LiveConformal:
        controller = CONTROLLERS[state["controller"]["method"]].from_state(state["controller"])
        return cls(state["name"], controller, Ledger.from_state(state["ledger"]))
