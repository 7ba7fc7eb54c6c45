"""A residual block of dilated causal convolutions as matrix products that compute only what later steps read.

With x of the last steps of a sequence, time first, the block is

    h   = dropout(relu(W1 * x + b1))             two causal convolutions of one dilation
    out = relu(x + dropout(relu(W2 * h + b2)))

`causal_residual_reference` says so in torch's own operations. `causal_residual` gives the same values and gradients: with
time on the first axis a tap of a convolution is one product of contiguous memory, a dropped channel is a channel clamped
to zero, and the factor that dropout gives the others goes into the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.layers.full_precision import in_full_precision

__all__ = ["Convolution", "causal_residual", "causal_residual_reference", "keep_channels"]

Convolution = tuple[Tensor, Tensor, Tensor | None]
"""Weight ``(C, C, taps)``, bias ``(C,)`` and the channels that dropout keeps, bool ``(B, C)``; None keeps all."""


def keep_channels(batch: int, channels: int, probability: float, like: Tensor) -> Tensor | None:
    """Channels that dropout keeps, bool ``(batch, channels)``; the same draws as ``torch.nn.Dropout1d`` makes."""
    if probability == 0.0:
        return None
    return like.new_empty((batch, channels)).bernoulli_(1.0 - probability) > 0


def causal_residual_reference(
    x: Tensor, first: Convolution, second: Convolution, dilation: int, wanted: int, factor: float = 1.0
) -> Tensor:
    """What `causal_residual` computes, by torch's own operations and gradients."""
    y = x.permute(1, 2, 0)
    for weight, bias, kept in (first, second):
        past = (weight.shape[2] - 1) * dilation
        y = functional.relu(functional.conv1d(functional.pad(y, (past, 0)), weight, bias, dilation=dilation))
        if kept is not None:
            y = y * kept[..., None] * factor
    return functional.relu(x + y.permute(2, 0, 1))[len(x) - wanted :]


def causal_residual(
    x: Tensor,
    first: Convolution,
    second: Convolution,
    dilation: int,
    wanted: int,
    factor: float = 1.0,
    rectified: bool = False,
) -> Tensor:
    """The block's last ``wanted`` outputs ``(wanted, B, C)`` from x ``(T, B, C)``; differentiable once.

    Parameters
    ----------
    x : Tensor
        The last T steps; what lies before them counts as zero.
    first, second : Convolution
        Of ``dilation``.
    wanted : int
        From 1 to T.
    factor : float
        Of the channels that dropout keeps, 1 / (1 - probability).
    rectified : bool
        x is itself an output of this function, hence not negative, and neither is the sum that the last relu is taken of.
        Where x is zero its gradient then is right only after the relu that made it.
    """
    return in_full_precision(_CausalResidual, x.device, x, *first, *second, dilation, wanted, factor, rectified)


def _taps(weight: Tensor, dilation: int, available: int, wanted: int) -> Iterator[tuple[int, slice, slice]]:
    """(tap, its outputs, its inputs), the newest tap first: the last ``wanted`` outputs of ``available`` inputs."""
    before = available - wanted
    for back, tap in enumerate(reversed(range(len(weight)))):
        start = max(0, back * dilation - before)
        if start < wanted:
            yield tap, slice(start, wanted), slice(start + before - back * dilation, available - back * dilation)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, wanted: int, factor: float) -> Tensor:
    """bias + factor W * x, for W ``(taps, C, C)``: one product a tap."""
    out = x.new_empty((wanted, x.shape[1], weight.shape[2]))
    for index, (tap, outputs, inputs) in enumerate(_taps(weight, dilation, len(x), wanted)):
        part = out[outputs].flatten(0, 1)
        torch.addmm(part if index else bias, x[inputs].flatten(0, 1), weight[tap], alpha=factor, out=part)
    return out


def _convolve_back(
    x: Tensor, weight: Tensor, gradient: Tensor, dilation: int, factor: float, to_x: Tensor, fresh: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of W and bias, factor times what ``gradient`` and x give; adds that of x, scaled likewise, to ``to_x``.

    Where that is ``fresh``, memory that holds nothing yet, it is written.
    """
    to_weight = torch.zeros_like(weight)
    if fresh:
        to_x[: len(x) - len(gradient)] = 0.0
    for tap, outputs, inputs in _taps(weight, dilation, len(x), len(gradient)):
        above, below = gradient[outputs].flatten(0, 1), to_x[inputs].flatten(0, 1)
        torch.mm(x[inputs].flatten(0, 1).t(), above, out=to_weight[tap])
        below.addmm_(above, weight[tap].t(), beta=0.0 if fresh else 1.0, alpha=factor)
        fresh = False
    return to_weight.mul_(factor), gradient.sum((0, 1)).mul_(factor)


def _rectify(values: Tensor, kept: Tensor | None) -> Tensor:
    """Relu, and zero in the channels that are not kept, in place."""
    if kept is None:
        return values.relu_()
    highest = torch.where(kept, torch.inf, 0.0).to(values.dtype)
    return torch.clamp(values, torch.zeros_like(highest), highest, out=values)


def _where_positive(gradient: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """``gradient`` where ``values`` are above zero, else zero."""
    result = torch.empty_like(gradient) if out is None else out
    return torch.ops.aten.threshold_backward.grad_input(gradient, values, 0.0, grad_input=result)


class _CausalResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first_weight: Tensor,
        first_bias: Tensor,
        first_kept: Tensor | None,
        second_weight: Tensor,
        second_bias: Tensor,
        second_kept: Tensor | None,
        dilation: int,
        wanted: int,
        factor: float,
        rectified: bool,
    ) -> Tensor:
        x = x.contiguous()
        first, second = (weight.permute(2, 1, 0).contiguous() for weight in (first_weight, second_weight))
        scales = [1.0 if kept is None else factor for kept in (first_kept, second_kept)]
        middle = min(len(x), wanted + (len(second) - 1) * dilation)
        inner = _rectify(_convolve(x, first, first_bias, dilation, middle, 1.0), first_kept)
        outer = _rectify(_convolve(inner, second, second_bias, dilation, wanted, scales[0]), second_kept)
        out = torch.add(x[len(x) - wanted :], outer, alpha=scales[1])
        if not rectified:
            out.relu_()
        ctx.save_for_backward(x, inner, outer, None if rectified else out, first, second)
        ctx.dilation, ctx.scales = dilation, scales
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, outer, out, first, second = ctx.saved_tensors
        dilation, (first_scale, second_scale) = ctx.dilation, ctx.scales
        gradient = gradient.contiguous() if out is None else _where_positive(gradient.contiguous(), out)
        before = len(x) - len(gradient)
        to_x = torch.empty_like(x)
        to_x[:before] = 0.0
        to_x[before:] = gradient
        # dropout's factors are left to the products, and inner is stored without its own
        to_outer = _where_positive(gradient, outer)
        to_inner = torch.empty_like(inner)
        to_second, to_second_bias = _convolve_back(inner, second, to_outer, dilation, second_scale, to_inner, True)
        to_inner = _where_positive(to_inner, inner, out=to_inner)
        to_first, to_first_bias = _convolve_back(x, first, to_inner, dilation, first_scale, to_x, False)
        to_second.mul_(first_scale)
        weights = (to_first.permute(2, 1, 0), to_first_bias, None, to_second.permute(2, 1, 0), to_second_bias, None)
        return (to_x, *weights, None, None, None, None)
