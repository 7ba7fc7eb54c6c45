"""Negative binomial head, for counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.base import Head, inverse_softplus, on_axes_of

__all__ = ["NegativeBinomialHead", "negative_binomial_log_prob"]

DISPERSION_FLOOR = 1e-6
"""Least dispersion before its division by the root of the scale; below it the distribution is Poisson's."""


def negative_binomial_log_prob(count: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Log-probability of `count` with mean m and variance m + a m^2 (a the dispersion), elementwise.

    With r = 1/a and l = log(a m): log G(y + r) - log G(r) - log y! - r softplus(l) - y softplus(-l), which is finite
    whatever l. Salinas et al., "DeepAR" (2020), section 3.1.
    """
    size = torch.exp(-log_dispersion)
    logit = log_dispersion + log_mean
    coefficient = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1.0)
    return coefficient - size * functional.softplus(logit) - count * functional.softplus(-logit)


class NegativeBinomialHead(Head):
    """Negative binomial in the target's own units; parameters are a location and a dispersion, P = 2.

    mean = scale softplus(location + loc / scale) and dispersion / sqrt(scale), as DeepAR has them, save that a window's
    location is kept: far from zero the mean is loc + scale * location, and near zero it stays positive. Computed in
    float64, where log-gammas of large counts do not cancel. `cdf` and `quantiles` go through scipy on the CPU and carry no
    gradient.

    Raises
    ------
    ValueError
        In `loss` and `log_prob`, if a target is negative, fractional or NaN.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2)
        nn.init.normal_(self.project.weight, std=0.02)
        with torch.no_grad():
            self.project.bias.copy_(torch.tensor([0.0, inverse_softplus(0.5)]))

    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        location, dispersion = self.project(hidden).unbind(-1)
        location = location if base is None else location + base
        return torch.stack([location, functional.softplus(dispersion) + DISPERSION_FLOOR], dim=-1)

    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood of the counts themselves."""
        return -self.log_prob(parameters, target, loc, scale)

    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        _check_counts(target)
        return negative_binomial_log_prob(target.double(), *_logs(parameters, loc, scale)).to(parameters.dtype)

    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        from scipy.special import betaincc

        log_mean, log_dispersion = (part.detach().cpu() for part in _logs(parameters, loc, scale))
        count = target.detach().double().cpu().floor()
        failure = torch.sigmoid(log_mean + log_dispersion).numpy()
        # I_p(r, y + 1) = 1 - I_(1 - p)(y + 1, r), with 1 - p = a m / (1 + a m) computed without loss
        values = betaincc(count.clamp(min=0.0).numpy() + 1.0, torch.exp(-log_dispersion).numpy(), failure)
        return torch.where(count < 0.0, 0.0, torch.as_tensor(values)).to(parameters)

    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """The smallest counts whose cdf reaches the levels, (B, H, Q)."""
        from scipy.stats import nbinom

        log_mean, log_dispersion = (part.detach().cpu()[..., None] for part in _logs(parameters, loc, scale))
        success = torch.sigmoid(-log_mean - log_dispersion).numpy()
        counts = nbinom.ppf(levels.detach().double().cpu().numpy(), torch.exp(-log_dispersion).numpy(), success)
        return torch.as_tensor(counts).to(parameters)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each (window, step): Poisson, with a rate of mean m drawn from a Gamma of shape 1 / a."""
        log_mean, log_dispersion = (part.detach() for part in _logs(parameters, loc, scale))
        # the draw behind torch.distributions.Gamma, whose public face takes no generator
        gamma = torch._standard_gamma(torch.exp(-log_dispersion), generator=generator)
        return torch.poisson(gamma * torch.exp(log_mean + log_dispersion), generator=generator).to(parameters.dtype)

    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        log_mean, log_dispersion = _logs(parameters, loc, scale)
        mean = log_mean.exp()
        return mean.to(parameters.dtype), (mean + (log_dispersion + 2.0 * log_mean).exp()).to(parameters.dtype)


def _logs(parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the mean and of the dispersion, float64 (B, H) each."""
    location, dispersion = parameters.double().unbind(-1)
    factor = on_axes_of(scale.double(), location)
    logit = location + on_axes_of(loc.double(), location) / factor
    near = logit.clamp(min=-30.0)  # log softplus(x) = x to float64's last digit below -37, to 1e-13 below -30
    log_softplus = torch.where(logit < -30.0, logit, functional.softplus(near).log())
    return factor.log() + log_softplus, dispersion.log() - 0.5 * factor.log()


def _check_counts(target: Tensor) -> None:
    """Raise ValueError unless every value is a whole number, at least 0."""
    wrong = ~((target >= 0) & (target == target.floor()))
    if bool(wrong.any()):
        raise ValueError(
            f"the negative_binomial head takes counts, whole numbers of at least 0, and the target has {target[wrong][0]:g}; "
            "head: student_t or quantile takes any number"
        )
