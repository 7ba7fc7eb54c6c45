"""The repairs of one model in their order: temperature, then conformal, each fitted on a fold of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty.conformal import JointConformal
from models.uncertainty.conformal_scores import BonferroniBand, Bounds, StepIntervals, from_plain, to_plain
from models.uncertainty.groups import GroupIntervals
from models.uncertainty.temperature import QuantileTemperature

INTERVAL_LEVELS = (80, 90, 95)
JOINT_LEVEL = 90


@dataclass(frozen=True)
class Calibration:
    """What turns a pooled forecast into one whose intervals hold.

    ``step`` are the intervals of each step, over all windows or for each group by itself; ``joint`` the band that holds
    the whole path, and ``bonferroni`` the one that the union bound gives instead, to compare with.
    """

    temperature: QuantileTemperature
    step: StepIntervals | GroupIntervals
    joint: JointConformal
    bonferroni: BonferroniBand

    @classmethod
    def fit(
        cls,
        mode: str,
        temperature_fold: tuple[Predictive, Tensor],
        conformal_fold: tuple[Predictive, Tensor],
        score: str = "tail",
        groups: Sequence[str] | None = None,
        blocks: int | None = None,
    ) -> Calibration:
        """Fit on (distributions, truths) ``(n, H)`` of the temperature and of the conformal fold.

        ``blocks`` is how many stretches of time the temperature fold holds (see `QuantileTemperature.shrunk`); None takes
        its windows as independent.

        ``mode`` is the temperature's and ``score`` one of ``conformal_scores.SCORES``. With ``groups`` (n), those of the
        conformal fold's windows, intervals are ranked within each group that has scores enough for a finite one, and
        over all groups together for the others.
        """
        temperature = QuantileTemperature.fit(*temperature_fold, mode=mode)
        temperature = temperature if blocks is None else temperature.shrunk(blocks)
        scale = JointConformal.step_scale(temperature.apply(temperature_fold[0]), temperature_fold[1])
        scaled, target = temperature.apply(conformal_fold[0]), conformal_fold[1]
        step: StepIntervals | GroupIntervals
        if groups is None:
            step = StepIntervals.fit(score, scaled, target, INTERVAL_LEVELS)
        else:
            step = GroupIntervals.fit(score, scaled, target, groups, INTERVAL_LEVELS, fallback="marginal")
        joint = JointConformal.fit(scaled, target, scale, JOINT_LEVEL / 100)
        return cls(temperature, step, joint, BonferroniBand.fit(score, scaled, target, JOINT_LEVEL / 100))

    def apply(self, predictive: Predictive) -> Predictive:
        """The distribution after temperature scaling; intervals and bands are taken around it."""
        return self.temperature.apply(predictive)

    @property
    def grouped(self) -> bool:
        """Whether intervals depend on a window's group."""
        return isinstance(self.step, GroupIntervals)

    def interval(self, predictive: Predictive, level: int, groups: Sequence[str]) -> Bounds:
        """Bounds ``(n, H)`` at ``level`` percent, for windows of ``groups`` (n), unread unless intervals are `grouped`."""
        if isinstance(self.step, GroupIntervals):
            return self.step.interval(predictive, groups, level)
        return self.step.interval(predictive, level)

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers; what JSON has no number for is a string, such as ``inf``."""
        joint = {"scale": self.joint.scale.tolist(), "radius": to_plain(torch.tensor(self.joint.radius, dtype=torch.float64))}
        band = {"level": self.bonferroni.level, "n": self.bonferroni.n, "radius": to_plain(self.bonferroni.radius)}
        return {
            "temperature": self.temperature.state(),
            "groups": self.grouped,
            "step": self.step.state(),
            "joint": joint,
            "bonferroni": band,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Calibration:
        step = GroupIntervals.from_state(state["step"]) if state["groups"] else StepIntervals.from_state(state["step"])
        joint = JointConformal(torch.tensor(state["joint"]["scale"], dtype=torch.float64), float(state["joint"]["radius"]))
        band = state["bonferroni"]
        bonferroni = BonferroniBand(step.name, band["level"], band["n"], from_plain(band["radius"]))
        return cls(QuantileTemperature.from_state(state["temperature"]), step, joint, bonferroni)
