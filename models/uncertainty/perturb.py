"""Honest out-of-distribution tests: clean windows, perturbed before any scaling, so that each pair differs in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.panel import Panel, Windows


def level_shift(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Add ``size`` standard deviations of the window to all of it."""
    return history + size * history.std(dim=1, keepdim=True)


def variance(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Add white noise of ``size`` standard deviations of the window."""
    noise = torch.randn(history.shape, generator=generator)
    return history + size * history.std(dim=1, keepdim=True) * noise


def frequency(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Play the window ``1 + size`` times as fast, wrapping round, so that its season no longer fits."""
    step = (torch.arange(history.shape[1]) * (1.0 + size)).long() % history.shape[1]
    return history[:, step]


def trend_break(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Add a ramp over the last half that ends at ``2 size`` standard deviations of the window."""
    steps = history.shape[1]
    ramp = (torch.arange(steps, dtype=history.dtype) - steps / 2).clamp(min=0) / (steps / 2)
    return history + 2.0 * size * history.std(dim=1, keepdim=True) * ramp


def dropout(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Set a share of ``size / 2`` (at most 0.9) of the values to zero, as a failing sensor would."""
    lost = torch.rand(history.shape, generator=generator) < min(0.9, size / 2)
    return torch.where(lost, torch.zeros_like(history), history)


def foreign(history: Tensor, season: int, size: float, generator: torch.Generator) -> Tensor:
    """Replace a share of ``min(1, size)`` of the signal by a random walk of the window's own mean and spread."""
    walk = torch.randn(history.shape, generator=generator).cumsum(dim=1)
    walk = (walk - walk.mean(1, keepdim=True)) / walk.std(1, keepdim=True).clamp(min=1e-6)
    spread, centre = torch.std_mean(history, dim=1, keepdim=True)
    share = min(1.0, size)
    return (1 - share) * history + share * (centre + spread * walk)


Perturbation = Callable[[Tensor, int, float, torch.Generator], Tensor]

PERTURBATIONS: dict[str, Perturbation] = {
    "level": level_shift,
    "variance": variance,
    "frequency": frequency,
    "trend break": trend_break,
    "dropout": dropout,
    "foreign": foreign,
}
TUNING = "variance"
"""The perturbation by which the gate's experts were chosen, on the OOD fold; its scores are no evidence."""
HELD_OUT = tuple(name for name in PERTURBATIONS if name != TUNING)
SIZES = (0.5, 1.0, 2.0)
MIDDLE_SIZE = 1.0


def perturbed_panel(panel: Panel, windows: Windows, reach: int, name: str, size: float, seed: int) -> tuple[Panel, Windows]:
    """A panel in which each window is a series of its own whose last ``context`` known steps are perturbed.

    ``reach`` is how many steps before the cutoff are kept (lags and level references reach back beyond the context).
    Windows with less history than the context are left out.
    """
    horizon, context = panel.schema.horizon, panel.schema.context
    windows = windows[windows.cutoff >= context]
    length = windows.cutoff.clamp(max=reach)
    starts = panel.offsets[windows.series] + windows.cutoff - length
    index = torch.cat([torch.arange(int(s), int(s + n) + horizon) for s, n in zip(starts, length, strict=True)])
    rows = panel.rows[index].clone()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (length + horizon).cumsum(0)])
    place = (offsets[:-1] + length - context)[:, None] + torch.arange(context)
    generator = torch.Generator().manual_seed(seed)
    rows[place, 0] = PERTURBATIONS[name](rows[place, 0], panel.schema.season_length, size, generator)
    isolated = replace(
        panel,
        rows=rows,
        calendar=panel.calendar.of(windows.series, windows.cutoff - length),
        static=panel.static[windows.series],
        offsets=offsets,
        observed=length,
    )
    return isolated, Windows(torch.arange(len(length)), length)
