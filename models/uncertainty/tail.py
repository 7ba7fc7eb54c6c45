"""Tail probabilities of a score, by which scores of different kinds compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TailProbability"]

KNOTS = 256  # of the curve from a value to its tail probability
TAIL = 0.1  # share of known windows from which the tail is extended


@dataclass(frozen=True)
class TailProbability:
    """Surprise of a value: less the logarithm of the share of known windows whose value is at least as large.

    From the ``TAIL`` largest on an exponential tail of the logarithm of the value, fitted to them (a Pareto tail, Hill's
    1975 estimate), takes over, so that values beyond all known ones still differ in surprise. ``value`` (its logarithm) and
    ``surprise`` ``(k,)`` are knots of the curve before it, ``slope`` is the tail's.
    """

    value: Tensor
    surprise: Tensor
    slope: float

    @classmethod
    def never(cls) -> TailProbability:
        """Nothing is surprising."""
        zero = torch.zeros(1, dtype=torch.float64)
        return cls(zero, zero, 0.0)

    @classmethod
    def fit(cls, values: Tensor) -> TailProbability:
        """Fit on the values of known windows ``(n,)``, of at least 0."""
        logs = values.clamp(min=1e-12).log().sort().values
        n = len(logs)
        last = max(0, int((1 - TAIL) * n) - 1)
        surprise = -torch.log((n - torch.arange(n, dtype=torch.float64)) / (n + 1))
        knots = torch.linspace(0, last, min(KNOTS, last + 1), dtype=torch.float64).round().long()
        excess = float((logs[last:] - logs[last]).mean())
        return cls(logs[knots], surprise[knots], 1 / max(excess, 1e-3))

    def apply(self, values: Tensor) -> Tensor:
        """``(n,)`` -> ``(n,)`` in nats, non-decreasing."""
        logs = values.clamp(min=1e-12).log()
        above = torch.searchsorted(self.value, logs).clamp(max=len(self.value) - 1)
        below = (above - 1).clamp(min=0)
        width = (self.value[above] - self.value[below]).clamp(min=1e-12)
        share = ((logs - self.value[below]) / width).clamp(0.0, 1.0)
        inside = self.surprise[below] + share * (self.surprise[above] - self.surprise[below])
        beyond = (logs - self.value[-1]).clamp(min=0.0) * self.slope
        return inside + beyond

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> TailProbability:
        return cls(state["value"], state["surprise"], float(state["slope"]))
