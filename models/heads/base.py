"""What every head is: the last layer of a network, which turns its hidden state into a predictive distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["Head", "inverse_softplus", "on_axes_of", "uniform_like"]


class Head(nn.Module, ABC):
    """A distribution for each (window, step), from the hidden state of that step.

    Shapes: hidden (B, H, W), base (B, H), parameters (B, H, P), target (B, H), loc and scale (B,), levels (Q,). Targets,
    quantiles, samples, means and variances are in the target's units; `base`, a first guess of the location, is in the
    window's own scale, (y - loc) / scale. Any number of axes may stand in the place of H. Results have the dtype of the
    parameters; gradients flow through `forward`, `loss` and `log_prob` alone.
    """

    @abstractmethod
    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        """Parameters (B, H, P) from hidden (B, H, W) and base (B, H), zero where it is left out."""

    @abstractmethod
    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Training loss (B, H), in a unit that does not depend on the window's scale where the head allows it."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Logarithm of the density (of the probability, for counts) of target, (B, H)."""

    @abstractmethod
    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """P(Y <= target), (B, H)."""

    @abstractmethod
    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Quantiles at levels in (0, 1), (B, H, Q); sorted along the last axis where levels are."""

    @abstractmethod
    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One independent draw for each (window, step), (B, H)."""

    def draw(
        self, hidden: Tensor, base: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """What `sample` draws for the parameters of hidden (N, W) and base (N,): (N,), from the same random numbers.

        Without gradients, and quicker where a head can leave out what a draw does not need.
        """
        return self.sample(self(hidden, base), loc, scale, generator)

    @abstractmethod
    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (B, H) each, the variance in squared units of the target."""


def on_axes_of(values: Tensor, like: Tensor) -> Tensor:
    """View `values` (B,) with as many trailing axes of length 1 as broadcasting against `like` (B, ...) takes."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def uniform_like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws in the open interval (0, 1), of the shape, dtype and device of `values`."""
    draws = torch.rand(values.shape, dtype=values.dtype, device=values.device, generator=generator)
    limits = torch.finfo(values.dtype)
    return draws.clamp(min=limits.tiny, max=1.0 - limits.eps)


def inverse_softplus(value: float) -> float:
    """The x with softplus(x) = `value`, for biases that make a parameter begin at a chosen value."""
    return float(torch.tensor(value, dtype=torch.float64).expm1().log())
