"""WaveNet: gated dilated causal convolutions, run direct as a backbone or sampled one step after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Sliding, State, StateSpec, Trail, check_state, zero_state
from models.forecasters.autoregressive import Autoregressive
from models.forecasters.wavenet_paths import PathCache
from models.layers.causal_conv import CausalConv1d, receptive_field
from models.layers.packed import PackedLinear

__all__ = ["WaveNet", "WaveNetBackbone", "WaveNetBlock"]


class WaveNetBlock(nn.Module):
    """Gated unit z = tanh(W_f * x) sigmoid(W_g * x) with a residual x + W_r z and a skip W_s z.

    Parameters
    ----------
    width : int
        Channels of input, residual and skip.
    kernel_size, dilation : int
        Of the causal convolution.
    dropout : float
        Probability of dropping a whole channel of z, in [0, 1).
    last : bool
        Leaves the residual path out, which nothing would read.

    van den Oord et al., "WaveNet: A Generative Model for Raw Audio" (2016), equation 2 and figure 4.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int, dropout: float, last: bool = False) -> None:
        super().__init__()
        self.convolution = CausalConv1d(width, 2 * width, kernel_size, dilation)
        self.dropout = nn.Dropout1d(dropout)
        self.mix = nn.Conv1d(width, width if last else 2 * width, 1)
        self.width, self.last = width, last
        self._mix: nn.Module | None = None

    def freeze(self) -> None:
        """Pack the weights once and for all, for a copy of which they change no more."""
        self._mix = PackedLinear(self.mix.weight[:, :, 0], self.mix.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, width, time) to the next block's input and the skip, both (batch, width, time)."""
        return self._gate(x, self.convolution(x))

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` after the last inputs `past` (batch, width, (kernel_size - 1) dilation), and the past that follows."""
        gates, past = self.convolution.extend(x, past)
        return *self._gate(x, gates), past

    def follow(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`extend` for a short piece, with all that the convolution has read in place of the past that follows."""
        gates, read = self.convolution.follow(x, past)
        return *self._gate(x, gates), read

    def step(self, x_t: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`extend` by one step, (batch, width) -> (batch, width)."""
        gates, past = self.convolution.step(x_t, past)
        x_t, skip = self._gate(x_t[:, :, None], gates[:, :, None])
        return x_t[:, :, 0], skip[:, :, 0], past

    def _gate(self, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        filtered, gate = gates.chunk(2, dim=1)
        unit = self.dropout(torch.tanh(filtered) * torch.sigmoid(gate))
        mixed = self.mix(unit) if self._mix is None else self._mix(unit.transpose(1, 2)).transpose(1, 2)
        return (x if self.last else x + mixed[:, : self.width]), mixed[:, -self.width :]


class WaveNetBackbone(nn.Module):
    """Stacks of gated blocks whose dilation doubles from 1 within a stack; their skips, summed, are the output.

    Parameters
    ----------
    width : int
        Channels throughout.
    levels, stacks : int
        Blocks in a stack, with dilations 1, 2, ..., 2**(levels - 1), and stacks.
    kernel_size : int
        Taps of every convolution, at least 2 for any memory.
    dropout : float
        Probability of dropping a whole channel of a gated unit, in [0, 1).

    Attributes
    ----------
    receptive_field : int
        Steps of input seen by one output: 1 + stacks (kernel_size - 1) (2**levels - 1).

    Raises
    ------
    ValueError
        If `width`, `levels` or `stacks` is below 1 or `kernel_size` below 2.

    van den Oord et al. (2016), sections 2.1, 2.3 and 2.4.
    """

    def __init__(self, width: int, levels: int, stacks: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        if min(width, levels, stacks) < 1 or kernel_size < 2:
            raise ValueError(
                "width, levels and stacks must be at least 1 and kernel_size at least 2, "
                f"got {width}, {levels}, {stacks}, {kernel_size}"
            )
        dilations = [2**level for level in range(levels)] * stacks
        self.receptive_field = receptive_field(kernel_size, dilations, convolutions_per_block=1)
        self.blocks = nn.ModuleList(
            WaveNetBlock(width, kernel_size, dilation, dropout, last=index == len(dilations) - 1)
            for index, dilation in enumerate(dilations)
        )
        self.output = nn.Linear(width, width)
        self._specs = [
            StateSpec(f"blocks.{index}", (width, (kernel_size - 1) * dilation)) for index, dilation in enumerate(dilations)
        ]
        for module in self.modules():  # torch's own start shrinks a signal at each block, and training stalls on it
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.kaiming_normal_(self.output.weight, nonlinearity="relu")
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs t - receptive_field + 1 to t."""
        x, skips = x.transpose(1, 2), []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.finish(sum(skips[1:], skips[0]).transpose(1, 2))

    def finish(self, skips: Tensor) -> Tensor:
        """Output (..., width) from the sum of the blocks' skips (..., width)."""
        return functional.relu(self.output(functional.relu(skips)))

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """State before the first step: the last inputs of every block, (batch, width, (kernel_size - 1) dilation)."""
        return zero_state(self._specs, batch, device, dtype)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with (batch, time, width) from `state` in one pass: outputs of the same shape and the state that follows.

        Equal to the whole pass in evaluation mode; in training mode every call draws its own dropout. Raises ValueError
        for a state of the wrong shape.
        """
        check_state(state, self._specs, x.shape[0])
        x, skips, after = x.transpose(1, 2), [], []
        for block, past in zip(self.blocks, state, strict=True):
            x, skip, past = cast(WaveNetBlock, block).extend(x, past)
            skips.append(skip)
            after.append(past)
        return self.finish(sum(skips[1:], skips[0]).transpose(1, 2)), tuple(after)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """`extend` for a short piece that may be rolled back, see `models.decoding.streaming.trail`."""
        check_state(state, self._specs, x.shape[0])
        x, skips, followed = x.transpose(1, 2), [], []
        for block, past in zip(self.blocks, state, strict=True):
            x, skip, read = cast(WaveNetBlock, block).follow(x, past)
            skips.append(skip)
            followed.append(Sliding(read, past.shape[2], 2))
        return self.finish(sum(skips[1:], skips[0]).transpose(1, 2)), tuple(followed)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """`extend` by one step, (batch, width) -> (batch, width); its cost does not grow with what came before."""
        check_state(state, self._specs, x_t.shape[0])
        skips, after = torch.zeros_like(x_t), []
        for block, past in zip(self.blocks, state, strict=True):
            x_t, skip, past = cast(WaveNetBlock, block).step(x_t, past)
            skips = skips + skip
            after.append(past)
        return self.finish(skips), tuple(after)


class WaveNet(Autoregressive):
    """Autoregressive WaveNet; by the paper its head is categorical. Paths advance in a `PathCache`."""

    paths_share_masks = False

    def _advancing(self, state: State, paths: int, steps: int) -> Callable[[Tensor], Tensor]:
        return PathCache(self.backbone, state, paths, steps, self.paths_share_masks).step
