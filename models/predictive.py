"""The predictive distribution that every forecaster, ensemble and baseline ends as.

A distribution per (window, step) is held as quantiles on a fixed grid of levels: linear between the levels, with
exponential tails beyond the outermost two (so that no observation is ever further out than the distribution can say).
All methods work on float64 tensors of shape ``(..., Q)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Quantile levels at which every forecaster is stored.
LEVELS: tuple[float, ...] = (0.01, 0.025, *(round(0.05 * i, 2) for i in range(1, 20)), 0.975, 0.99)
MEDIAN = LEVELS.index(0.5)


def pinball_loss(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Quantile (pinball) loss, elementwise: ``(y - q) (tau - 1[y < q])`` (Koenker and Bassett, 1978).

    ``quantiles`` ``(..., Q)``, ``target`` ``(...)``, ``levels`` ``(Q,)`` -> ``(..., Q)``, in the target's units.
    """
    error = target[..., None] - quantiles
    return torch.maximum(levels * error, (levels - 1.0) * error)


def sample_quantiles(paths: Tensor, levels: Tensor) -> Tensor:
    """Quantiles ``(B, H, Q)`` of ``paths`` ``(B, paths, H)``, linear between order statistics.

    Equal to ``torch.quantile``, which refuses more than 2^24 numbers.
    """
    ordered = paths.sort(dim=1).values
    position = levels * (paths.shape[1] - 1)
    below = position.long().clamp(max=paths.shape[1] - 2)
    weight = (position - below)[None, :, None]
    return torch.lerp(ordered[:, below], ordered[:, below + 1], weight.expand(-1, -1, paths.shape[2])).transpose(1, 2)


@dataclass(frozen=True)
class Predictive:
    """Quantiles ``values`` ``(..., Q)`` at ``LEVELS``, sorted along the last axis. Leading axes are free."""

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.shape[-1] != len(LEVELS):
            raise ValueError(f"values has {self.values.shape[-1]} quantiles; LEVELS has {len(LEVELS)}")
        values = self.values.to(torch.float64)
        if not bool((values[..., 1:] >= values[..., :-1]).all()):  # to look is ten times as fast as to sort
            values = values.sort(dim=-1).values
        object.__setattr__(self, "values", values)

    def each(self, work: Callable[..., Any], *of_windows: Tensor) -> Any:
        """``work(self, *of_windows)``, for a tensor or several; `PredictiveParts` asks it of some windows at a time.

        ``of_windows`` have the windows of the distributions along their first axis, and so has what ``work`` returns.
        """
        return work(self, *of_windows)

    def repaired(self, repair: Callable[[Predictive], Predictive]) -> Predictive:
        """``repair(self)``, which depends on each window by itself."""
        return repair(self)

    def at(self, index: int) -> Tensor:
        """The quantiles at ``LEVELS[index]``, ``(...)``."""
        return self.values[..., index]

    @property
    def levels(self) -> Tensor:
        return torch.tensor(LEVELS, dtype=torch.float64, device=self.values.device)

    @property
    def median(self) -> Tensor:
        """``(...)``."""
        return self.values[..., MEDIAN]

    def _knots(self) -> Tensor:
        """Values made strictly increasing by a hair, so that the distribution function has an inverse."""
        span = (self.values[..., -1:] - self.values[..., :1]).abs() + self.values.abs().amax(-1, keepdim=True)
        step = (span * 1e-9).clamp(min=1e-12)
        return self.values + step * torch.arange(len(LEVELS), device=self.values.device)

    def quantile(self, level: Tensor) -> Tensor:
        """Quantile at ``level`` in (0, 1), broadcast against the leading axes: ``(...)``."""
        level = torch.as_tensor(level, dtype=torch.float64, device=self.values.device)
        if level.dim() == 0:  # one level for all: its side alone
            return self.tail_quantile(level, upper=False) if level <= 0.5 else self.tail_quantile(1 - level, upper=True)
        return torch.where(level <= 0.5, self.tail_quantile(level, upper=False), self.tail_quantile(1 - level, upper=True))

    def quantiles(self, levels: Tensor) -> Tensor:
        """`quantile` at each of ``levels`` ``(P,)`` in (0, 1), ``(..., P)``, at once.

        A quantile at a given level lies on the line through two knots: those beside it, or the outermost two in a tail.
        """
        own, count = self.levels.cpu(), len(LEVELS)
        levels = levels.to(own)
        cell = torch.searchsorted(own, levels).clamp(1, count - 1)
        share = (levels - own[cell - 1]) / (own[cell] - own[cell - 1])
        low = torch.log(levels / own[0]) / torch.log(own[1] / own[0])
        high = 1.0 + torch.log((1 - own[-1]) / (1 - levels)) / torch.log((1 - own[-2]) / (1 - own[-1]))
        share = torch.where(levels < own[0], low, torch.where(levels > own[-1], high, share))
        knots, device = self._knots(), self.values.device
        left, right = (knots.index_select(-1, place.to(device)) for place in (cell - 1, cell))
        return left.add_(share.to(device) * right.sub_(left))

    def tail_quantile(self, tail: Tensor, *, upper: bool) -> Tensor:
        """The value with probability ``tail`` beyond it, on the upper or lower side; exact for the smallest tails.

        ``tail`` is in [0, 1]; 0 gives an infinite value.
        """
        knots = self._knots()
        if upper:  # mirror the distribution: its upper tail is the lower tail of -Y
            knots = -knots.flip(-1)
        levels = self.levels if not upper else (1 - self.levels).flip(-1)
        tail, knots = _broadcast(tail, knots)
        cell = torch.searchsorted(levels, tail.contiguous()).clamp(1, len(LEVELS) - 1)
        pick = lambda index: knots.gather(-1, index[..., None])[..., 0]  # noqa: E731
        left, right = levels[cell - 1], levels[cell]
        inside = pick(cell - 1) + (tail - left) / (right - left) * (pick(cell) - pick(cell - 1))
        low, high = Predictive._tails_of(knots, levels)
        below = knots[..., 0] + low * torch.log(tail / levels[0])
        above = knots[..., -1] - high * torch.log((1 - tail) / (1 - levels[-1]))
        value = torch.where(tail < levels[0], below, torch.where(tail > levels[-1], above, inside))
        return -value if upper else value

    @staticmethod
    def _tails_of(knots: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        low = (knots[..., 1] - knots[..., 0]) / torch.log(levels[1] / levels[0])
        high = (knots[..., -1] - knots[..., -2]) / torch.log((1 - levels[-2]) / (1 - levels[-1]))
        return low, high

    def tail_probability(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(P(Y <= y), P(Y > y))``, each accurate to full relative precision in its own tail; ``(...)`` each."""
        knots, levels = self._knots(), self.levels
        y, knots = _broadcast(y, knots)
        cell = (knots < y[..., None]).sum(-1).clamp(1, len(LEVELS) - 1)
        pick = lambda index: knots.gather(-1, index[..., None])[..., 0]  # noqa: E731
        fraction = (y - pick(cell - 1)) / (pick(cell) - pick(cell - 1))
        inside = levels[cell - 1] + fraction * (levels[cell] - levels[cell - 1])
        low, high = self._tails_of(knots, levels)
        below = levels[0] * torch.exp(((y - knots[..., 0]) / low).clamp(max=0.0))
        above = (1 - levels[-1]) * torch.exp(((knots[..., -1] - y) / high).clamp(max=0.0))
        is_below, is_above = y < knots[..., 0], y > knots[..., -1]
        cdf = torch.where(is_below, below, torch.where(is_above, 1 - above, inside))
        survival = torch.where(is_above, above, torch.where(is_below, 1 - below, 1 - inside))
        return cdf, survival

    def cdf(self, y: Tensor) -> Tensor:
        """``P(Y <= y)``, ``(...)``."""
        return self.tail_probability(y)[0]

    def log_prob(self, y: Tensor) -> Tensor:
        """Logarithm of the density at ``y``, ``(...)``."""
        knots, levels = self._knots(), self.levels
        y, knots = _broadcast(y, knots)
        cell = (knots < y[..., None]).sum(-1).clamp(1, len(LEVELS) - 1)
        gap = knots.gather(-1, cell[..., None])[..., 0] - knots.gather(-1, cell[..., None] - 1)[..., 0]
        inside = torch.log(levels[cell] - levels[cell - 1]) - torch.log(gap)
        low, high = self._tails_of(knots, levels)
        cdf, survival = self.tail_probability(y)
        outside = torch.where(y < knots[..., 0], torch.log(cdf) - torch.log(low), torch.log(survival) - torch.log(high))
        return torch.where((y < knots[..., 0]) | (y > knots[..., -1]), outside, inside)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, ``(...)`` each, by exact integration of the quantile function over (0, 1)."""
        knots, levels = self.values, self.levels
        low, high = self._tails_of(knots, levels)
        left, right, mass = knots[..., :-1], knots[..., 1:], levels.diff()
        p, q, first, last = levels[0], 1 - levels[-1], knots[..., 0], knots[..., -1]
        centre = self.median  # about the median, so that the variance loses no digits
        mean = (mass * (left + right) / 2).sum(-1) + p * (first - low) + q * (last + high)
        left, right = left - centre[..., None], right - centre[..., None]
        first, last = first - centre, last - centre
        square = (mass * (left**2 + left * right + right**2) / 3).sum(-1)
        square = square + p * (first**2 - 2 * first * low + 2 * low**2) + q * (last**2 + 2 * last * high + 2 * high**2)
        return mean, (square - (mean - centre) ** 2).clamp(min=0.0)

    @property
    def mean(self) -> Tensor:
        """``(...)``."""
        return self.moments()[0]

    @property
    def variance(self) -> Tensor:
        """``(...)``, in squared units of the target."""
        return self.moments()[1]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``count`` independent draws per distribution by inversion, ``(count, ...)``."""
        shape = (count, *self.values.shape[:-1])
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator, device=self.values.device)
        return self.quantile(uniform.clamp(1e-12, 1 - 1e-12))


def _broadcast(points: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """``points`` in float64 and ``knots`` ``(..., Q)`` with the same leading axes; ``points`` may have more of them."""
    points = torch.as_tensor(points, dtype=torch.float64, device=knots.device)
    shape = np.broadcast_shapes(points.shape, knots.shape[:-1])  # torch.broadcast_shapes imports sympy, a second of start-up
    return points.expand(shape), knots.expand(*shape, -1)
