"""Normal head, by the heteroscedastic negative log-likelihood or its beta-weighted form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.base import Head, inverse_softplus, on_axes_of

__all__ = ["DEVIATION_FLOOR", "NormalHead", "beta_nll", "gaussian_nll"]

DEVIATION_FLOOR = 1e-4
"""Least standard deviation, in the window's own scale: a likelihood without a floor is unbounded."""

START = 0.5
"""Standard deviation before training, in the window's own scale."""


def gaussian_nll(mean: Tensor, deviation: Tensor, target: Tensor) -> Tensor:
    """Negative log-density of N(mean, deviation^2) at target, elementwise: log s + (y - m)^2 / (2 s^2) + log(2 pi) / 2.

    The heteroscedastic loss of Nix & Weigend, "Estimating the mean and variance of the target probability distribution"
    (1994).
    """
    return deviation.log() + 0.5 * ((target - mean) / deviation).square() + 0.5 * math.log(2.0 * math.pi)


def beta_nll(mean: Tensor, deviation: Tensor, target: Tensor, beta: float) -> Tensor:
    """Elementwise stop_gradient(deviation^(2 beta)) times `gaussian_nll`.

    beta = 0 is the likelihood, which learns the mean slowly where the variance is large; with beta = 1 the mean has the
    gradient of the halved squared error. Seitzer et al., "On the Pitfalls of Heteroscedastic Uncertainty Estimation with
    Probabilistic Neural Networks" (2022), equation 5; the authors advise 0.5.
    """
    return deviation.detach() ** (2.0 * beta) * gaussian_nll(mean, deviation, target)


class NormalHead(Head):
    """N(mean, deviation^2); parameters are mean and deviation in the window's own scale, P = 2.

    Parameters
    ----------
    width : int
        Of the hidden state.
    beta : float
        Of `beta_nll`, in [0, 1]; 0 trains by the likelihood.

    Raises
    ------
    ValueError
        If `beta` is not in [0, 1].
    """

    def __init__(self, width: int, beta: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta of the normal head must be in [0, 1], got {beta}")
        self.beta = beta
        self.project = nn.Linear(width, 2)
        nn.init.normal_(self.project.weight, std=0.02)
        with torch.no_grad():
            self.project.bias.copy_(torch.tensor([0.0, inverse_softplus(START)]))

    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        mean, spread = self.project(hidden).unbind(-1)
        mean = mean if base is None else mean + base
        return torch.stack([mean, functional.softplus(spread) + DEVIATION_FLOOR], dim=-1)

    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """`beta_nll` in the window's own scale."""
        mean, deviation = parameters.unbind(-1)
        return beta_nll(mean, deviation, (target - on_axes_of(loc, target)) / on_axes_of(scale, target), self.beta)

    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return -gaussian_nll(*_unscaled(parameters, loc, scale), target)

    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        mean, deviation = _unscaled(parameters, loc, scale)
        return torch.special.ndtr((target - mean) / deviation)

    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        mean, deviation = _unscaled(parameters, loc, scale)
        return mean[..., None] + deviation[..., None] * torch.special.ndtri(levels.to(parameters))

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, deviation = _unscaled(parameters, loc, scale)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + deviation * noise

    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = _unscaled(parameters, loc, scale)
        return mean, deviation.square()


def _unscaled(parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in the target's units."""
    mean, deviation = parameters.unbind(-1)
    factor = on_axes_of(scale, mean)
    return mean * factor + on_axes_of(loc, mean), deviation * factor
