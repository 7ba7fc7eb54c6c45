"""Sum of many small gated residual networks of one number each, in a few passes over memory that fits the cache.

With x_v one number, network v of the Temporal Fusion Transformer's variable selection is

    h = dropout(W2 ELU(a x + c) + b2)            two linear layers; a, c fold the embedding of x into the first
    z = GLU(G [h; 1]) + K [1; first; second]     gate, and a skip connection that is a product with three rows
    output = sum_v w_v (gamma_v normalise(z) + beta_v)

`gated_sum_reference` says so in torch's own operations; `gated_sum` gives the same values and gradients, and runs
through the columns in blocks that stay in the processor's cache.
Arrays are feature-major (variables, entries, N), so that every elementwise pass and every reduction over entries runs
along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.layers.full_precision import in_full_precision

__all__ = ["EPSILON", "gated_sum", "gated_sum_reference"]

EPSILON = 1e-5
"""Added to the variance by every LayerNorm."""

BLOCK = 512
"""Columns of N a block on a CPU: one or two megabytes an array for tens of variables."""


def gated_sum_reference(
    x: Tensor,
    inner: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    factors: Tensor | None,
    gate: Tensor,
    skip: tuple[Tensor, Tensor],
    matrix: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Tensor,
) -> Tensor:
    """What `gated_sum` computes, by torch's own operations and gradients."""
    hidden = functional.elu(inner[..., :1] * x[:, None] + inner[..., 1:])
    hidden = outer @ hidden + outer_bias[..., None]
    if factors is not None:
        hidden = hidden * factors
    gated = functional.glu(gate[..., :-1] @ hidden + gate[..., -1:], dim=1)
    z = gated + matrix @ torch.stack([torch.ones_like(x), *skip], dim=1)
    deviation = z - z.mean(1, keepdim=True)
    normal = deviation / (deviation.square().mean(1, keepdim=True) + EPSILON).sqrt()
    return ((norm_weight[..., None] * normal + norm_bias[..., None]) * weights[:, None]).sum(0).t()


def gated_sum(
    x: Tensor,
    inner: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    factors: Tensor | None,
    gate: Tensor,
    skip: tuple[Tensor, Tensor],
    matrix: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Tensor,
) -> Tensor:
    """Weighted sum of R networks' outputs ``(N, output)``; differentiable once.

    Parameters
    ----------
    x : Tensor
        The numbers, ``(R, N)``.
    inner : Tensor
        Columns a and c, ``(R, hidden, 2)``.
    outer, outer_bias : Tensor
        W2 and b2, ``(R, hidden, hidden)`` and ``(R, hidden)``.
    factors : Tensor or None
        Dropout of h, ``(R, hidden, N)`` of zeros and 1 / keep; None for no dropout.
    gate : Tensor
        G, ``(R, 2 output, hidden + 1)``, its last column the bias; rows are values, then gates.
    skip : pair of Tensor
        The rows first and second, ``(R, N)`` each.
    matrix : Tensor
        K, ``(R, output, 3)``.
    norm_weight, norm_bias : Tensor
        gamma and beta of each network's LayerNorm, ``(R, output)``.
    weights : Tensor
        w, ``(R, N)``.
    """
    inputs = (x, *skip, factors, inner, outer, outer_bias, gate, matrix, norm_weight, norm_bias, weights)
    return in_full_precision(_GatedSum, x.device, *inputs).t()


class _Block(NamedTuple):
    """A block's intermediate values: entries of h and z are on the middle axis."""

    active: Tensor
    hidden: Tensor
    rows: Tensor
    value: Tensor
    opening: Tensor
    normal: Tensor
    inverse: Tensor


def _block(
    part: slice,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    factors: Tensor | None,
    inner: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    gate: Tensor,
    matrix: Tensor,
) -> _Block:
    """Everything up to the normalised z for the columns ``part``."""
    number = x[:, None, part]
    one = torch.ones_like(number)
    active = functional.elu_(torch.baddbmm(inner[..., 1:], inner[..., :1], number))
    hidden = torch.baddbmm(outer_bias[..., None], outer, active)
    if factors is not None:
        hidden *= factors[..., part]
    hidden = torch.cat([hidden, one], dim=1)
    rows = torch.cat([one, first[:, None, part], second[:, None, part]], dim=1)
    value, opening = (gate @ hidden).chunk(2, dim=1)
    opening.sigmoid_()
    z = (value * opening).baddbmm_(matrix, rows)
    z -= z.mean(1, keepdim=True)
    inverse = z.square().mean(1, keepdim=True).add_(EPSILON).rsqrt_()
    z *= inverse
    return _Block(active, hidden, rows, value, opening, z, inverse)


class _GatedSum(torch.autograd.Function):
    """Keeps its arguments alone; the backward pass computes each block's intermediate values again.

    That costs less than writing them to fresh memory, of which they would need tens of megabytes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        second: Tensor,
        factors: Tensor | None,
        inner: Tensor,
        outer: Tensor,
        outer_bias: Tensor,
        gate: Tensor,
        matrix: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weights: Tensor,
    ) -> Tensor:
        arguments = (x, first, second, factors, inner, outer, outer_bias, gate, matrix)
        ctx.save_for_backward(*arguments, norm_weight, norm_bias, weights)
        result = x.new_empty((norm_weight.shape[1], x.shape[1]))
        for part in _parts(x):
            normal, weight = _block(part, *arguments).normal, weights[:, part]
            normal *= weight[:, None]
            normal *= norm_weight[..., None]
            result[:, part] = normal.sum(0).addmm_(norm_bias.t(), weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *arguments, norm_weight, norm_bias, weights = ctx.saved_tensors
        x, _, _, factors, inner, outer, outer_bias, gate, matrix = arguments
        networks, width = norm_weight.shape
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_first, to_second, to_weights = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        to_inner, to_outer, to_outer_bias = map(torch.zeros_like, (inner, outer, outer_bias))
        to_norm_weight, to_norm_bias = torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)
        to_gate, to_matrix = (each.new_zeros((networks, each.shape[2], each.shape[1])) for each in (gate, matrix))
        for part in _parts(x):
            active, hidden, rows, value, opening, normal, inverse = _block(part, *arguments)
            above, weight = gradient[:, part].contiguous(), weights[:, None, part]
            # output = sum_v w (gamma normal + beta)
            product = normal * above
            along = torch.bmm(norm_weight[:, None], product)
            to_weights[:, part] = torch.addmm(along[:, 0], norm_bias, above)
            to_norm_weight += product.mul_(weight).sum(2)
            to_norm_bias.addmm_(weight[:, 0], above.t())
            # dz = inverse (dn - mean(dn) - normal mean(dn normal)), with dn = w gamma above
            to_z = torch.mul(norm_weight[..., None], above, out=product)
            to_z -= torch.mm(norm_weight, above)[:, None] / width
            to_z -= normal.mul_(along.mul_(1.0 / width))
            to_z *= inverse * weight
            # z = value opening + K rows; products with the longer factor last are the quicker ones
            to_matrix.baddbmm_(rows, to_z.transpose(1, 2))
            to_rows = torch.bmm(matrix[..., 1:].transpose(1, 2), to_z)
            to_first[:, part], to_second[:, part] = to_rows.unbind(1)
            to_gates = torch.empty((networks, 2 * width, above.shape[1]), dtype=x.dtype, device=x.device)
            to_value, to_opening = to_gates.chunk(2, dim=1)
            torch.mul(to_z, opening, out=to_value)
            torch.mul(value, opening.neg_().add_(1.0), out=to_opening).mul_(to_value)
            to_gate.baddbmm_(hidden, to_gates.transpose(1, 2))
            # h = factors (W2 active + b2), and ELU'(u) = min(ELU(u) + 1, 1)
            to_hidden = torch.bmm(gate[..., :-1].transpose(1, 2), to_gates)
            if factors is not None:
                to_hidden *= factors[..., part]
            to_outer.baddbmm_(to_hidden, active.transpose(1, 2))
            to_outer_bias += to_hidden.sum(2)
            to_active = torch.bmm(outer.transpose(1, 2), to_hidden)
            to_active *= active.add_(1.0).clamp_(max=1.0)
            to_inner += torch.stack([torch.bmm(x[:, None, part], to_active.transpose(1, 2))[:, 0], to_active.sum(2)], dim=2)
            if to_x is not None:
                to_x[:, part] = torch.bmm(inner[..., :1].transpose(1, 2), to_active)[:, 0]
        to_gate, to_matrix = to_gate.transpose(1, 2), to_matrix.transpose(1, 2)
        before = (to_x, to_first, to_second, None, to_inner, to_outer, to_outer_bias, to_gate, to_matrix)
        return (*before, to_norm_weight, to_norm_bias, to_weights)


def _parts(x: Tensor) -> Iterator[slice]:
    """Blocks of columns that fit a CPU's cache; elsewhere a single one."""
    count = x.shape[1]
    size = BLOCK if x.device.type == "cpu" else count
    return (slice(start, start + size) for start in range(0, count, size))
