"""Reading the rows of small tables by code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["lookup_sum"]

DENSE = 128
"""Rows up to which a product with zeros and ones is quicker than a look-up, whose gradient has to sort the codes."""


def lookup_sum(codes: Tensor, table: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sum of C rows of ``table`` for each of N places, ``(N, width)``.

    Parameters
    ----------
    codes : Tensor
        int64 ``(N, C)``; no code twice in a row.
    table : Tensor
        ``(rows, width)``.
    weights : Tensor, optional
        ``(N, C)``; ones if left out.
    """
    if len(table) > DENSE:
        return functional.embedding_bag(
            codes, table, mode="sum", per_sample_weights=None if weights is None else weights.contiguous()
        )
    values = codes.new_ones(codes.shape, dtype=table.dtype) if weights is None else weights
    hot = values.new_zeros((len(codes), len(table))).scatter(1, codes, values)
    return torch.mm(hot, table)
