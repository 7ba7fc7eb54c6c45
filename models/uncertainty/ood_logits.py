"""Out-of-distribution scores on the logits of a categorical head, ``(n, K)`` or ``(n, H, K)`` with the mean over steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Energy", "MaximumSoftmax"]


@dataclass(frozen=True)
class MaximumSoftmax:
    """Less the largest probability (Hendrycks and Gimpel, 2017): flat forecasts are strange.

    It depends on the width of the bins, so scores of heads with other bins do not compare.
    """

    bins: int

    @classmethod
    def fit(cls, logits: Tensor) -> MaximumSoftmax:
        """Take the number of bins from logits ``(n, ..., K)``; nothing else is learned."""
        return cls(logits.shape[-1])

    def score(self, logits: Tensor) -> Tensor:
        """``(n, ..., K)`` -> ``(n,)``, in [-1, -1 / K]; larger is stranger. Raises ValueError for another number of bins."""
        largest = _checked(logits, self.bins).softmax(-1).amax(-1)
        return -largest.reshape(len(logits), -1).mean(1)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {"bins": torch.tensor(self.bins)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> MaximumSoftmax:
        return cls(int(state["bins"]))


@dataclass(frozen=True)
class Energy:
    """Free energy ``-T logsumexp(logits / T)`` (Liu et al., 2020, equation 4): logits that are all low are strange.

    A constant added to all logits changes the energy and not the forecast, and nothing in training ties it down across
    networks: scores rank windows within one model only. Members are each scored against their own calibration windows
    and meet as p-values, never as pooled energies or by the energy of pooled logits.
    """

    bins: int
    temperature: float

    @classmethod
    def fit(cls, logits: Tensor, temperature: float = 1.0) -> Energy:
        """Take the number of bins from one model's logits ``(n, ..., K)``; raises ValueError unless ``temperature`` > 0."""
        if not temperature > 0:
            raise ValueError(f"the temperature of the energy score must be above 0, got {temperature}")
        return cls(logits.shape[-1], temperature)

    def score(self, logits: Tensor) -> Tensor:
        """``(n, ..., K)`` -> ``(n,)``; larger is stranger. Raises ValueError for another number of bins."""
        energy = -self.temperature * torch.logsumexp(_checked(logits, self.bins) / self.temperature, dim=-1)
        return energy.reshape(len(logits), -1).mean(1)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {"bins": torch.tensor(self.bins), "temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Energy:
        return cls(int(state["bins"]), float(state["temperature"]))


def _checked(logits: Tensor, bins: int) -> Tensor:
    if logits.shape[-1] != bins:
        raise ValueError(f"logits have {logits.shape[-1]} bins; the score was fitted to {bins}")
    return logits.to(torch.float64)
