"""Split conformal prediction: exact ranks, the score of a distribution's tails and a joint band over the horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive

LOWER, UPPER = LEVELS.index(0.05), LEVELS.index(0.95)


def conformal_rank(n: int, level: float) -> int:
    """Rank ``k = ceil((n + 1) level)`` of the score that covers a new one with probability ``level``.

    ``k > n`` means that no finite set can promise the level with n scores (Vovk et al., 2005). The product is rounded
    to 9 digits first, so that 0.9 * 10 is 9.
    """
    return math.ceil(round((n + 1) * level, 9))


def conformal_quantile(scores: Tensor, level: float) -> Tensor:
    """The k-th smallest of ``scores`` ``(n, ...)`` along its first axis, ``(...)``; infinite where k > n."""
    rank = conformal_rank(len(scores), level)
    if rank > len(scores):
        return torch.full(scores.shape[1:], math.inf, dtype=torch.float64)
    return scores.to(torch.float64).sort(dim=0).values[rank - 1]


def tail_score(predictive: Predictive, target: Tensor) -> Tensor:
    """How far out the truth lies: ``-log(2 min(F(y), 1 - F(y)))`` ``(...)``, 0 at the median.

    A monotone map of ``|F(y) - 1/2|`` (distributional conformal prediction, Chernozhukov et al., 2021) that does not
    saturate in floating point.
    """
    below, above = predictive.tail_probability(target)
    return -torch.log(2.0 * torch.minimum(below, above).clamp(min=1e-300))


@dataclass(frozen=True)
class JointConformal:
    """A band that holds the whole path: median plus and minus ``radius * scale_h`` times the half-widths of step h."""

    scale: Tensor
    radius: float

    @staticmethod
    def ratios(predictive: Predictive, target: Tensor) -> Tensor:
        """Signed-side distance from the median in units of the 5 % and 95 % quantiles' distances, ``(n, H)``."""
        lower, upper = half_widths(predictive)
        error = target.to(torch.float64) - predictive.median
        return torch.where(error > 0, error / upper, -error / lower)

    @classmethod
    def step_scale(cls, predictive: Predictive, target: Tensor) -> Tensor:
        """The 90 % quantile of each step's ratio ``(H,)``, from a fold other than the conformal one."""
        ratios = cls.ratios(predictive, target)
        scale = ratios.kthvalue(math.ceil(0.9 * len(ratios)), dim=0).values
        return torch.where(scale > 1e-6, scale, torch.ones_like(scale))

    @classmethod
    def fit(cls, predictive: Predictive, target: Tensor, scale: Tensor, level: float = 0.9) -> JointConformal:
        """Radius from the largest scaled ratio of each path of the conformal fold ``(n, H)``."""
        worst = (cls.ratios(predictive, target) / scale).amax(dim=-1)
        return cls(scale, float(conformal_quantile(worst, level)))

    def band(self, predictive: Predictive) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds ``(..., H)`` that contain the whole path at the fitted level."""
        lower, upper = half_widths(predictive)
        reach = self.radius * self.scale
        return predictive.median - reach * lower, predictive.median + reach * upper


def half_widths(predictive: Predictive) -> tuple[Tensor, Tensor]:
    """Distances of the 5 % and 95 % quantiles from the median, floored above zero, ``(...)`` each."""
    lower, median, upper = predictive.each(lambda part: (part.at(LOWER), part.median, part.at(UPPER)))
    floor = 1e-9 * median.abs().clamp(min=1e-6)
    return torch.maximum(median - lower, floor), torch.maximum(upper - median, floor)
