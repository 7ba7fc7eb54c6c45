"""The repairs of one model in their order: temperature, then conformal, each fitted on a fold of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.conformal import JointConformal, StepConformal
from models.uncertainty.temperature import QuantileTemperature

INTERVAL_LEVELS = (80, 90, 95)
JOINT_LEVEL = 90


@dataclass(frozen=True)
class Calibration:
    """What turns a pooled forecast into one whose intervals hold."""

    temperature: QuantileTemperature
    step: StepConformal
    joint: JointConformal

    @classmethod
    def fit(
        cls, mode: str, temperature_fold: tuple[Predictive, Tensor], conformal_fold: tuple[Predictive, Tensor]
    ) -> Calibration:
        """Fit on (distributions, truths) ``(n, H)`` of the temperature and of the conformal fold."""
        temperature = QuantileTemperature.fit(*temperature_fold, mode=mode)
        scale = JointConformal.step_scale(temperature.apply(temperature_fold[0]), temperature_fold[1])
        scaled, target = temperature.apply(conformal_fold[0]), conformal_fold[1]
        step = StepConformal.fit(scaled, target, INTERVAL_LEVELS)
        return cls(temperature, step, JointConformal.fit(scaled, target, scale, JOINT_LEVEL / 100))

    def apply(self, predictive: Predictive) -> Predictive:
        """The distribution after temperature scaling; intervals and bands are taken around it."""
        return self.temperature.apply(predictive)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers; an infinite radius is the string ``inf``, for JSON."""
        radius = {str(level): [_plain(value) for value in values.tolist()] for level, values in self.step.radius.items()}
        joint = {"scale": self.joint.scale.tolist(), "radius": _plain(self.joint.radius)}
        return {"temperature": self.temperature.state(), "step": radius, "joint": joint}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Calibration:
        radius = {
            int(level): torch.tensor([float(value) for value in values], dtype=torch.float64)
            for level, values in state["step"].items()
        }
        joint = JointConformal(torch.tensor(state["joint"]["scale"], dtype=torch.float64), float(state["joint"]["radius"]))
        return cls(QuantileTemperature.from_state(state["temperature"]), StepConformal(radius), joint)


def _plain(value: float) -> float | str:
    return value if value < float("inf") else "inf"
