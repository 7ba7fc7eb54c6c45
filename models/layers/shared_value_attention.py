"""Attention whose heads share their values, a few windows at a time, so that its scores never leave the cache.

For head h, with queries q, keys k and the one value v,

    weights_h = softmax(q_h k_h' / sqrt(width) where the mask allows),   read_h = weights_h v

`shared_value_attention_reference` says so in torch's own operations; `shared_value_attention` gives the same values and
gradients. Arrays inside are feature-major and scores have the read steps before the queries, (T, H): the products then
have their short side, the width of a head, in the place where it costs least, and sums over T run along contiguous memory.
The backward pass computes the weights again from their normalising constants (Dao et al., "FlashAttention", 2022,
section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers.full_precision import in_full_precision

__all__ = ["MASKED", "shared_value_attention", "shared_value_attention_reference"]

MASKED = -1e9
"""Score of a step that must not be attended to."""

SCORES = 200_000
"""Scores at a time on a CPU: two arrays of them fit its cache."""

LARGE = 60.0
"""Scores below it, in units of log 2, can be exponentiated as they are: neither 2^60 nor 2^-60 is near float32's limits."""

LOG2E = 1.0 / math.log(2.0)


def shared_value_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """What `shared_value_attention` computes, by torch's own operations and gradients, and the weights ``(B, heads, H, T)``."""
    batch, horizon, width = query.shape
    query = (query * (width // heads) ** -0.5).view(batch, horizon, heads, -1).transpose(1, 2)
    key = key.view(batch, -1, heads, width // heads).permute(0, 2, 3, 1)
    scores = query @ key + torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, MASKED)[:, None]
    weights = scores.softmax(dim=-1)
    return weights @ value[:, None], weights


def shared_value_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """What each head reads, ``(B, heads, H, W)``; differentiable once.

    Parameters
    ----------
    query, key : Tensor
        ``(B, H, heads * width)`` and ``(B, T, heads * width)``.
    value : Tensor
        ``(B, T, W)``, of all heads.
    mask : Tensor
        bool ``(1 or B, H, T)``, True where a step must not be read; no row may be True throughout.
    heads : int
    """
    return in_full_precision(_SharedValueAttention, query.device, query, key, value, mask, heads)


class _SharedValueAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
        (batch, horizon, joint), width = query.shape, value.shape[2]
        query = _split_heads(query * (LOG2E * (joint // heads) ** -0.5), heads)
        key, value = _split_heads(key, heads), value.transpose(1, 2).contiguous()
        penalty = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, MASKED).transpose(1, 2).contiguous()
        looks = query.device.type == "cpu"  # elsewhere a look would wait for the device
        ctx.first = int(mask.any(0).any(0).to(torch.int8).argmax()) if looks and len(mask) == 1 else 0
        read = query.new_empty((batch * heads, width, horizon))
        constant = query.new_empty((batch * heads, 1, horizon))
        small = looks and bool(_longest(query) * _longest(key) < LARGE)  # a bound of all scores, by Cauchy and Schwarz
        for rows, places in _parts(query, key, heads):
            scores = _scores(query[places], key[places], penalty, rows, heads, ctx.first)
            highest = None if small else _highest(scores)
            total = torch.exp2(scores if highest is None else scores.sub_(highest), out=scores).sum(1, keepdim=True)
            torch.bmm(_each_head(value[rows], heads), scores, out=read[places]).div_(total)
            torch.log2(total, out=constant[places])
            if highest is not None:
                constant[places] += highest
        ctx.save_for_backward(query, key, value, penalty, read, constant)
        ctx.heads = heads
        return read.view(batch, heads, width, horizon).transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, penalty, read, constant = ctx.saved_tensors
        heads: int = ctx.heads
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        gradient = gradient.transpose(2, 3).reshape(read.shape)
        along = (gradient * read).sum(1, keepdim=True)
        for rows, places in _parts(query, key, heads):
            above = gradient[places]
            weights = _scores(query[places], key[places], penalty, rows, heads, ctx.first)
            torch.exp2(weights.sub_(constant[places]), out=weights)
            of_values = torch.bmm(above, weights.transpose(1, 2))
            torch.sum(of_values.view(-1, heads, *of_values.shape[1:]), 1, out=to_value[rows])
            to_scores = torch.bmm(_each_head(value[rows], heads).transpose(1, 2), above)
            to_scores.sub_(along[places]).mul_(weights)
            torch.bmm(key[places], to_scores, out=to_query[places])
            torch.bmm(query[places], to_scores.transpose(1, 2), out=to_key[places])
        to_query *= query.shape[1] ** -0.5
        to_key *= 1.0 / LOG2E  # the query has its own factor already
        return _join_heads(to_query, heads), _join_heads(to_key, heads), to_value.transpose(1, 2), None, None


def _split_heads(values: Tensor, heads: int) -> Tensor:
    """``(n, steps, heads * width)`` -> ``(n * heads, width, steps)``, contiguous."""
    count, steps, width = values.shape
    return values.transpose(1, 2).contiguous().view(count * heads, width // heads, steps)


def _join_heads(values: Tensor, heads: int) -> Tensor:
    """The inverse of `_split_heads`, a view."""
    count, width, steps = values.shape
    return values.view(count // heads, heads * width, steps).transpose(1, 2)


def _each_head(value: Tensor, heads: int) -> Tensor:
    """``(n, W, T)`` -> ``(n * heads, W, T)``, the same for all heads."""
    return value[:, None].expand(-1, heads, -1, -1).flatten(0, 1)


def _scores(query: Tensor, key: Tensor, penalty: Tensor, rows: slice, heads: int, first: int) -> Tensor:
    """Scores ``(n * heads, T, H)`` in units of log 2; steps before ``first`` are masked nowhere."""
    scores = torch.bmm(key.transpose(1, 2), query)
    hidden = penalty if len(penalty) == 1 else penalty[rows]
    scores.view(-1, heads, *scores.shape[1:])[:, :, first:] += hidden[:, None, first:]
    return scores


def _longest(vectors: Tensor) -> Tensor:
    """Length of the longest of vectors ``(n, width, steps)``."""
    return vectors.square().sum(1).max().sqrt()


def _highest(scores: Tensor) -> Tensor:
    """``scores.amax(1, keepdim=True)``, several times quicker: one half against the other, as long as there are two."""
    while scores.shape[1] > 8:
        half = (scores.shape[1] + 1) // 2
        scores = torch.maximum(scores[:, :half], scores[:, -half:])
    return scores.amax(1, keepdim=True)


def _parts(query: Tensor, key: Tensor, heads: int) -> Iterator[tuple[slice, slice]]:
    """Windows whose scores fit a CPU's cache, and their places among windows times heads; elsewhere all at once."""
    batch = len(query) // heads
    size = max(1, SCORES // (heads * query.shape[2] * key.shape[2])) if query.device.type == "cpu" else batch
    for start in range(0, batch, size):
        stop = min(batch, start + size)
        yield slice(start, stop), slice(start * heads, stop * heads)
