"""The forecast that a direct network starts from: a learned mean of past seasons and a linear map of the history."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.panel import PanelSchema

__all__ = ["SeasonalBase", "same_phase"]

CYCLES = 4
"""Seasons back that are offered, as far as the context reaches."""


class SeasonalBase(nn.Module):
    """Location ``(B, H)`` to which a network adds its correction, all in the window's own scale.

    A convex combination of past values of each step's own phase (the last `CYCLES` seasons and the target's lags), with
    weights that `width` features of the step choose; plus a linear map from the whole history to the whole horizon (Zeng
    et al., "Are Transformers Effective for Time Series Forecasting?", 2023). It starts as the plain mean of the past
    values, and as the window's mean where there are none. The map reads history shrunk by the root of its length, so that
    one step of an optimiser moves it no more than any other part.

    Attributes
    ----------
    cycles : int
        Numbers a step that `seasons` returns.
    """

    def __init__(self, schema: PanelSchema, width: int) -> None:
        super().__init__()
        self.season, self.n_lags = schema.season_length, len(schema.lags)
        self.cycles = min(CYCLES, schema.context // schema.season_length)
        self.choices = self.cycles + self.n_lags
        self.weights = nn.Linear(width, self.choices)
        self.linear = nn.Linear(schema.context, schema.horizon, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def seasons(self, history: Tensor, horizon: int) -> Tensor:
        """`same_phase` of ``history`` ``(B, context)``, ``(B, horizon, cycles)``: inputs that are known ahead."""
        return same_phase(history, self.season, self.cycles, horizon)

    def forward(self, history: Tensor, seasons: Tensor, lags: Tensor, features: Tensor) -> Tensor:
        """Location ``(B, H)``.

        ``history`` ``(B, context)`` of the target, ``seasons`` ``(B, H, cycles)``, ``lags`` ``(B, H, n_lags)`` and
        ``features`` ``(B, H, width)``.
        """
        location: Tensor = self.linear(history * history.shape[1] ** -0.5)
        if not self.choices:
            return location
        return location + (torch.cat([seasons, lags], dim=-1) * self.weights(features).softmax(-1)).sum(-1)


def same_phase(history: Tensor, season: int, cycles: int, horizon: int) -> Tensor:
    """The last ``cycles`` values of each step's own phase of the season, newest last: ``(B, T)`` -> ``(B, H, cycles)``.

    Step h (from 0) has phase h mod ``season``, counted from the cutoff; T is at least ``cycles * season``.
    """
    recent = history[:, history.shape[1] - cycles * season :].unflatten(1, (cycles, season)).transpose(1, 2)
    return recent[:, torch.arange(horizon, device=history.device) % season]
