"""Temporal convolutional network: residual blocks of dilated causal convolutions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import State, StateSpec, check_state, zero_state
from models.layers.causal_conv import CausalConv1d, receptive_field

__all__ = ["TCNBackbone", "TCNBlock"]


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

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """`extend` by one step, (batch, width) -> (batch, width); its cost does not grow with what came before."""
        check_state(state, self._specs, x_t.shape[0])
        after: list[Tensor] = []
        for block, first, second in zip(self.blocks, state[::2], state[1::2], strict=True):
            x_t, *pasts = cast(TCNBlock, block).step(x_t, first, second)
            after += pasts
        return x_t, tuple(after)
