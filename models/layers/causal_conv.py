"""Causal convolution over time: step t of the output sees the input up to t and nothing later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from models.layers.packed import PackedLinear

__all__ = ["CausalConv1d", "receptive_field"]


class CausalConv1d(nn.Module):
    """Dilated convolution padded on the left only, so the length is kept and nothing leaks from the future.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    kernel_size : int
        Taps; the last one reads the current step.
    dilation : int
        Steps between two taps.
    groups : int
        Channel groups; `in_channels` makes it depthwise.
    weight_norm : bool
        Reparametrise the kernel as direction and length (Salimans & Kingma 2016).

    Raises
    ------
    ValueError
        If `kernel_size` or `dilation` is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or dilation < 1:
            raise ValueError(f"kernel_size and dilation must be at least 1, got {kernel_size} and {dilation}")
        self.padding = (kernel_size - 1) * dilation
        convolution = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, groups=groups)
        self.convolution: nn.Module = parametrizations.weight_norm(convolution) if weight_norm else convolution
        self._taps: nn.Module | None = None

    @torch.no_grad()
    def freeze(self) -> None:
        """Compute what depends on the weights once and for all, for a copy of which they change no more."""
        given = cast(nn.Conv1d, self.convolution)
        if parametrize.is_parametrized(given):
            sizes = (given.in_channels, given.out_channels, given.kernel_size[0])
            plain = nn.Conv1d(*sizes, dilation=given.dilation[0], groups=given.groups).to(given.weight)
            plain.weight.copy_(given.weight)
            cast(Tensor, plain.bias).copy_(cast(Tensor, given.bias))
            self.convolution = plain.requires_grad_(False)
        if given.groups == 1:
            self._taps = PackedLinear(*self._tap_weights())

    def _tap_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight (out_channels, kernel_size in_channels), tap after tap, and bias, of one product with all taps."""
        convolution = cast(nn.Conv1d, self.convolution)
        return convolution.weight.transpose(1, 2).flatten(1), convolution.bias

    def _of_taps(self, taps: Tensor) -> Tensor:
        """Outputs (..., out_channels) from the inputs of all taps (..., kernel_size in_channels)."""
        return functional.linear(taps, *self._tap_weights()) if self._taps is None else cast(Tensor, self._taps(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, time) to (batch, out_channels, time)."""
        output: Tensor = self.convolution(functional.pad(x, (self.padding, 0)))
        return output

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Go on from the last (kernel_size - 1) dilation inputs, `past` (batch, in_channels, (kernel_size - 1) dilation).

        Returns the outputs (batch, out_channels, time) for x (batch, in_channels, time) and the past that follows. A past
        of zeros is the start of a series: then the outputs are those of `forward`.
        """
        window = torch.cat([past, x], dim=2)
        return self.convolution(window), window[:, :, window.shape[2] - self.padding :]

    def follow(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """`extend` for a short piece, by one matrix product; in place of the past that follows, all that was read.

        That is (batch, in_channels, (kernel_size - 1) dilation + time): the past after t steps begins at its t-th place.
        """
        window = torch.cat([past, x], dim=2)
        convolution = cast(nn.Conv1d, self.convolution)
        if convolution.groups != 1:
            return self.convolution(window), window
        time, (dilation,) = x.shape[2], convolution.dilation
        taps = torch.cat([window[:, :, tap : tap + time] for tap in range(0, self.padding + 1, dilation)], dim=1)
        return self._of_taps(taps.transpose(1, 2)).transpose(1, 2), window

    def step(self, x_t: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """`extend` by one step as a matrix product, (batch, in_channels) -> (batch, out_channels)."""
        window = torch.cat([past, x_t[:, :, None]], dim=2)
        convolution = cast(nn.Conv1d, self.convolution)
        taps, weight, bias = window[:, :, :: convolution.dilation[0]], convolution.weight, convolution.bias
        if self._taps is not None:
            return self._of_taps(taps.transpose(1, 2).flatten(1)), window[:, :, 1:]
        if convolution.groups == 1:
            return functional.linear(taps.flatten(1), weight.flatten(1), bias), window[:, :, 1:]
        taps = taps.reshape(len(taps), convolution.groups, -1)
        output = torch.einsum("bgi,goi->bgo", taps, weight.view(convolution.groups, -1, taps.shape[2])).flatten(1)
        return output if bias is None else output + bias, window[:, :, 1:]


def receptive_field(kernel_size: int, dilations: Sequence[int], convolutions_per_block: int = 2) -> int:
    """Steps of input that one output of a stack of dilated causal convolutions sees, itself included.

    Every convolution of dilation d adds (kernel_size - 1) d steps, and a residual block has `convolutions_per_block` of
    them: 1 + convolutions_per_block (kernel_size - 1) sum(dilations). Bai, Kolter & Koltun (2018), section 3.
    """
    return 1 + convolutions_per_block * (kernel_size - 1) * sum(dilations)
