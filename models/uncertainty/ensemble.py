"""Deep ensembles: pooling of members, member weights, and the aleatoric/epistemic split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss
from models.predictive_parts import ROWS

CELLS = 20_000
"""Distributions of a mixture that are inverted at a time, which bounds memory."""
BISECTIONS = 40


class Members(Protocol):
    """Quantiles of members ``(M, n, H, Q)``: a tensor, or what reads some windows of them from files."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor: ...


def pool(values: Tensor, weights: Tensor, method: str = "quantile_average") -> Predictive:
    """Pool members' quantiles ``(M, ..., Q)`` with ``weights`` ``(M,)`` that sum to 1.

    ``quantile_average`` (Vincent, 1912; Lichtendahl et al., 2013) keeps calibrated members calibrated;
    ``linear`` is the mixture of the members' distributions, which over-disperses calibrated members.
    """
    weights = weights.to(torch.float64)
    if method == "quantile_average":
        return Predictive(torch.tensordot(weights, values.to(torch.float64), dims=1))
    if method != "linear":
        raise ValueError(f"'{method}' is not a pooling method; there are quantile_average and linear")
    flat = values.reshape(len(values), -1, len(LEVELS))
    parts = [mixture_quantiles(flat[:, start : start + CELLS], weights) for start in range(0, flat.shape[1], CELLS)]
    return Predictive(torch.cat(parts).reshape(values.shape[1:]))


def all_aleatoric(values: Tensor, dim: int = 0) -> Tensor:
    """Aleatoric and epistemic variance, stacked at ``dim``, of quantiles ``(..., Q)`` of a member without MC dropout passes."""
    variance = Predictive(values).variance
    return torch.stack([variance, torch.zeros_like(variance)], dim=dim)


def mixture_quantiles(values: Tensor, weights: Tensor) -> Tensor:
    """Quantiles ``(C, Q)`` of the mixture of members' distributions ``(M, C, Q)`` with ``weights`` ``(M,)``.

    A quantile of the mixture lies between the members' smallest and largest of its level. Within that bracket Newton
    steps alternate with bisection until the mixture's distribution function is the level to 1e-10, or the bracket is
    1e-10 of the distribution's range, as it is about an atom.
    """
    members = Predictive(values)
    knots, levels = members._knots(), members.levels
    tails = torch.stack(Predictive._tails_of(knots, levels))
    low, high = members.values.amin(0), members.values.amax(0)
    room = 1e-10 * (high[:, -1:] - low[:, :1]).clamp(min=1e-12)
    low, high = low - room, high + room
    result = torch.tensordot(weights, members.values, dims=1)
    active = torch.arange(len(result))
    for turn in range(2 * BISECTIONS):
        x = result[active]
        mass, density = torch.zeros_like(x), torch.zeros_like(x)
        for weight, member, tail in zip(weights.tolist(), knots, tails.unbind(1), strict=True):
            of_member = _mass_and_density(member[active], tail[:, active], levels, x)
            mass, density = mass + weight * of_member[0], density + weight * of_member[1]
        miss = mass - levels
        low[active] = torch.where(miss < 0, x, low[active])
        high[active] = torch.where(miss < 0, high[active], x)
        left, right = low[active], high[active]
        done = (miss.abs() <= 1e-10) | (right - left <= 4 * room[active])
        newton, middle = x - miss / density.clamp(min=1e-300), (left + right) / 2
        trusted = (newton > left) & (newton < right)
        if turn % 2:  # a Newton step that is already near stays; bisection is for the others
            trusted &= (newton - x).abs() < 0.1 * (right - left)
        step = torch.where(trusted, newton, middle)
        result[active] = torch.where(done, x, step)
        active = active[~done.all(-1)]
        if not len(active):
            break
    return result


def _mass_and_density(knots: Tensor, tails: Tensor, levels: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distribution function and density, ``(C, K)`` each, of one member's ``knots`` ``(C, Q)`` at ``x`` ``(C, K)``.

    As `Predictive.cdf`, for many points a distribution; ``tails`` ``(2, C)`` are the scales of its exponential tails.
    """
    cell = torch.searchsorted(knots, x).clamp(1, knots.shape[-1] - 1)
    left = knots.gather(-1, cell - 1)
    slope = levels.diff()[cell - 1] / (knots.gather(-1, cell) - left)
    mass = levels[cell - 1] + slope * (x - left)
    lower, upper = tails[0][:, None], tails[1][:, None]
    below = levels[0] * torch.exp(((x - knots[:, :1]) / lower).clamp(max=0.0))
    above = (1 - levels[-1]) * torch.exp(((knots[:, -1:] - x) / upper).clamp(max=0.0))
    is_below, is_above = x < knots[:, :1], x > knots[:, -1:]
    mass = torch.where(is_below, below, torch.where(is_above, 1 - above, mass))
    return mass, torch.where(is_below, below / lower, torch.where(is_above, above / upper, slope))


def decompose(values: Tensor, weights: Tensor, passes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Aleatoric ``E[Var]`` and epistemic ``Var[E]`` variance, ``(...)`` each, of members ``(M, ..., Q)``.

    Law of total variance over members drawn with ``weights`` ``(M,)``; both in squared units of the target. Where
    members are themselves mixtures of MC dropout passes, ``passes`` ``(M, 2, ...)`` has each one's own split: the
    variance between the passes of a member is epistemic too.
    """
    mean, variance = Predictive(values).moments()
    weights = weights.to(torch.float64)
    average = torch.tensordot(weights, mean, dims=1)
    epistemic = torch.tensordot(weights, (mean - average) ** 2, dims=1)
    if passes is None:
        return torch.tensordot(weights, variance, dims=1), epistemic
    aleatoric, within = torch.tensordot(weights, passes.to(torch.float64), dims=1)
    return aleatoric, epistemic + within


def greedy_weights(values: Members, target: Tensor, rounds: int | None = None) -> Tensor:
    """Member weights ``(M,)`` by greedy selection with replacement (Caruana et al., 2004) on the pinball loss.

    ``values`` ``(M, n, H, Q)``, of which `ROWS` windows are asked for at a time, ``target`` ``(n, H)``. Members are added
    one at a time to a quantile average, each time the one that lowers the loss most; a member's weight is its share of the
    picks. Starting from every member once and picking as many again (``rounds``) keeps half of the weight even, so that it
    does not rest on the luck of one fold: on later folds of Chicago, M4 hourly and ETTh1 that is never far from the better
    of even and greedy.
    """
    count, levels, picked = values.shape[0], torch.tensor(LEVELS, dtype=torch.float64), list[int]()
    for _ in range(count if rounds is None else rounds):
        losses = torch.zeros(count, dtype=torch.float64)
        for start in range(0, len(target), ROWS):
            part = values[:, start : start + ROWS].to(torch.float64)
            truth, total = target[start : start + ROWS].to(torch.float64), part.sum(0)
            for index in picked:
                total = total + part[index]
            size = count + len(picked) + 1
            losses += torch.stack([pinball_loss((total + member) / size, truth, levels).sum() for member in part])
        picked.append(int((losses / target.numel()).argmin()))
    counts = torch.ones(count, dtype=torch.float64) + torch.bincount(torch.tensor(picked, dtype=torch.long), minlength=count)
    return counts / counts.sum()
