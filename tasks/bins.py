"""Bins of each series: the deciles of its training values, in which forecasts and truths become ordered categories."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.folds import claim
from tasks.prepare import Prepared

DECILES = torch.arange(1, 10, dtype=torch.float64) / 10
LEAST_VALUES = 10  # of a series, for deciles of its own


def series_edges(prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Edges between the bins of each series ``(n_series, 9)`` and of all together ``(9,)``, from the training fold.

    A series with fewer than ten training values gets those of all together.
    """
    claim("train", "fit feature statistics")
    panel = prepared.panel
    end = next(fold["end"] for fold in prepared.meta["folds"] if fold["name"] == "train")
    values = []
    for index, first in enumerate(prepared.meta["first_step"]):
        start, length = int(panel.offsets[index]), max(0, min(end - first, int(panel.observed[index])))
        values.append(known(panel.rows[start : start + length, 0]))
    shared = deciles(torch.cat(values))
    return torch.stack([deciles(each) if len(each) >= LEAST_VALUES else shared for each in values]), shared


def deciles(values: Tensor) -> Tensor:
    """Deciles ``(9,)`` of ``values`` ``(n,)``, each half way to the next larger value, so that none lies on an edge."""
    ordered = values.to(torch.float64).sort().values  # torch.quantile refuses more than 2^24 values
    lower = ordered[(DECILES * (len(ordered) - 1)).floor().long()]
    distinct = ordered.unique_consecutive()
    place = torch.searchsorted(distinct, lower) + 1
    beyond = distinct[-1] + 1e-6 * distinct[-1].abs().clamp(min=1.0)
    return (lower + torch.cat([distinct, beyond[None]])[place]) / 2


def known(values: Tensor) -> Tensor:
    """The values that are not missing, ``(m,)`` float64."""
    return values[~values.isnan()].to(torch.float64)
