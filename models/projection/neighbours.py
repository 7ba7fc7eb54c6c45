"""Whether a map keeps who is near whom: trustworthiness, continuity and neighbourhood preservation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 256  # points whose distances to all others are held at once


class Neighbourhoods(NamedTuple):
    """All three are 1 for a map that keeps every neighbourhood, and are means over the points asked about.

    ``trustworthiness`` falls with neighbours on the map that are not neighbours in truth, ``continuity`` with true neighbours
    that the map tears apart, and ``preservation`` is the share of each point's true neighbours that are neighbours on the map.
    """

    trustworthiness: float
    continuity: float
    preservation: float


def neighbourhoods(source: Tensor, mapped: Tensor, k: int, rows: Tensor | None = None) -> Neighbourhoods:
    """Compare the ``k`` nearest neighbours of points in their own space and on a map (Venna and Kaski, 2001).

    Trustworthiness is ``1 - 2 / (n k (2n - 3k - 1)) * sum_i sum_j max(0, r(i, j) - k)`` over the map's neighbours j of each
    point i, with r(i, j) the rank of j among the neighbours of i in truth; continuity is the same with the two spaces
    exchanged. A mean over a random sample of points estimates that over all of them without bias.

    Parameters
    ----------
    source : ``(n, D)`` the points
    mapped : ``(n, d)`` the same points on the map
    k : size of a neighbourhood, 1 <= k < n / 2
    rows : int64 ``(m,)`` the points asked about; all by default. Their neighbours are always sought among all.

    Raises ValueError for a ``k`` out of range, or spaces of different numbers of points.
    """
    n = len(source)
    if len(mapped) != n:
        raise ValueError(f"{n} points in truth and {len(mapped)} on the map are not the same points")
    if not 1 <= k < n / 2:
        raise ValueError(f"k is {k}; with {n} points it must be at least 1 and below {n / 2:g}")
    rows = torch.arange(n) if rows is None else rows
    high, low = (_centred(points) for points in (source, mapped))
    penalties, kept = torch.zeros(2, dtype=torch.float64), 0.0
    for chunk in rows.split(CHUNK):
        true, shown = squared_distances(high, chunk), squared_distances(low, chunk)
        near_true, near_shown = (each.topk(k, dim=1, largest=False).indices for each in (true, shown))
        penalties[0] += _excess_rank(true, near_shown, k)
        penalties[1] += _excess_rank(shown, near_true, k)
        kept += float((near_true[:, :, None] == near_shown[:, None, :]).sum()) / k
    trust, continuity = (1 - 2 * penalties / (len(rows) * k * (2 * n - 3 * k - 1))).tolist()
    return Neighbourhoods(trust, continuity, kept / len(rows))


def chance_preservation(n: int, k: int) -> float:
    """The preservation that a map drawn at random reaches on average: a neighbour is kept by luck with k / (n - 1)."""
    return k / (n - 1)


def squared_distances(points: Tensor, rows: Tensor) -> Tensor:
    """Squared distances from ``rows`` to all ``points``, ``(m, n)``, infinite from a point to itself."""
    squares = points.square().sum(dim=1)
    distances = torch.addmm(squares[None, :] + squares[rows, None], points[rows], points.T, alpha=-2)
    distances[torch.arange(len(rows)), rows] = float("inf")
    return distances


def _excess_rank(distances: Tensor, neighbours: Tensor, k: int) -> float:
    """Sum of how far beyond ``k`` the ranks of ``neighbours`` ``(m, k)`` lie by ``distances`` ``(m, n)``."""
    total = 0
    for column in distances.gather(1, neighbours).T:
        rank = 1 + (distances < column[:, None]).sum(dim=1)
        total += int((rank - k).clamp(min=0).sum())
    return float(total)


def _centred(points: Tensor) -> Tensor:
    points = points.to(torch.float64)
    return points - points.mean(dim=0)
