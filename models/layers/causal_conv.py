"""Causal convolution over time: step t of the output sees the input up to t and nothing later."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

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

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, time) to (batch, out_channels, time)."""
        output: Tensor = self.convolution(functional.pad(x, (self.padding, 0)))
        return output


def receptive_field(kernel_size: int, dilations: Sequence[int], convolutions_per_block: int = 2) -> int:
    """Steps of input that one output of a stack of dilated causal convolutions sees, itself included.

    Every convolution of dilation d adds (kernel_size - 1) d steps, and a residual block has `convolutions_per_block` of
    them: 1 + convolutions_per_block (kernel_size - 1) sum(dilations). Bai, Kolter & Koltun (2018), section 3.
    """
    return 1 + convolutions_per_block * (kernel_size - 1) * sum(dilations)
