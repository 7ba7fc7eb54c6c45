"""Whether one forecaster is better than another on the same windows: a paired bootstrap over blocks of time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Comparison(NamedTuple):
    """``change`` is the challenger's total loss over the champion's, less 1 (negative is better), with the bounds of its
    90 % bootstrap interval; ``better`` the share of resamples in which it is negative."""

    change: float
    lower: float
    upper: float
    better: float


def paired_block_bootstrap(
    champion: Tensor, challenger: Tensor, block: Tensor, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare losses ``(n,)`` of the same windows; ``block`` ``(n,)`` names the stretch of time of each (Kuensch, 1989).

    A block is drawn with all its windows and both losses of each, since windows of one stretch share weather and holidays
    and what is hard for one forecaster is hard for the other. Deterministic by ``seed``. Raises ValueError where losses
    differ in number or there are fewer than two blocks.
    """
    if not len(champion) == len(challenger) == len(block):
        raise ValueError(
            f"there are {len(champion)} and {len(challenger)} losses in {len(block)} blocks; each window has one of each"
        )
    names, index = torch.unique(block, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a block bootstrap takes at least two blocks; give a longer test fold")
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for row, losses in enumerate((champion, challenger)):
        sums[row].index_add_(0, index, losses.to(torch.float64))
    drawn = torch.randint(len(names), (resamples, len(names)), generator=torch.Generator().manual_seed(seed))
    old, new = sums[:, drawn].sum(-1)
    change = new / old - 1
    lower, upper = torch.quantile(change, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return Comparison(float(sums[1].sum() / sums[0].sum() - 1), lower, upper, float((change < 0).double().mean()))
