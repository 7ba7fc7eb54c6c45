"""Sampling many paths with a WaveNet: all that they share computed once, and the rest in few passes over the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import State

if TYPE_CHECKING:
    from models.forecasters.wavenet import WaveNetBackbone, WaveNetBlock

__all__ = ["PathCache"]


class PathCache:
    """Steps of many paths that leave a shared history, each step O(blocks) whatever the dilations.

    What a convolution reads from before the cutoff is the same for all paths of a window: it is computed once for a window
    and a step, not once for a path. What it reads after the cutoff is an earlier input of the same block, kept as it is, so
    nothing is shifted or copied. In evaluation mode equal to `WaveNetBackbone.step` on a forked state; with dropout on,
    every path keeps one mask, of its own or shared by the paths of its window.

    Feature-major: the paths are columns, so that filter and gate are contiguous slabs of rows. The gated units of all blocks
    lie in one array, from which a single product makes the sum of the skips.

    Parameters
    ----------
    backbone : WaveNetBackbone
    state : State
        After the shared history, of B windows.
    paths, steps : int
        Paths of a window, and how often `step` may be called.
    share_masks : bool
        Whether all paths of a window have the same dropout mask.
    """

    def __init__(self, backbone: WaveNetBackbone, state: State, paths: int, steps: int, share_masks: bool = False) -> None:
        blocks = [cast("WaveNetBlock", block) for block in backbone.blocks]
        width, self.now = blocks[0].width, 0
        self.units = state[0].new_empty((len(blocks) * width, len(state[0]) * paths))
        gates = state[0].new_empty((2 * width, self.units.shape[1]))
        self.blocks = [
            _BlockCache(block, past, paths, steps, share_masks, gates, unit)
            for block, past, unit in zip(blocks, state, self.units.split(width), strict=True)
        ]
        # a unit is stored halved, as f g - g / 2 is one operation less than (2 f - 1) g; its readers are doubled
        self.skip = 2.0 * torch.cat([block.mix.weight[-width:, :, 0] for block in blocks], dim=1)
        self.skip_bias = torch.stack([cast(Tensor, block.mix.bias)[-width:] for block in blocks]).sum(0)[:, None]
        self.output, self.output_bias = backbone.output.weight, backbone.output.bias[:, None]

    def step(self, x_t: Tensor) -> Tensor:
        """Next output (width, B * paths) from the next input (width, B * paths), the paths of a window together."""
        x = self.blocks[0].put(x_t, self.now)
        for block, above in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            x = block.step(x, self.now, None if above is None else above.place(self.now))
        self.now += 1
        skips = torch.mm(self.skip, self.units).add_(self.skip_bias).relu_()
        return torch.mm(self.output, skips).add_(self.output_bias).relu_()


class _BlockCache:
    """One block's weights, what it reads of the shared history, and its inputs since."""

    def __init__(
        self, block: WaveNetBlock, past: Tensor, paths: int, steps: int, share_masks: bool, gates: Tensor, unit: Tensor
    ) -> None:
        convolution = cast(nn.Conv1d, block.convolution.convolution)
        taps, dilation = convolution.weight.shape[2], convolution.dilation[0]
        self.paths, self.gates, self.unit = paths, gates, unit
        self.lags = [(taps - 1 - tap) * dilation for tap in range(taps - 1)]
        # tanh(a) = 2 sigmoid(2 a) - 1, and torch's sigmoid is several times quicker: double the filter's half
        double = torch.ones_like(convolution.weight[:, 0, :1])
        double[: block.width] = 2.0
        self.weights = [(weight * double).contiguous() for weight in convolution.weight.unbind(2)]
        self.bias = cast(Tensor, convolution.bias)[:, None] * double
        self.residual = None
        if not block.last:
            self.residual = 2.0 * block.mix.weight[: block.width, :, 0]
            self.residual_bias = cast(Tensor, block.mix.bias)[: block.width, None]
        # longer dilations never read beyond the cutoff's own history
        kept = max([lag for lag in self.lags if lag < steps], default=0) + 1
        self.inputs = list(unit.new_empty((kept, *unit.shape)).unbind(0))
        self.shared: list[
            Tensor
        ] = []  # (steps, 2 width, B) of each lag; the bias goes with the longest, which is shared longest
        for lag, weight in zip(self.lags, self.weights, strict=False):
            start = past.shape[2] - lag
            read = past[:, :, start : start + min(lag, steps)].permute(2, 1, 0)
            self.shared.append(weight @ read if self.shared else (weight @ read).add_(self.bias))
        self.mask = None
        if block.dropout.training and block.dropout.p > 0.0:
            columns, copies = (len(past), paths) if share_masks else (len(past) * paths, 1)
            mask = functional.dropout(unit.new_ones(len(unit), columns), block.dropout.p)
            self.mask = mask.repeat_interleave(copies, dim=1)

    def place(self, now: int) -> Tensor:
        """Where the input of step `now` belongs, (width, R)."""
        return self.inputs[now % len(self.inputs)]

    def put(self, x: Tensor, now: int) -> Tensor:
        """Keep (width, R) as the input of step `now`."""
        self.inputs[now % len(self.inputs)] = x
        return x

    def step(self, x: Tensor, now: int, out: Tensor | None) -> Tensor:
        """Write the gated unit of inputs x (width, R) at step `now` after the cutoff, and the next block's input to `out`."""
        gates, unit = self.gates, self.unit
        torch.mm(self.weights[-1], x, out=gates)
        for lag, weight, shared in zip(self.lags, self.weights, self.shared, strict=False):
            if now < lag:
                gates.view(len(gates), -1, self.paths).add_(shared[now, :, :, None])
            else:
                gates.addmm_(weight, self.place(now - lag))
        if now >= self.lags[0]:
            gates.add_(self.bias)
        filtered, gate = gates.sigmoid_().chunk(2)
        torch.mul(filtered, gate, out=unit).sub_(gate, alpha=0.5)
        if self.mask is not None:
            unit.mul_(self.mask)
        if out is None or self.residual is None:
            return x
        return torch.addmm(x, self.residual, unit, out=out).add_(self.residual_bias)
