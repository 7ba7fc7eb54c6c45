"""Temperature scaling of quantiles: each side of the median is stretched by a factor fitted on its own fold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.predictive import LEVELS, MEDIAN, Predictive, pinball_loss


@dataclass(frozen=True)
class QuantileTemperature:
    """Stretch factors ``below`` and ``above`` the median, ``(H,)`` each; 1 leaves a distribution as it is."""

    below: Tensor
    above: Tensor

    @classmethod
    def identity(cls, horizon: int) -> QuantileTemperature:
        return cls(torch.ones(horizon, dtype=torch.float64), torch.ones(horizon, dtype=torch.float64))

    @classmethod
    def fit(cls, predictive: Predictive, target: Tensor, mode: str = "per_step") -> QuantileTemperature:
        """Fit on ``(n, H)`` distributions and truths by the pinball loss of each side's levels.

        ``mode`` is ``per_step``, ``global`` (one pair for all steps) or ``none``. The loss is convex in the factor,
        so golden-section search over the factor in [0.05, 20] finds its minimum; 1 stays where nothing is better.
        """
        horizon = target.shape[-1]
        if mode == "none":
            return cls.identity(horizon)
        if mode not in ("per_step", "global"):
            raise ValueError(f"'{mode}' is not a temperature mode; there are per_step, global and none")
        sides = (slice(0, MEDIAN), slice(MEDIAN + 1, None))
        factors = [_minimise_stretch(predictive, target.to(torch.float64), side, mode == "global") for side in sides]
        return cls(*factors)

    def apply(self, predictive: Predictive) -> Predictive:
        """Stretch distributions ``(..., H)``."""
        median = predictive.median[..., None]
        factor = torch.ones((len(self.below), len(LEVELS)), dtype=torch.float64)
        factor[:, :MEDIAN] = self.below[:, None]
        factor[:, MEDIAN + 1 :] = self.above[:, None]
        return Predictive(median + (predictive.values - median) * factor)

    def state(self) -> dict[str, list[float]]:
        return {"below": self.below.tolist(), "above": self.above.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, list[float]]) -> QuantileTemperature:
        return cls(*(torch.tensor(state[key], dtype=torch.float64) for key in ("below", "above")))


def _minimise_stretch(predictive: Predictive, target: Tensor, side: slice, shared: bool) -> Tensor:
    """Golden-section search for the factor of each step, ``(H,)``, on one side of the median."""
    levels, median = predictive.levels[side], predictive.median[..., None]
    offset = predictive.values[..., side] - median
    weight = 1.0 / (predictive.values[..., -1] - predictive.values[..., 0]).mean().clamp(min=1e-12)

    def loss(log_factor: Tensor) -> Tensor:
        stretched = median + offset * log_factor.exp()[:, None]
        per_step = (pinball_loss(stretched, target, levels).mean(-1) * weight).mean(0)
        return per_step.mean().expand_as(per_step) if shared else per_step

    ratio = (5**0.5 - 1) / 2
    low = torch.full((target.shape[-1],), -3.0, dtype=torch.float64)
    high = -low
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        smaller_left = loss(left) < loss(right)
        high, low = torch.where(smaller_left, right, high), torch.where(smaller_left, low, left)
    best = (low + high) / 2
    return torch.where(loss(best) < loss(torch.zeros_like(best)), best, 0.0).exp()
