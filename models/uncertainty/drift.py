"""Whether what arrives is still like what a model was judged on, and how far figures move by chance alone.

Windows of one stretch of time share weather and holidays, so that every limit counts blocks of time, or an effective
number of windows (`models.uncertainty.guarantee.effective_sample_size`), never windows as if they were independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 10
PART = 2**20
"""Values that are sorted into bins at a time."""


@dataclass(frozen=True)
class Population:
    """Where the values of a training fold lay: ``edges`` (K - 1,) of bins by their quantiles, ``counts`` (K,) and range."""

    edges: Tensor
    counts: Tensor
    low: float
    high: float
    mean: float
    deviation: float

    @classmethod
    def fit(cls, values: Tensor) -> Population:
        """Of values ``(n,)``, missing ones left out; values that repeat share a bin. ValueError where there is none."""
        ordered = np.sort(values[~values.isnan()].numpy())  # without as many places beside them, as torch's sort has
        if not len(ordered):
            raise ValueError("a population has no value")
        least, most = ordered[0], ordered[-1]
        edges = np.unique(ordered[np.arange(1, BINS) * len(ordered) // BINS])
        edges = edges[edges > least]
        if not len(edges):  # nine tenths and more are the least value: that one, and all others
            edges = ordered[np.searchsorted(ordered, least, side="right") :][:1]
        below = np.searchsorted(ordered, edges, side="left")
        counts = np.diff(below, prepend=0, append=len(ordered))  # `bin_counts` of values in order
        mean = float(ordered.mean(dtype=np.float64))
        spread = math.sqrt(float(np.square(ordered - mean, dtype=np.float64).mean()))
        first, second = (torch.from_numpy(each.astype(np.float64)) for each in (edges, counts))
        return cls(first, second, float(least), float(most), mean, spread if spread > 0 else 1.0)

    def stability(self, values: Tensor) -> float:
        """Population stability index of other values ``(n,)``; NaN where there is none.

        ``sum (q - p) log(q / p)`` over the shares p of the fold and q of ``values`` in each bin (Siddiqi, 2006), every bin
        counted half a value more, so that an empty one does not make it infinite.
        """
        counts = bin_counts(values, self.edges)
        if not len(self.edges) or not int(counts.sum()):
            return math.nan
        before, after = ((each + 0.5) / (each.sum() + 0.5 * len(each)) for each in (self.counts, counts))
        return float(((after - before) * torch.log(after / before)).sum())

    def stability_limit(self, n: int, alpha: float) -> float:
        """Stability index that n independent values of the same population exceed with probability ``alpha``.

        It is ``(1 / n + 1 / m)`` times a chi-square with K - 1 degrees of freedom (Yurdakul, 2018).
        """
        from scipy.stats import chi2

        if not len(self.edges) or n < 1:
            return math.inf
        return float(chi2.isf(alpha, len(self.edges)) * (1 / n + 1 / float(self.counts.sum())))

    def outside(self, values: Tensor) -> float:
        """Share of values ``(n,)`` below the least or above the largest of the fold; NaN where there is none."""
        values = values[~values.isnan()]
        beyond = (values < self.low) | (values > self.high)
        return float(beyond.double().mean()) if len(values) else math.nan

    def standardised(self, values: Tensor) -> Tensor:
        """In units of the fold's standard deviation from its mean, ``(n,)``."""
        return (values.to(torch.float64) - self.mean) / self.deviation

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {**vars(self), "edges": self.edges.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Population:
        edges, counts = (torch.tensor(state[name], dtype=torch.float64) for name in ("edges", "counts"))
        return cls(**{**state, "edges": edges, "counts": counts})


def bin_counts(values: Tensor, edges: Tensor) -> Tensor:
    """How many values ``(n,)`` lie in each of the K bins between ``edges`` (K - 1,), float64 ``(K,)``; NaN in none."""
    counts = torch.zeros(len(edges) + 1, dtype=torch.float64)
    for part in values.split(PART):
        part = part.to(torch.float64)
        places = torch.bucketize(part[~part.isnan()].contiguous(), edges, right=True)
        counts += torch.bincount(places, minlength=len(edges) + 1)
    return counts


def block_means(values: Tensor, block: Tensor) -> Tensor:
    """Mean of values ``(n,)`` in each stretch of time that ``block`` ``(n,)`` names, in order of time, ``(B,)``."""
    names, index = torch.unique(block, return_inverse=True)
    total = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, values.to(torch.float64))
    return total / torch.bincount(index, minlength=len(names))


def rise_limit(live: Tensor, reference: Tensor, alpha: float) -> float:
    """Mean of the live blocks ``(B,)`` that chance exceeds with probability ``alpha`` where they are like ``reference`` (R,).

    Student's two-sample t with one variance for both, which also takes a single live block; infinite where there are
    fewer than three blocks in all.
    """
    from scipy.stats import t

    live, reference = live.to(torch.float64), reference.to(torch.float64)
    n, m = len(live), len(reference)
    if n < 1 or m < 1 or n + m < 3:
        return math.inf
    squares = sum(float(((part - part.mean()) ** 2).sum()) for part in (live, reference))
    error = math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
    return float(reference.mean()) + float(t.isf(alpha, n + m - 2)) * error


def rate_limit(n: float, rate: float, alpha: float) -> float:
    """Share of n independent windows flagged that chance exceeds with probability ``alpha`` at true ``rate``."""
    from scipy.stats import binom

    count = max(1, int(n))
    return float(binom.isf(alpha, count, rate)) / count


def uniform_distance(pit: Tensor) -> tuple[float, float]:
    """Kolmogorov distance of probability integral transforms ``(...)`` from uniform, and the level where it is largest."""
    from scipy.stats import kstest

    found = kstest(pit.flatten().numpy(), "uniform")
    return float(found.statistic), float(found.statistic_location)


def distance_limit(n: float, alpha: float) -> float:
    """Kolmogorov distance that n independent uniform values exceed with probability ``alpha`` (Simard, L'Ecuyer, 2011)."""
    from scipy.stats import kstwo

    return float(kstwo.isf(alpha, max(1, int(n))))
