"""Where the bins of a categorical head lie: edges by mu-law companding or by quantiles of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["mu_law_bins", "mu_law_compress", "mu_law_expand", "normal_bins", "quantile_bins"]

LEAST_BINS = 4


def mu_law_compress(x: Tensor, mu: float) -> Tensor:
    """sign(x) log(1 + mu |x|) / log(1 + mu), from [-1, 1] onto itself, steep around zero.

    ITU-T G.711; van den Oord et al., "WaveNet" (2016), section 2.2, with mu = 255.
    """
    return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)


def mu_law_expand(y: Tensor, mu: float) -> Tensor:
    """The inverse of `mu_law_compress`: sign(y) ((1 + mu)^|y| - 1) / mu."""
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def mu_law_bins(bins: int, limit: float, mu: float) -> tuple[Tensor, Tensor]:
    """Bins of equal width after `mu_law_compress` of x / limit.

    Returns
    -------
    edges : float32 (bins - 1,)
        Between neighbouring bins; the first and the last bin are open.
    tails : float32 (2,)
        Mean excess beyond the first and the last edge, here the distance to -limit and limit.

    Raises
    ------
    ValueError
        If there are fewer than 4 bins, or `limit` or `mu` is not positive.
    """
    _check(bins)
    if limit <= 0 or mu <= 0:
        raise ValueError(f"limit and mu of mu-law bins must be positive, got {limit} and {mu}")
    grid = limit * mu_law_expand(torch.linspace(-1.0, 1.0, bins + 1, dtype=torch.float64), mu)
    tails = torch.stack([grid[1] - grid[0], grid[-1] - grid[-2]])
    return grid[1:-1].float(), tails.float()


def normal_bins(bins: int) -> tuple[Tensor, Tensor]:
    """Bins of equal probability under N(0, 1), where `quantile_bins` begins before it has data; as `mu_law_bins`."""
    _check(bins)
    edge = torch.special.ndtri(torch.arange(1, bins, dtype=torch.float64) / bins)
    density = torch.exp(-0.5 * edge[-1] ** 2) / math.sqrt(2.0 * math.pi)
    tail = density * bins - edge[-1]  # E[Z | Z > edge] - edge
    return edge.float(), tail.expand(2).float()


def quantile_bins(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Bins that hold equal shares of `values` (n,), with the mean excess of the data beyond the outer edges.

    Edges that coincide, where values repeat, are moved apart by 1e-5 of the range. Results as `mu_law_bins`.

    Raises
    ------
    ValueError
        If there are fewer than 4 bins, fewer values than bins, or a value that is not finite.
    """
    _check(bins)
    values = values.detach().flatten().double()
    if len(values) < bins or not bool(values.isfinite().all()):
        raise ValueError(f"{bins} quantile bins take at least as many finite values, got {int(values.isfinite().sum())}")
    values = values.sort().values
    position = torch.arange(1, bins, device=values.device, dtype=torch.float64) / bins * (len(values) - 1)
    below = position.long()
    edges = torch.lerp(values[below], values[(below + 1).clamp(max=len(values) - 1)], position - below)
    span = (values[-1] - values[0]).clamp(min=1e-6)
    ramp = 1e-5 * span * torch.arange(bins - 1, device=values.device)
    edges = (edges - ramp).cummax(0).values + ramp
    low, high = values[values < edges[0]], values[values > edges[-1]]
    excess = [(edges[0] - low).mean() if len(low) else span / bins, (high - edges[-1]).mean() if len(high) else span / bins]
    return edges.float(), torch.stack(excess).clamp(min=1e-5 * float(span)).float()


def _check(bins: int) -> None:
    if bins < LEAST_BINS:
        raise ValueError(f"a categorical head takes at least {LEAST_BINS} bins, got {bins}")
