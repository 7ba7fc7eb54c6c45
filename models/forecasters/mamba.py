"""Mamba: blocks around a selective state-space model, each a causal map from sequence to sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.causal_conv import CausalConv1d
from models.layers.selective_scan import selective_scan

__all__ = ["MambaBackbone", "MambaBlock", "no_weight_decay_parameters"]

STEP_RANGE = (1e-3, 1e-1)
"""Range of the step size delta at the start of training, drawn log-uniformly for each channel."""

NO_WEIGHT_DECAY = "_no_weight_decay"
"""Attribute that marks a parameter which weight decay must leave alone."""


class MambaBlock(nn.Module):
    """Mamba-1 block, without the norm and the residual around it.

    x, z = in_proj(input); x = SiLU(causal depthwise convolution of x); (dt, B, C) = x_proj(x);
    delta = softplus(dt_proj(dt)); A = -exp(A_log); output = out_proj(scan(x, delta, A, B, C, D) SiLU(z)).

    Parameters
    ----------
    width : int
        Channels in and out.
    state_size : int
        States of every inner channel, N in the paper.
    conv_size : int
        Taps of the depthwise convolution.
    expand : int
        Inner channels over `width`.

    Gu & Dao (2023), section 3.4 and figure 3; initial values from section 3.6: A_log = log(1..N) (S4D-Real), D = 1, and
    the bias of dt_proj the inverse softplus of a log-uniform draw from `STEP_RANGE`.
    """

    def __init__(self, width: int, state_size: int, conv_size: int, expand: int) -> None:
        super().__init__()
        inner = expand * width
        self.state_size = state_size
        self.step_rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = CausalConv1d(inner, inner, conv_size, groups=inner)
        self.x_proj = nn.Linear(inner, self.step_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1.0).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        for parameter in (self.A_log, self.D):
            setattr(parameter, NO_WEIGHT_DECAY, True)
        self._initialise_step()

    def _initialise_step(self) -> None:
        """Draw dt_proj so that softplus of its bias is log-uniform in `STEP_RANGE` and its input perturbs it mildly."""
        bound = self.step_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = (math.log(step) for step in STEP_RANGE)
        step = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = functional.silu(self.convolution(u.transpose(1, 2)).transpose(1, 2))
        step, B, C = self.x_proj(u).split([self.step_rank, self.state_size, self.state_size], dim=-1)
        delta = functional.softplus(self.dt_proj(step))
        y = selective_scan(u, delta, -torch.exp(self.A_log), B, C, self.D)
        output: Tensor = self.out_proj(y * functional.silu(gate))
        return output


class _ResidualBlock(nn.Module):
    """x + dropout(block(RMSNorm(x)))."""

    def __init__(self, block: MambaBlock, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.block = block
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width)."""
        output: Tensor = x + self.dropout(self.block(self.norm(x)))
        return output


class MambaBackbone(nn.Module):
    """Stack of Mamba blocks, each behind an RMSNorm and inside a residual connection, with a norm at the end.

    Parameters
    ----------
    width, state_size, conv_size, expand : int
        As in `MambaBlock`.
    layers : int
        Blocks.
    dropout : float
        Probability of dropping a block's output, element by element, in [0, 1).

    Raises
    ------
    ValueError
        If a size is below 1.

    Gu & Dao (2023), section 3.4. As in the authors' code, output projections start smaller by sqrt(layers), so that the
    variance of the residual stream does not grow with depth (Radford et al. 2019, section 2.3).
    """

    def __init__(self, width: int, layers: int, state_size: int, conv_size: int, expand: int, dropout: float) -> None:
        super().__init__()
        sizes = {
            "width": width,
            "layers": layers,
            "state_size": state_size,
            "conv_size": conv_size,
            "expand": expand,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        blocks = [MambaBlock(width, state_size, conv_size, expand) for _ in range(layers)]
        with torch.no_grad():
            for block in blocks:
                block.out_proj.weight.mul_(layers**-0.5)
        self.blocks = nn.Sequential(*(_ResidualBlock(block, width, dropout) for block in blocks))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        output: Tensor = self.norm(self.blocks(x))
        return output


def no_weight_decay_parameters(module: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, that weight decay must leave alone: A_log and D of every Mamba block.

    Decay would pull A towards -1 and D towards 0, which are no simpler models. Works on copies of a module too: copying
    drops the mark on a parameter, so Mamba blocks are recognised by their type.
    """
    marked = {name for name, parameter in module.named_parameters() if getattr(parameter, NO_WEIGHT_DECAY, False)}
    for prefix, block in module.named_modules():
        if isinstance(block, MambaBlock):
            marked |= {f"{prefix}.{name}".lstrip(".") for name in ("A_log", "D")}
    return marked
