"""Bins of each series: the deciles of its training values, in which forecasts and truths become ordered categories."""

from __future__ import annotations

import numpy as np
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
    """Deciles ``(9,)`` float64 of ``values`` ``(n,)``, each half way to the next larger value, so that none lies on an edge."""
    ordered = np.sort(values.numpy())  # torch.quantile refuses more than 2^24 values, and torch sorts few values slowly
    lower = ordered[(DECILES * (len(ordered) - 1)).floor().long().numpy()]
    place, last = np.searchsorted(ordered, lower, side="right"), np.float64(ordered[-1])
    above = ordered[np.minimum(place, len(ordered) - 1)].astype(np.float64)
    above[place == len(ordered)] = last + 1e-6 * max(abs(last), 1.0)
    return torch.from_numpy((lower.astype(np.float64) + above) / 2)


def known(values: Tensor) -> Tensor:
    """The values that are not missing, ``(m,)``."""
    return values[~values.isnan()]
