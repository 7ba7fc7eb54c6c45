"""Mamba-2: blocks around a state-space model with one scalar transition a head, computed by matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Recorded, Sliding, State, StateSpec, Trail, zero_state
from models.layers.causal_conv import CausalConv1d
from models.layers.ssd import ssd, ssd_step, ssd_trail
from models.layers.state_space import (
    ResidualStack,
    SequenceMixer,
    check_sizes,
    inverse_softplus,
    log_uniform_step,
    spare_from_weight_decay,
)

__all__ = ["Mamba2Backbone", "Mamba2Block"]

TRANSITION_RANGE = (1.0, 16.0)
"""Range of -A at the start of training, drawn uniformly for each head, as in the authors' code."""


class Mamba2Block(SequenceMixer):
    """Mamba-2 block, without the norm and the residual around it.

    (z, v, dt) = in_proj(input); (x, B, C) = SiLU(causal depthwise convolution of v); delta = softplus(dt + dt_bias);
    A = -exp(A_log); y = ssd(x, delta, A, B, C) + D x; output = out_proj(RMSNorm(y SiLU(z))).

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
    heads : int
        Heads, which share B and C; each has its own delta, A and D.

    Raises
    ------
    ValueError
        If `heads` does not divide `expand * width`.

    Dao & Gu (2024), section 7 and figure 6.
    """

    undecayed = ("A_log", "D", "dt_bias")

    def __init__(self, width: int, state_size: int, conv_size: int, expand: int, heads: int) -> None:
        super().__init__()
        self.inner = expand * width
        if self.inner % heads:
            raise ValueError(f"heads must divide expand * width = {self.inner}, got {heads}")
        self.heads, self.state_size = heads, state_size
        mixed = self.inner + 2 * state_size
        self.projected = (self.inner, mixed, heads)
        self.in_proj = nn.Linear(width, sum(self.projected), bias=False)
        self.convolution = CausalConv1d(mixed, mixed, conv_size, groups=mixed)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform_step(heads)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*TRANSITION_RANGE).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, width, bias=False)
        spare_from_weight_decay(self)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The convolution's last inputs and the states of the recurrence."""
        return (
            StateSpec("convolution", (self.inner + 2 * self.state_size, self.convolution.padding)),
            StateSpec("ssd", (self.heads, self.inner // self.heads, self.state_size)),
        )

    def _coefficients(self, mixed: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the recurrence from the convolution's output (..., inner + 2 N) and dt (..., heads)."""
        x, B, C = functional.silu(mixed).split([self.inner, self.state_size, self.state_size], dim=-1)
        delta = functional.softplus(dt + self.dt_bias)
        return x.unflatten(-1, (self.heads, -1)), delta, -torch.exp(self.A_log), B, C

    def _output(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        """Skip, gated norm and projection of y (..., heads, channel)."""
        y = (y + self.D[:, None] * x).flatten(-2)
        output: Tensor = self.out_proj(self.norm(y * functional.silu(gate)))
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        return self.extend(x, zero_state(self.state_specs, x.shape[0], x.device, x.dtype))[0]

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As `forward`, going on from `state`; also the state after the last step."""
        past, hidden = state
        gate, mixed, dt = self.in_proj(x).split(self.projected, dim=-1)
        mixed, past = self.convolution.extend(mixed.transpose(1, 2), past.to(mixed.dtype))
        coefficients = self._coefficients(mixed.transpose(1, 2), dt)
        y, hidden = ssd(*coefficients, hidden)
        return self._output(y, coefficients[0], gate), (past, hidden)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """As `extend`, for a short piece, with the state after any of its steps."""
        past, hidden = state
        gate, mixed, dt = self.in_proj(x).split(self.projected, dim=-1)
        mixed, read = self.convolution.follow(mixed.transpose(1, 2), past)
        coefficients = self._coefficients(mixed.transpose(1, 2), dt)
        y, states = ssd_trail(*coefficients, hidden)
        return self._output(y, coefficients[0], gate), (Sliding(read, past.shape[2], 2), Recorded(states))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As `extend` for the one step (batch, width)."""
        past, hidden = state
        gate, mixed, dt = self.in_proj(x_t).split(self.projected, dim=-1)
        mixed, past = self.convolution.extend(mixed[:, :, None], past)
        coefficients = self._coefficients(mixed[:, :, 0], dt)
        y, hidden = ssd_step(*coefficients, hidden)
        return self._output(y, coefficients[0], gate), (past, hidden)


class Mamba2Backbone(ResidualStack):
    """Stack of Mamba-2 blocks, each behind an RMSNorm and inside a residual connection, with a norm at the end.

    Runs over a whole sequence, or step by step at a cost that does not depend on the context (`initial_state`, `step`,
    `extend`).

    Parameters
    ----------
    width, state_size, conv_size, expand, heads : int
        As in `Mamba2Block`.
    layers : int
        Blocks.
    dropout : float
        Probability of dropping a block's output, element by element, in [0, 1).

    Raises
    ------
    ValueError
        If a size is below 1 or `heads` does not divide `expand * width`.

    Dao & Gu (2024), section 7.
    """

    def __init__(
        self, width: int, layers: int, state_size: int, conv_size: int, expand: int, heads: int, dropout: float
    ) -> None:
        check_sizes(width=width, layers=layers, state_size=state_size, conv_size=conv_size, expand=expand, heads=heads)
        blocks = [Mamba2Block(width, state_size, conv_size, expand, heads) for _ in range(layers)]
        super().__init__(blocks, width, dropout)
