"""Temporal convolutional network: residual blocks of dilated causal convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from models.decoding.streaming import Sliding, State, StateSpec, Trail, check_state, zero_state
from models.layers.causal_conv import CausalConv1d, receptive_field
from models.layers.causal_residual import Convolution, causal_residual, keep_channels

__all__ = ["TCNBackbone", "TCNBlock"]

NUMBERS_AT_A_TIME = 600_000
"""Steps times windows times channels that pass all blocks together on a CPU: a block's arrays stay in its cache."""


class TCNBlock(nn.Module):
    """Residual block relu(x + F(x)), F two weight-normalised causal convolutions, each with ReLU and spatial dropout.

    Parameters
    ----------
    width : int
        Channels in and out.
    kernel_size, dilation : int
        Of both convolutions.
    dropout : float
        Probability of dropping a whole channel of a window, in [0, 1).

    Bai, Kolter & Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling" (2018), section 3.3 and figure 1b.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConv1d(width, width, kernel_size, dilation, weight_norm=True)
        self.second = CausalConv1d(width, width, kernel_size, dilation, weight_norm=True)
        self.first_dropout = nn.Dropout1d(dropout)
        self.second_dropout = nn.Dropout1d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, time) to (batch, width, time)."""
        y = self.first_dropout(functional.relu(self.first(x)))
        y = self.second_dropout(functional.relu(self.second(y)))
        return functional.relu(x + y)

    def extend(self, x: Tensor, first_past: Tensor, second_past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go on from the pasts of both convolutions, each (batch, width, (kernel_size - 1) dilation)."""
        y, first_past = self.first.extend(x, first_past)
        y = self.first_dropout(functional.relu(y))
        y, second_past = self.second.extend(y, second_past)
        y = self.second_dropout(functional.relu(y))
        return functional.relu(x + y), first_past, second_past

    def follow(self, x: Tensor, first_past: Tensor, second_past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`extend` for a short piece, with all that each convolution has read in place of the pasts that follow."""
        y, first_read = self.first.follow(x, first_past)
        y, second_read = self.second.follow(self.first_dropout(functional.relu(y)), second_past)
        return functional.relu(x + self.second_dropout(functional.relu(y))), first_read, second_read

    def step(self, x_t: Tensor, first_past: Tensor, second_past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`extend` by one step, (batch, width) -> (batch, width)."""
        y, first_past = self.first.step(x_t, first_past)
        y = self.first_dropout(functional.relu(y)[:, :, None])[:, :, 0]
        y, second_past = self.second.step(y, second_past)
        y = self.second_dropout(functional.relu(y)[:, :, None])[:, :, 0]
        return functional.relu(x_t + y), first_past, second_past


class TCNBackbone(nn.Module):
    """Stack of `levels` blocks whose dilation doubles from 1, so the view of the past grows exponentially with depth.

    No statistic is taken over time or batch, so an output depends on nothing but its own series' past.

    Parameters
    ----------
    width : int
        Channels throughout.
    levels : int
        Blocks; block i has dilation 2**i.
    kernel_size : int
        Taps of every convolution, at least 2 for any memory.
    dropout : float
        Probability of dropping a whole channel of a window, in [0, 1).

    Attributes
    ----------
    receptive_field : int
        Steps of input seen by one output: 1 + 2 (kernel_size - 1) (2**levels - 1).

    Raises
    ------
    ValueError
        If `width` or `levels` is below 1 or `kernel_size` below 2.

    Bai, Kolter & Koltun (2018).
    """

    def __init__(self, width: int, levels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        if width < 1 or levels < 1 or kernel_size < 2:
            raise ValueError(
                f"width and levels must be at least 1 and kernel_size at least 2, got {width}, {levels}, {kernel_size}"
            )
        dilations = [2**level for level in range(levels)]
        self.receptive_field = receptive_field(kernel_size, dilations)
        self.blocks = nn.Sequential(*(TCNBlock(width, kernel_size, dilation, dropout) for dilation in dilations))
        self._specs = [
            StateSpec(f"blocks.{level}.{name}", (width, (kernel_size - 1) * dilation))
            for level, dilation in enumerate(dilations)
            for name in ("first", "second")
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs t - receptive_field + 1 to t."""
        output: Tensor = self.blocks(x.transpose(1, 2))
        return output.transpose(1, 2)

    def last(self, inputs: Tensor, wanted: int, project: Callable[[Tensor], Tensor]) -> Tensor:
        """`forward(project(inputs))`'s last `wanted` outputs, (batch, wanted, width), without what they do not depend on.

        Equal to slicing `forward` in values and gradients, in fewer operations and faster ones; dropout has the same draws
        for a batch that is not too large to pass at a time. Steps of `inputs` (batch, time, any) before the last `wanted` +
        receptive_field - 1 are not read.
        """
        steps = min(inputs.shape[1], wanted - 1 + self.receptive_field)
        seen = inputs[:, inputs.shape[1] - steps :].transpose(0, 1)
        width = cast(nn.Conv1d, cast(TCNBlock, self.blocks[0]).first.convolution).out_channels
        windows = max(1, NUMBERS_AT_A_TIME // (steps * width)) if inputs.device.type == "cpu" else len(inputs)
        with parametrize.cached():
            parts = [self._last(project(part), wanted) for part in seen.split(windows, dim=1)]
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).transpose(0, 1)

    def _last(self, x: Tensor, wanted: int) -> Tensor:
        """The last `wanted` outputs (wanted, batch, width) from x (time, batch, width)."""
        blocks = [cast(TCNBlock, block) for block in self.blocks]
        views = [2 * block.first.padding for block in blocks]
        for index, block in enumerate(blocks):
            probability = block.first_dropout.p if block.first_dropout.training else 0.0
            first, second = (_convolution(layer, x.shape[1], probability) for layer in (block.first, block.second))
            needed = min(len(x), wanted + sum(views[index + 1 :]))
            x = causal_residual(x, first, second, 2**index, needed, 1.0 / (1.0 - probability), rectified=index > 0)
        return x

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """State before the first step: the last inputs of every convolution, (batch, width, (kernel_size - 1) dilation)."""
        return zero_state(self._specs, batch, device, dtype)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with (batch, time, width) from `state` in one pass: outputs of the same shape and the state that follows.

        Equal to the whole pass in evaluation mode; in training mode every call draws its own dropout. Raises ValueError
        for a state of the wrong shape.
        """
        check_state(state, self._specs, x.shape[0])
        x, after = x.transpose(1, 2), []
        for block, first, second in zip(self.blocks, state[::2], state[1::2], strict=True):
            x, *pasts = cast(TCNBlock, block).extend(x, first, second)
            after += pasts
        return x.transpose(1, 2), tuple(after)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """`extend` for a short piece that may be rolled back, see `models.decoding.streaming.trail`."""
        check_state(state, self._specs, x.shape[0])
        x, followed = x.transpose(1, 2), []
        for block, first, second in zip(self.blocks, state[::2], state[1::2], strict=True):
            x, *read = cast(TCNBlock, block).follow(x, first, second)
            followed += [Sliding(values, first.shape[2], 2) for values in read]
        return x.transpose(1, 2), tuple(followed)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """`extend` by one step, (batch, width) -> (batch, width); its cost does not grow with what came before."""
        check_state(state, self._specs, x_t.shape[0])
        after: list[Tensor] = []
        for block, first, second in zip(self.blocks, state[::2], state[1::2], strict=True):
            x_t, *pasts = cast(TCNBlock, block).step(x_t, first, second)
            after += pasts
        return x_t, tuple(after)


def _convolution(layer: CausalConv1d, batch: int, probability: float) -> Convolution:
    """A layer's weight and bias, and the channels that dropout keeps."""
    convolution = cast(nn.Conv1d, layer.convolution)
    weight = convolution.weight
    return weight, cast(Tensor, convolution.bias), keep_channels(batch, len(weight), probability, weight)
