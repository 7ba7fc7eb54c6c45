"""Whether a map keeps how points lie as a whole: distances, and what another draw would have shown."""

from __future__ import annotations

import torch
from torch import Tensor

from models.uncertainty.scores import spearman

PAIRS = 20_000


def distance_correlation(source: Tensor, mapped: Tensor, seed: int = 0, pairs: int = PAIRS) -> float:
    """Rank correlation (Spearman) of distances between points in their own space and on a map, in [-1, 1].

    ``source`` ``(n, D)`` and ``mapped`` ``(n, d)``; ``pairs`` random pairs are compared, all where there are no more. Near 0
    the distances on the map say nothing of those in truth. Raises ValueError for fewer than three points.
    """
    n = len(source)
    if n < 3:
        raise ValueError(f"{n} points have too few distances to rank")
    if n * (n - 1) // 2 <= pairs:
        first, second = torch.triu_indices(n, n, offset=1)
    else:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(n, (pairs,), generator=generator)
        second = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    distances = [(points[first] - points[second]).norm(dim=1) for points in (source.double(), mapped.double())]
    return spearman(*distances)


def procrustes_similarity(one: Tensor, other: Tensor) -> float:
    """How alike two maps ``(n, d)`` of the same points are once one is moved, turned, mirrored and stretched to fit, in [0, 1].

    It is 1 minus the disparity of Procrustes' analysis (Gower, 1975): with both maps centred and of unit norm, the square of
    the sum of the singular values of ``one^T other``. Raises ValueError where a map is a single place.
    """
    parts = []
    for points in (one.double(), other.double()):
        centred = points - points.mean(dim=0)
        norm = centred.norm()
        if not norm > 0:
            raise ValueError("all points of a map lie in one place, so it cannot be aligned with another")
        parts.append(centred / norm)
    return min(1.0, float(torch.linalg.svdvals(parts[0].T @ parts[1]).sum().square()))
