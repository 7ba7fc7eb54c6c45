"""Mamba: blocks around a selective state-space model, each a causal map from sequence to sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Recorded, Sliding, State, StateSpec, Trail
from models.layers.causal_conv import CausalConv1d
from models.layers.selective_scan import selective_scan, selective_scan_from, selective_scan_step, selective_scan_trail
from models.layers.state_space import (
    ResidualStack,
    SequenceMixer,
    check_sizes,
    inverse_softplus,
    log_uniform_step,
    no_weight_decay_parameters,
    spare_from_weight_decay,
)

__all__ = ["MambaBackbone", "MambaBlock", "no_weight_decay_parameters"]


class MambaBlock(SequenceMixer):
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
    normalise : bool
        RMSNorm on dt, B and C, which keeps large activations from attention layers nearby out of the recurrence
        (Lieber et al., "Jamba: A Hybrid Transformer-Mamba Language Model", 2024).

    Gu & Dao (2023), section 3.4 and figure 3; initial values from section 3.6: A_log = log(1..N) (S4D-Real), D = 1, and
    the bias of dt_proj the inverse softplus of a log-uniform draw from `STEP_RANGE`.
    """

    undecayed = ("A_log", "D")

    def __init__(self, width: int, state_size: int, conv_size: int, expand: int, normalise: bool = False) -> None:
        super().__init__()
        inner = expand * width
        self.state_size = state_size
        self.step_rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = CausalConv1d(inner, inner, conv_size, groups=inner)
        self.x_proj = nn.Linear(inner, self.step_rank + 2 * state_size, bias=False)
        self.selected = (self.step_rank, state_size, state_size)
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps=1e-6) for size in self.selected if normalise)
        self.dt_proj = nn.Linear(self.step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1.0).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        spare_from_weight_decay(self)
        self._initialise_step()

    def _initialise_step(self) -> None:
        """Draw dt_proj so that softplus of its bias is log-uniform in `STEP_RANGE` and its input perturbs it mildly."""
        bound = self.step_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform_step(self.dt_proj.out_features)))

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The convolution's last inputs and the states of the recurrence."""
        inner = self.dt_proj.out_features
        return (
            StateSpec("convolution", (inner, self.convolution.padding)),
            StateSpec("scan", (inner, self.state_size)),
        )

    def _coefficients(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the scan for its input `u` (..., inner)."""
        step, B, C = self.x_proj(u).split(self.selected, dim=-1)
        if self.norms:
            step, B, C = (norm(part) for norm, part in zip(self.norms, (step, B, C), strict=True))
        return u, functional.softplus(self.dt_proj(step)), -torch.exp(self.A_log), B, C, self.D

    def _output(self, y: Tensor, gate: Tensor) -> Tensor:
        output: Tensor = self.out_proj(y * functional.silu(gate))
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = functional.silu(self.convolution(u.transpose(1, 2)).transpose(1, 2))
        return self._output(selective_scan(*self._coefficients(u)), gate)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As `forward`, going on from `state`; also the state after the last step."""
        past, hidden = state
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        mixed, past = self.convolution.extend(u.transpose(1, 2), past)
        u = functional.silu(mixed.transpose(1, 2))
        y, hidden = selective_scan_from(hidden, *self._coefficients(u))
        return self._output(y, gate), (past, hidden)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """As `extend`, for a short piece, with the state after any of its steps."""
        past, hidden = state
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        mixed, read = self.convolution.follow(u.transpose(1, 2), past)
        y, states = selective_scan_trail(hidden, *self._coefficients(functional.silu(mixed.transpose(1, 2))))
        return self._output(y, gate), (Sliding(read, past.shape[2], 2), Recorded(states))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As `extend` for the one step (batch, width)."""
        past, hidden = state
        u, gate = self.in_proj(x_t).chunk(2, dim=-1)
        mixed, past = self.convolution.extend(u[:, :, None], past)
        y, hidden = selective_scan_step(hidden, *self._coefficients(functional.silu(mixed[:, :, 0])))
        return self._output(y, gate), (past, hidden)


class MambaBackbone(ResidualStack):
    """Stack of Mamba blocks, each behind an RMSNorm and inside a residual connection, with a norm at the end.

    Runs over a whole sequence, or step by step at a cost that does not depend on the context (`initial_state`, `step`,
    `extend`).

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

    Gu & Dao (2023), section 3.4.
    """

    def __init__(self, width: int, layers: int, state_size: int, conv_size: int, expand: int, dropout: float) -> None:
        check_sizes(width=width, layers=layers, state_size=state_size, conv_size=conv_size, expand=expand)
        super().__init__([MambaBlock(width, state_size, conv_size, expand) for _ in range(layers)], width, dropout)
