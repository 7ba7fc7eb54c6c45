"""Categorical head: a softmax over bins of the target, free of any assumed shape."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.base import Head, on_axes_of, uniform_like
from models.heads.bins import mu_law_bins, normal_bins, quantile_bins

__all__ = ["CategoricalHead"]

BinKind = Literal["mu_law", "quantile"]

LOG2E = 1.0 / math.log(2.0)

SPREAD = 60.0
"""Logits that differ by less, in units of log 2, may be exponentiated together: no row's masses vanish in float32."""


class CategoricalHead(Head):
    """Softmax over V bins of the window-scaled target less its base; uniform within a bin, exponential beyond the outer two.

    Parameters are the V logits and then the base, P = V + 1, so `logits(parameters)` is what temperature and energy scores
    work on. The open outer bins have the mean excess `tails`, so every value has a density.

    Parameters
    ----------
    width : int
        Of the hidden state.
    bins : int
        V, at least 4.
    kind : {"mu_law", "quantile"}
        Bins by companding of [-limit, limit], or of equal probability: under N(0, 1) until `fit` has seen data.
    limit, mu : float
        Of the mu-law bins: their outermost edges in the window's own scale, and the companding constant.

    Raises
    ------
    ValueError
        If there are fewer than 4 bins, `kind` does not exist, or `limit` or `mu` is not positive.

    van den Oord et al., "WaveNet" (2016), section 2.2.
    """

    edges: Tensor
    tails: Tensor

    def __init__(self, width: int, bins: int = 64, kind: BinKind = "mu_law", limit: float = 6.0, mu: float = 255.0) -> None:
        super().__init__()
        if kind not in ("mu_law", "quantile"):
            raise ValueError(f"'{kind}' is not a kind of bins; there are mu_law and quantile")
        self.bins, self.kind = bins, kind
        edges, tails = mu_law_bins(bins, limit, mu) if kind == "mu_law" else normal_bins(bins)
        self.register_buffer("edges", edges)
        self.register_buffer("tails", tails)
        self.project = nn.Linear(width, bins)
        nn.init.normal_(self.project.weight, std=0.02)
        with torch.no_grad():  # begin near N(0, 1) about the base rather than with equal shares of unequal bins
            inner = torch.special.ndtr(edges)
            share = torch.cat([inner[:1], inner.diff(), 1.0 - inner[-1:]])
            self.project.bias.copy_(share.clamp(min=1e-4).log())

    def fit(self, values: Tensor) -> None:
        """Place quantile bins by `values` (n,), window-scaled targets less their base; mu-law bins stay."""
        if self.kind == "quantile":
            edges, tails = quantile_bins(values, self.bins)
            self.edges.copy_(edges)
            self.tails.copy_(tails)
            with torch.no_grad():
                self.project.bias.zero_()

    def forward(self, hidden: Tensor, base: Tensor | None = None) -> Tensor:
        logits = self.project(hidden)
        base = logits.new_zeros(logits.shape[:-1]) if base is None else base
        return torch.cat([logits, base[..., None]], dim=-1)

    def logits(self, parameters: Tensor) -> Tensor:
        """(B, H, V)."""
        return parameters[..., :-1]

    def loss(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Cross-entropy of the bin."""
        index = torch.bucketize(self._residual(parameters, target, loc, scale), self.edges)
        return -self.logits(parameters).log_softmax(-1).gather(-1, index[..., None])[..., 0]

    def log_prob(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        residual = self._residual(parameters, target, loc, scale)
        index = torch.bucketize(residual, self.edges)
        mass = self.logits(parameters).log_softmax(-1).gather(-1, index[..., None])[..., 0]
        beyond = torch.maximum(self.edges[0] - residual, residual - self.edges[-1]).clamp(min=0.0)
        width = self._widths()[index]
        return mass - beyond / width - width.log() - on_axes_of(scale, mass).log()

    def cdf(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        residual = self._residual(parameters, target, loc, scale).double()
        index = torch.bucketize(residual, self.edges.double())
        edges, widths, mass, cumulative = self._distribution(parameters)
        inner = (index - 1).clamp(0, self.bins - 3)
        share = ((residual - edges[inner]) / widths[inner + 1]).clamp(0.0, 1.0)
        share = torch.where(index == 0, torch.exp(((residual - edges[0]) / widths[0]).clamp(max=0.0)), share)
        share = torch.where(index == self.bins - 1, -torch.expm1(((edges[-1] - residual) / widths[-1]).clamp(max=0.0)), share)
        mass, cumulative = (part.gather(-1, index[..., None])[..., 0] for part in (mass, cumulative))
        return (cumulative - mass * (1.0 - share)).clamp(0.0, 1.0).to(parameters.dtype)

    def quantiles(self, parameters: Tensor, levels: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        level = levels.to(parameters.device, torch.float64).expand(*parameters.shape[:-1], -1)
        values = self._invert(parameters, level).to(parameters.dtype) + parameters[..., -1:]
        return values * on_axes_of(scale, values) + on_axes_of(loc, values)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each (window, step), by inversion of the distribution function."""
        uniform = uniform_like(parameters[..., -1], generator)
        values = self._invert(parameters, uniform[..., None])[..., 0] + parameters[..., -1]
        return values * on_axes_of(scale, values) + on_axes_of(loc, values)

    @torch.no_grad()
    def draw(
        self, hidden: Tensor, base: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """`sample` in two stages: a group of bins by its mass, then a bin of the group."""
        uniform = uniform_like(base, generator)
        logits = torch.mm(hidden, self.project.weight.t() * LOG2E).add_(self.project.bias * LOG2E)
        low, high = torch.aminmax(logits)
        mass = logits.sub_(high if float(high - low) < SPREAD else logits.amax(1, keepdim=True)).exp2_()
        size = next(size for size in (8, 4, 2, 1) if self.bins % size == 0)
        groups, rows = self.bins // size, torch.arange(len(mass), device=mass.device)
        upper = torch.ones((groups, groups), dtype=mass.dtype, device=mass.device).triu_()
        cumulative = torch.mm(mass, upper.repeat_interleave(size, 0))
        total = cumulative[:, -1]
        level = uniform * total
        group = (cumulative[:, :-1] < level[:, None]).sum(1)
        before = functional.pad(cumulative, (1, 0)).flatten()[rows * (groups + 1) + group]
        inside = mass.view(-1, size).index_select(0, rows * groups + group)
        cumulative = torch.mm(inside, upper[:1, :1].expand(size, size).triu())
        within = level - before
        place = (cumulative[:, :-1] < within[:, None]).sum(1)
        chosen = rows * size + place
        mass, cumulative = inside.flatten()[chosen].clamp(min=torch.finfo(mass.dtype).tiny), cumulative.flatten()[chosen]
        index = group * size + place
        share = (1.0 - (cumulative - within) / mass).clamp(0.0, 1.0)
        beyond = (1.0 - uniform) * total / mass
        values = self._place(index, share, beyond, self.edges.to(mass), self._widths().to(mass)) + base
        return values * scale + loc

    def mean_variance(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        edges, widths, mass, _ = self._distribution(parameters)
        inner = 0.5 * (edges[1:] + edges[:-1])
        centre = torch.cat([edges[:1] - widths[:1], inner, edges[-1:] + widths[-1:]])
        within = widths.square() / 12.0
        within[[0, -1]] *= 12.0  # the variance of an exponential is its squared mean
        mean = (mass * centre).sum(-1)
        variance = (mass * (within + (centre - mean[..., None]).square())).sum(-1)
        factor = on_axes_of(scale.double(), mean)
        mean = (mean + parameters[..., -1].double()) * factor + on_axes_of(loc.double(), mean)
        return mean.to(parameters.dtype), (variance * factor.square()).to(parameters.dtype)

    def _residual(self, parameters: Tensor, target: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """What is binned, (B, H): the target in the window's own scale, less its base."""
        return (target - on_axes_of(loc, target)) / on_axes_of(scale, target) - parameters[..., -1]

    def _widths(self) -> Tensor:
        """Widths of the inner bins between the mean excesses of the outer two, (V,)."""
        return torch.cat([self.tails[:1], self.edges.diff(), self.tails[1:]])

    def _distribution(self, parameters: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges (V - 1,), widths (V,), probabilities and their running sums (B, H, V)."""
        mass = self.logits(parameters).detach().to(dtype).softmax(-1)
        return self.edges.to(dtype), self._widths().to(dtype), mass, mass.cumsum(-1)

    def _invert(self, parameters: Tensor, level: Tensor) -> Tensor:
        """Residual quantiles (B, H, Q) at level (B, H, Q), in level's dtype."""
        edges, widths, mass, cumulative = self._distribution(parameters, level.dtype)
        index = torch.searchsorted(cumulative, level.contiguous()).clamp(max=self.bins - 1)
        tiny = torch.finfo(level.dtype).tiny
        mass, cumulative = mass.gather(-1, index), cumulative.gather(-1, index)
        share = (1.0 - (cumulative - level) / mass.clamp(min=tiny)).clamp(0.0, 1.0)
        return self._place(index, share, (1.0 - level) / mass.clamp(min=tiny), edges, widths)

    def _place(self, index: Tensor, share: Tensor, beyond: Tensor, edges: Tensor, widths: Tensor) -> Tensor:
        """Value in bin ``index``, below which lies ``share`` of the bin's mass and above which ``beyond`` of it.

        Both say the same, but near 1 it is ``beyond`` that keeps its digits.
        """
        tiny = torch.finfo(share.dtype).tiny
        inner = (index - 1).clamp(0, self.bins - 3)
        value = edges[inner] + share * widths[inner + 1]
        below = edges[0] + widths[0] * share.clamp(min=tiny).log()
        above = edges[-1] - widths[-1] * beyond.clamp(tiny, 1.0).log()
        return torch.where(index == 0, below, torch.where(index == self.bins - 1, above, value))
