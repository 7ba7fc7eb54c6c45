"""Student-t head, for errors with heavier tails than the Normal's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.base import Head, inverse_softplus, on_axes_of, uniform_like
from models.heads.normal import DEVIATION_FLOOR, START

__all__ = ["StudentTHead", "student_t_log_prob"]

LEAST_FREEDOM = 2.01
"""Degrees of freedom stay above 2, where the variance exists."""


def student_t_log_prob(standardised: Tensor, freedom: Tensor) -> Tensor:
    """Log-density of the t distribution with location 0 and scale 1, elementwise; `freedom` > 0.

    log G((v + 1) / 2) - log G(v / 2) - log(pi v) / 2 - (v + 1) / 2 log(1 + z^2 / v). Towards v = infinity the two
    log-gammas would cancel in float32, so beyond v = 40 their difference comes from its asymptotic series.
    """
    tail = 0.5 * (freedom + 1.0) * torch.log1p(standardised.square() / freedom)
    return _log_gamma_step(0.5 * freedom) - 0.5 * torch.log(math.pi * freedom) - tail


def _log_gamma_step(x: Tensor) -> Tensor:
    """log G(x + 1/2) - log G(x), x > 0, to 1e-12 (in float64).

    Its series is log(x) / 2 - 1 / (8 x) + 1 / (192 x^3) - 1 / (640 x^5) (Tricomi & Erdelyi 1951).
    """
    large, small = x.clamp(min=20.0), x.clamp(max=20.0)
    inverse = large.reciprocal()
    square = inverse.square()
    series = 0.5 * large.log() - inverse * (1.0 / 8.0 - square * (1.0 / 192.0 - square / 640.0))
    return torch.where(x > 20.0, series, torch.lgamma(small + 0.5) - torch.lgamma(small))


class StudentTHead(Head):
    """t distribution; parameters are location, scale (window's own) and degrees of freedom, above 2, P = 3.

    `cdf` and `quantiles` go through scipy on the CPU in float64, since torch has no incomplete beta function; they serve
    prediction alone and carry no gradient.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3)
        nn.init.normal_(self.project.weight, std=0.02)
        with torch.no_grad():  # begin at about 7 degrees of freedom: tails, but a settled variance
            self.project.bias.copy_(torch.tensor([0.0, inverse_softplus(START), inverse_softplus(5.0)]))

    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        location, spread, freedom = self.project(hidden).unbind(-1)
        location = location if base is None else location + base
        spread = functional.softplus(spread) + DEVIATION_FLOOR
        return torch.stack([location, spread, functional.softplus(freedom) + LEAST_FREEDOM], dim=-1)

    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood in the window's own scale."""
        location, spread, freedom = parameters.unbind(-1)
        scaled = (target - on_axes_of(loc, target)) / on_axes_of(scale, target)
        return spread.log() - student_t_log_prob((scaled - location) / spread, freedom)

    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        location, spread, freedom = _unscaled(parameters, loc, scale)
        return student_t_log_prob((target - location) / spread, freedom) - spread.log()

    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        from scipy.special import stdtr

        location, spread, freedom = (part.detach().double().cpu() for part in _unscaled(parameters, loc, scale))
        standardised = (target.detach().double().cpu() - location) / spread
        return torch.as_tensor(stdtr(freedom.numpy(), standardised.numpy())).to(parameters)

    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        from scipy.special import stdtrit

        location, spread, freedom = (part.detach()[..., None] for part in _unscaled(parameters, loc, scale))
        standard = stdtrit(freedom.double().cpu().numpy(), levels.detach().double().cpu().numpy())
        return location + spread * torch.as_tensor(standard).to(parameters)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each (window, step), by the polar method of Bailey (1994): sqrt(v (U^(-2/v) - 1)) cos(2 pi V)."""
        location, spread, freedom = (part.detach() for part in _unscaled(parameters, loc, scale))
        radius = (freedom * torch.expm1(uniform_like(freedom, generator).log() * (-2.0 / freedom))).sqrt()
        return location + spread * radius * torch.cos(2.0 * math.pi * uniform_like(freedom, generator))

    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        location, spread, freedom = _unscaled(parameters, loc, scale)
        return location, spread.square() * freedom / (freedom - 2.0)


def _unscaled(parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Location and scale in the target's units, and degrees of freedom."""
    location, spread, freedom = parameters.unbind(-1)
    factor = on_axes_of(scale, location)
    return location * factor + on_axes_of(loc, location), spread * factor, freedom
