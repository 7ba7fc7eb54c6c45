"""Temperature scaling on a fold of its own: one factor of spread for each head type, or one for each side of quantiles.

A factor is global, per step, or per group (a series, say); a group that the fold has too few windows of, or has not seen,
gets the global factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.heads.negative_binomial import negative_binomial_log_prob
from models.heads.student_t import student_t_log_prob
from models.predictive import LEVELS, MEDIAN, Predictive, pinball_loss

__all__ = ["HEAD_TYPES", "LEAST_WINDOWS", "HeadTemperature", "QuantileTemperature"]

MODES = ("per_step", "global", "per_group", "none")
LOSS_ROWS = 512
"""Windows whose loss is computed at once."""
LEAST_WINDOWS = 30
"""Windows that a group needs for a factor of its own."""
HALF_TRUSTED = 3
"""Blocks beyond the first at which factors keep half of their logarithm. On the two validation folds after it, that is as good
as full factors on Chicago (13 blocks), and WQL is 0.3 % lower on ETTh1 (7) and 19 % on M4 hourly (1)."""

SIDES = (slice(0, MEDIAN), slice(MEDIAN + 1, None))


@dataclass(frozen=True)
class QuantileTemperature:
    """Stretch factors ``below`` and ``above`` the median, ``(H,)`` each; 1 leaves a distribution as it is.

    ``groups`` has the two factors of every group that has its own.
    """

    below: Tensor
    above: Tensor
    groups: dict[int, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def identity(cls, horizon: int) -> QuantileTemperature:
        return cls(torch.ones(horizon, dtype=torch.float64), torch.ones(horizon, dtype=torch.float64))

    def shrunk(self, blocks: int) -> QuantileTemperature:
        """The factors drawn towards 1 by how few stretches of time they come from: to the power ``(b - 1) / (b + 2)``.

        Windows of one stretch share their errors, so that its spread and bias need not be those of the next: with one
        block nothing tells them apart and factors are 1. `HALF_TRUSTED` blocks beyond the first give half of the logarithm.
        """
        trust = (blocks - 1) / (blocks - 1 + HALF_TRUSTED)
        groups = {group: (below**trust, above**trust) for group, (below, above) in self.groups.items()}
        return QuantileTemperature(self.below**trust, self.above**trust, groups)

    @classmethod
    def fit(
        cls,
        predictive: Predictive,
        target: Tensor,
        mode: str = "per_step",
        groups: Tensor | None = None,
        least: int = LEAST_WINDOWS,
    ) -> QuantileTemperature:
        """Fit on ``(n, H)`` distributions and truths by the pinball loss of each side's levels.

        ``mode`` is ``per_step``, ``global`` (one pair for all steps), ``per_group`` (one pair for all steps of each of
        ``groups`` ``(n,)`` with at least ``least`` windows, the global pair for the others) or ``none``. The loss is
        convex in the factor, so golden-section search over the factor in [0.05, 20] finds its minimum; 1 stays where
        nothing is better. Raises ValueError for another mode, or a fold that is empty, constant or has missing truths.
        """
        if mode == "none":
            return cls.identity(target.shape[-1])
        target = _checked(target, mode, groups)
        below, above = (_minimise_stretch(predictive, target, side, mode != "per_step") for side in SIDES)
        if mode != "per_group" or groups is None:
            return cls(below, above)
        own = {}
        for group, members in _large_groups(groups, target, least):
            part = Predictive(predictive.values[members])
            pair = [float(_minimise_stretch(part, target[members], side, True)[0]) for side in SIDES]
            own[group] = (pair[0], pair[1])
        return cls(below, above, own)

    def apply(self, predictive: Predictive, groups: Tensor | None = None) -> Predictive:
        """Stretch distributions ``(..., H)``, of ``groups`` ``(n,)`` those ``(..., n, H)``; left out, all globally."""
        return predictive.repaired(self._stretched) if groups is None else self._stretched(predictive, groups)

    def _stretched(self, predictive: Predictive, groups: Tensor | None = None) -> Predictive:
        median = predictive.median[..., None]
        pairs = torch.stack([self.below, self.above], dim=-1)
        if groups is not None:
            pairs = _by_group(pairs, self.groups, groups)
        factor = torch.ones((*pairs.shape[:-1], len(LEVELS)), dtype=torch.float64)
        factor[..., :MEDIAN] = pairs[..., :1]
        factor[..., MEDIAN + 1 :] = pairs[..., 1:]
        return Predictive(median + (predictive.values - median) * factor)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; ``groups`` only where a group has factors of its own."""
        own = {"groups": {str(group): list(pair) for group, pair in self.groups.items()}} if self.groups else {}
        return {"below": self.below.tolist(), "above": self.above.tolist(), **own}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> QuantileTemperature:
        below, above = (torch.tensor(state[key], dtype=torch.float64) for key in ("below", "above"))
        return cls(below, above, {int(group): (pair[0], pair[1]) for group, pair in state.get("groups", {}).items()})


@dataclass(frozen=True)
class HeadTemperature:
    """One factor a step, ``(H,)``, for distributions of one head type; above 1 is wider or softer, 1 changes nothing.

    The types, the last axis P of their parameters and what the factor T acts on (Guo et al., 2017; for regression Levi et
    al., 2022; for all but the negative binomial the location and so the point forecast stay):

    ============================ ===================================== =========================================
    ``logits``                   K logits; the truth is a bin's index  logits / T
    ``normal``                   mean, deviation                       deviation * T
    ``student_t``                location, scale, degrees of freedom   scale * T
    ``negative_binomial``        mean, dispersion (var = m + a m^2)    dispersion * T, at fixed mean
    ============================ ===================================== =========================================

    ``normal`` and ``student_t`` may be in any unit that the truth shares. For a head's own parameters (`apply_to_head`)
    the factor is the same, since each acts on its column by multiplication alone.
    """

    kind: str
    factor: Tensor
    groups: dict[int, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        kind: str,
        parameters: Tensor,
        target: Tensor,
        mode: str = "global",
        groups: Tensor | None = None,
        least: int = LEAST_WINDOWS,
    ) -> HeadTemperature:
        """Fit by maximum likelihood on parameters ``(n, H, P)`` and truths ``(n, H)``; modes as `QuantileTemperature.fit`.

        The Normal's factor is the root of mean z^2, z = (y - mean) / deviation. The others come from golden-section search
        over log T, in which their likelihoods have one maximum, bounded to T in [0.02, 50]: a fold whose counts vary no more
        than Poisson's ends at the lower bound. Raises ValueError for a head type or mode that does not exist, a spread
        that is not positive, or a fold that is empty, constant or has missing truths.
        """
        if kind not in HEAD_TYPES:
            raise ValueError(f"'{kind}' is not a head type with a temperature; there are {', '.join(HEAD_TYPES)}")
        if mode == "none":
            return cls(kind, torch.ones(target.shape[-1], dtype=torch.float64))
        target, parameters = _checked(target, mode, groups), parameters.to(torch.float64)
        _check_parameters(kind, parameters, target)
        whole = _fit_factor(kind, parameters, target, mode != "per_step")
        if mode != "per_group" or groups is None:
            return cls(kind, whole)
        own = {
            group: float(_fit_factor(kind, parameters[members], target[members], True)[0])
            for group, members in _large_groups(groups, target, least)
        }
        return cls(kind, whole, own)

    def apply(self, parameters: Tensor, groups: Tensor | None = None) -> Tensor:
        """Parameters ``(..., H, P)`` after scaling, in their own dtype; ``groups`` ``(n,)`` of ``(..., n, H, P)``."""
        factor = self.factor if groups is None else _by_group(self.factor[:, None], _singles(self.groups), groups)[..., 0]
        return scaled_parameters(self.kind, parameters, factor.to(parameters))

    def apply_to_head(self, parameters: Tensor, groups: Tensor | None = None) -> Tensor:
        """As `apply`, for what a head of ``models.heads`` gives: a categorical one's base, its last column, stays."""
        if self.kind != "logits":
            return self.apply(parameters, groups)
        return torch.cat([self.apply(parameters[..., :-1], groups), parameters[..., -1:]], dim=-1)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        own = {str(group): factor for group, factor in self.groups.items()}
        return {"kind": self.kind, "factor": self.factor.tolist(), "groups": own}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HeadTemperature:
        own = {int(group): float(factor) for group, factor in state["groups"].items()}
        return cls(state["kind"], torch.tensor(state["factor"], dtype=torch.float64), own)


def scaled_parameters(kind: str, parameters: Tensor, factor: Tensor) -> Tensor:
    """``parameters`` ``(..., H, P)`` of a head type with ``factor`` ``(H,)`` or ``(n, H)`` at work."""
    if kind == "logits":
        return parameters / factor[..., None]
    scaled = parameters.clone()
    scaled[..., 1] = parameters[..., 1] * factor
    return scaled


def _normal_factor(parameters: Tensor, target: Tensor, shared: bool) -> Tensor:
    square = ((target - parameters[..., 0]) / parameters[..., 1]).square()
    mean = square.mean().expand(target.shape[-1]) if shared else square.mean(0)
    return mean.sqrt().clamp(min=1e-6)


def _logits_loss(parameters: Tensor, target: Tensor) -> Tensor:
    return -parameters.log_softmax(-1).gather(-1, target.long()[..., None])[..., 0]


def _student_t_loss(parameters: Tensor, target: Tensor) -> Tensor:
    location, scale, freedom = parameters.unbind(-1)
    return scale.log() - student_t_log_prob((target - location) / scale, freedom)


def _negative_binomial_loss(parameters: Tensor, target: Tensor) -> Tensor:
    mean, dispersion = parameters.unbind(-1)
    return -negative_binomial_log_prob(target, mean.log(), dispersion.log())


HEAD_TYPES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "logits": _logits_loss,
    "normal": None,
    "student_t": _student_t_loss,
    "negative_binomial": _negative_binomial_loss,
}
"""Head types and their negative log-likelihoods, elementwise; the Normal's factor has a closed form instead."""


def _fit_factor(kind: str, parameters: Tensor, target: Tensor, shared: bool) -> Tensor:
    """Factor of each step, ``(H,)``; all equal if ``shared``."""
    negative = HEAD_TYPES[kind]
    if negative is None:
        return _normal_factor(parameters, target, shared)

    def loss(log_factor: Tensor) -> Tensor:
        per_step = negative(scaled_parameters(kind, parameters, log_factor.exp()), target).mean(0)
        return per_step.mean().expand_as(per_step) if shared else per_step

    return _golden_section(loss, target.shape[-1], math.log(50.0))


def _minimise_stretch(predictive: Predictive, target: Tensor, side: slice, shared: bool) -> Tensor:
    """Golden-section search for the factor of each step, ``(H,)``, on one side of the median."""
    levels, median = predictive.levels[side], predictive.median
    offset = predictive.each(lambda part: part.values[..., side] - part.median[..., None])
    spread = predictive.each(lambda part: part.values[..., -1] - part.values[..., 0])
    weight = 1.0 / spread.mean().clamp(min=1e-12)

    def loss(log_factor: Tensor) -> Tensor:
        per_step = (_stretched_loss(median, offset, log_factor.exp(), target, levels) * weight).mean(0)
        return per_step.mean().expand_as(per_step) if shared else per_step

    return _golden_section(loss, target.shape[-1], 3.0)


def _stretched_loss(median: Tensor, offset: Tensor, factor: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean pinball loss over ``levels``, ``(n, H)``, of quantiles that lie ``offset`` ``(n, H, K)`` times ``factor`` ``(H,)``
    from the ``median``; `LOSS_ROWS` windows at a time, which stay in the processor's cache."""
    parts = zip(median.split(LOSS_ROWS), offset.split(LOSS_ROWS), target.split(LOSS_ROWS), strict=True)
    return torch.cat(
        [pinball_loss(centre[..., None] + away * factor[:, None], truth, levels).mean(-1) for centre, away, truth in parts]
    )


def _golden_section(loss: Callable[[Tensor], Tensor], steps: int, bound: float) -> Tensor:
    """Minimiser of ``loss``, ``(H,)`` -> ``(H,)``, over log factors within ``bound`` of 0; as factors, 1 if none is better."""
    ratio = (5**0.5 - 1) / 2
    low = torch.full((steps,), -bound, dtype=torch.float64)
    high = -low
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        smaller_left = loss(left) < loss(right)
        high, low = torch.where(smaller_left, right, high), torch.where(smaller_left, low, left)
    best = (low + high) / 2
    return torch.where(loss(best) < loss(torch.zeros_like(best)), best, 0.0).exp()


def _checked(target: Tensor, mode: str, groups: Tensor | None) -> Tensor:
    """The truths in float64, or ValueError for what no temperature can be fitted to."""
    if mode not in MODES:
        raise ValueError(f"'{mode}' is not a temperature mode; there are {', '.join(MODES[:-1])} and none")
    if mode == "per_group" and (groups is None or groups.shape != target.shape[:1]):
        raise ValueError("a temperature per group takes the group of every window of its fold")
    if target.numel() == 0:
        raise ValueError("the temperature fold has no windows")
    missing = int((~torch.isfinite(target)).sum())
    if missing:
        raise ValueError(f"the temperature fold has {missing} truths of {target.numel()} that are missing or infinite")
    if target.numel() > 1 and bool((target == target.flatten()[0]).all()):
        raise ValueError(f"the temperature fold is constant: all its truths are {target.flatten()[0]:g}")
    return target.to(torch.float64)


def _check_parameters(kind: str, parameters: Tensor, target: Tensor) -> None:
    """Raise ValueError for parameters that are no distribution of the head type, or truths that it cannot give."""
    if kind == "logits":
        bins = parameters.shape[-1]
        if not bool(((target >= 0) & (target < bins) & (target == target.floor())).all()):
            raise ValueError(f"truths of logits are indices of their {bins} bins, 0 to {bins - 1}")
    elif not bool((parameters[..., 1] > 0).all()):
        raise ValueError(f"the {kind} head's spread must be above 0 all over the temperature fold")
    if kind == "negative_binomial":
        if not bool((parameters[..., 0] > 0).all()):
            raise ValueError("the negative_binomial head's mean must be above 0 all over the temperature fold")
        if not bool(((target >= 0) & (target == target.floor())).all()):
            raise ValueError("truths of the negative_binomial head are counts, whole numbers of at least 0")


def _large_groups(groups: Tensor, target: Tensor, least: int) -> list[tuple[int, Tensor]]:
    """Groups with at least ``least`` windows whose truths are not all one, and the places of their windows."""
    found = []
    for group in groups.unique().tolist():
        members = (groups == group).nonzero()[:, 0]
        if len(members) >= least and bool((target[members] != target[members[0], 0]).any()):
            found.append((group, members))
    return found


def _singles(groups: dict[int, float]) -> dict[int, tuple[float]]:
    return {group: (factor,) for group, factor in groups.items()}


def _by_group(shared: Tensor, own: dict[int, Any], groups: Tensor) -> Tensor:
    """Factors ``(n, H, F)`` of windows of ``groups`` ``(n,)``, from ``shared`` ``(H, F)`` where a group has none of its own."""
    factors = shared.expand(len(groups), *shared.shape).clone()
    for group, values in own.items():
        factors[groups == group] = torch.tensor(values, dtype=shared.dtype)
    return factors
