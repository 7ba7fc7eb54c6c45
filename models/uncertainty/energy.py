"""The energy alarm: an energy score with the calibration windows that turn it into a p-value, and two alarms as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.uncertainty.ood import conformal_p_value
from models.uncertainty.ood_logits import Energy

__all__ = ["EnergyAlarm", "either_p_value"]


@dataclass(frozen=True)
class EnergyAlarm:
    """`Energy` of one network and its scores ``(n,)`` on the gate's fold, sorted."""

    energy: Energy
    scores: Tensor

    @classmethod
    def fit(cls, logits: Tensor) -> EnergyAlarm:
        """Fit on the logits ``(n, ..., K)`` of the gate's fold."""
        energy = Energy.fit(logits)
        return cls(energy, energy.score(logits).sort().values)

    def score(self, logits: Tensor) -> Tensor:
        """Energy of each window, ``(m, ..., K)`` -> ``(m,)``; larger is stranger."""
        return self.energy.score(logits)

    def p_value(self, score: Tensor) -> Tensor:
        """Conformal p-value of each energy, ``(m,)``."""
        return conformal_p_value(score, self.scores)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {**self.energy.state(), "scores": self.scores}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> EnergyAlarm:
        return cls(Energy.from_state(tensors), tensors["scores"])


def either_p_value(first: Tensor, second: Tensor) -> Tensor:
    """p-value ``(n,)`` of what either alarm finds strange: twice the smaller of the two, at most 1.

    Bonferroni's: valid however the two depend on each other, so both together alarm no more often than one may.
    """
    return (2 * torch.minimum(first, second)).clamp(max=1.0)
