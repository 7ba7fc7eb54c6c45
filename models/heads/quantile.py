"""Quantile head: the distribution as quantiles on the project's grid of levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.heads.base import Head, on_axes_of
from models.predictive import LEVELS, MEDIAN, Predictive, pinball_loss

__all__ = ["QuantileHead"]


class QuantileHead(Head):
    """Non-crossing quantiles: a median, and softplus steps away from it on both sides. ``(..., W) -> (..., Q)``.

    Parameters are the quantiles at ``LEVELS`` in the window's own scale. Between and beyond the levels the distribution is
    that of :class:`models.predictive.Predictive`: linear inside, exponential tails outside.
    """

    levels: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, len(LEVELS))
        self.register_buffer("levels", torch.tensor(LEVELS, dtype=torch.float32), persistent=False)
        nn.init.normal_(self.project.weight, std=0.02)
        with torch.no_grad():  # begin near a spread of one tenth of the window's standard deviation between levels
            self.project.bias.fill_(-2.5)
            self.project.bias[MEDIAN] = 0.0

    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        raw = self.project(hidden)
        median = raw[..., MEDIAN : MEDIAN + 1]
        above = torch.cumsum(nn.functional.softplus(raw[..., MEDIAN + 1 :]), dim=-1)
        below = torch.cumsum(nn.functional.softplus(raw[..., :MEDIAN].flip(-1)), dim=-1).flip(-1)
        quantiles = torch.cat([median - below, median, median + above], dim=-1)
        return quantiles if base is None else quantiles + base[..., None]

    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Twice the pinball loss in the window's own scale, the mean over levels: an approximation of the CRPS."""
        scaled = (target - on_axes_of(loc, target)) / on_axes_of(scale, target)
        return 2.0 * pinball_loss(parameters, scaled, self.levels).mean(-1)

    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        values = _unscaled(parameters, loc, scale)
        if levels.shape == self.levels.shape and torch.allclose(levels.to(self.levels), self.levels, rtol=0.0, atol=1e-6):
            return values
        distribution = Predictive(values.detach())
        return torch.stack([distribution.quantile(level) for level in levels], dim=-1).to(parameters.dtype)

    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return Predictive(_unscaled(parameters, loc, scale)).log_prob(target).to(parameters.dtype)

    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return Predictive(_unscaled(parameters, loc, scale).detach()).cdf(target).to(parameters.dtype)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return Predictive(_unscaled(parameters, loc, scale).detach()).sample(1, generator)[0].to(parameters.dtype)

    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = Predictive(_unscaled(parameters, loc, scale).detach()).moments()
        return mean.to(parameters.dtype), variance.to(parameters.dtype)


def _unscaled(parameters: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Quantiles in the target's units."""
    return parameters * on_axes_of(scale, parameters) + on_axes_of(loc, parameters)
