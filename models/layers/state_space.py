"""What the state-space networks share: step sizes, weight decay, a residual stack that runs whole or step by step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.decoding.streaming import State, StateSpec, Trail, check_state, zero_state

__all__ = [
    "STEP_RANGE",
    "ResidualStack",
    "SequenceMixer",
    "check_sizes",
    "inverse_softplus",
    "log_uniform_step",
    "no_weight_decay_parameters",
    "spare_from_weight_decay",
]

STEP_RANGE = (1e-3, 1e-1)
"""Range of the step size delta at the start of training, drawn log-uniformly (Gu & Dao 2023, section 3.6)."""

NO_WEIGHT_DECAY = "_no_weight_decay"
"""Attribute that marks a parameter which weight decay must leave alone."""


def log_uniform_step(count: int) -> Tensor:
    """`count` float32 step sizes, log-uniform in `STEP_RANGE`."""
    low, high = (math.log(step) for step in STEP_RANGE)
    return torch.empty(count).uniform_(low, high).exp()


def inverse_softplus(value: Tensor) -> Tensor:
    """x with log(1 + exp(x)) = value > 0, exact also where value is small."""
    return value + torch.log(-torch.expm1(-value))


def check_sizes(**sizes: int) -> None:
    """Raise ValueError, naming it, for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def spare_from_weight_decay(module: nn.Module) -> None:
    """Mark the parameters that the module's class lists in `undecayed`."""
    for name in getattr(module, "undecayed", ()):
        setattr(getattr(module, name), NO_WEIGHT_DECAY, True)


def no_weight_decay_parameters(module: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, that weight decay must leave alone: the dynamics A, step sizes and skips D.

    Decay would pull A towards -1 and D towards 0, which are no simpler models. Works on copies of a module too: copying
    drops the mark on a parameter, so the names come from the `undecayed` of the modules' classes as well.
    """
    marked = {name for name, parameter in module.named_parameters() if getattr(parameter, NO_WEIGHT_DECAY, False)}
    for prefix, part in module.named_modules():
        marked |= {f"{prefix}.{name}".lstrip(".") for name in getattr(part, "undecayed", ())}
    return marked


class SequenceMixer(nn.Module, ABC):
    """One causal layer of a stack, run over a whole sequence, over a further piece of it, or over one further step."""

    @property
    @abstractmethod
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The tensors of the layer's state; all zeros is a past of nothing."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""

    @abstractmethod
    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As `forward`, going on from `state`; also the state after the last step."""

    @abstractmethod
    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """As `extend`, for a short piece, with the state after any of its steps; see `models.decoding.streaming.trail`."""

    @abstractmethod
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As `extend` for the one step (batch, width)."""


class _ResidualBlock(nn.Module):
    """x + dropout(block(RMSNorm(x)))."""

    def __init__(self, block: SequenceMixer, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.block = block
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width)."""
        output: Tensor = x + self.dropout(self.block(self.norm(x)))
        return output

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on from `state` with one step (batch, width) or a piece (batch, time, width)."""
        mixer = cast(SequenceMixer, self.block)
        y, state = (mixer.step if x.ndim == 2 else mixer.extend)(self.norm(x), state)
        return x + self.dropout(y), state

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """Go on from `state` with a piece (batch, time, width) that may be rolled back."""
        y, followed = cast(SequenceMixer, self.block).trail(self.norm(x), state)
        return x + self.dropout(y), followed


class ResidualStack(nn.Module):
    """Stack of causal layers, each behind an RMSNorm and inside a residual connection, with a norm at the end.

    Parameters
    ----------
    mixers : sequence of SequenceMixer
        Layers, in order.
    width : int
        Channels in and out.
    dropout : float
        Probability of dropping a layer's output, element by element, in [0, 1).

    Output projections named `out_proj` start smaller by sqrt(layers), so that the variance of the residual stream does
    not grow with depth (Radford et al. 2019, section 2.3; so does the code of Gu & Dao 2023).
    """

    def __init__(self, mixers: Sequence[SequenceMixer], width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        with torch.no_grad():
            for mixer in mixers:
                projection = getattr(mixer, "out_proj", None)
                if isinstance(projection, nn.Linear):
                    projection.weight.mul_(len(mixers) ** -0.5)
        self.blocks = nn.Sequential(*(_ResidualBlock(mixer, width, dropout) for mixer in mixers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self._specs = tuple(
            spec._replace(name=f"blocks.{layer}.{spec.name}")
            for layer, mixer in enumerate(mixers)
            for spec in mixer.state_specs
        )
        self._counts = [len(mixer.state_specs) for mixer in mixers]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        output: Tensor = self.norm(self.blocks(x))
        return output

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """State before the first step, see `models.decoding.streaming`."""
        return zero_state(self._specs, batch, device, dtype)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Next output (batch, width) and state from the next input (batch, width); `state` stays as it was.

        Raises
        ------
        ValueError
            If `x_t` or a tensor of `state` has the wrong shape.
        """
        if x_t.ndim != 2:
            raise ValueError(f"x_t must be (batch, {self.width}), got {tuple(x_t.shape)}")
        return self._advance(x_t, state)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs (batch, time, width) of a further piece in one pass, and the state after it; `state` stays as it was.

        Raises
        ------
        ValueError
            If `x` or a tensor of `state` has the wrong shape.
        """
        if x.ndim != 3 or x.shape[1] < 1:
            raise ValueError(f"x must be (batch, time >= 1, {self.width}), got {tuple(x.shape)}")
        return self._advance(x, state)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """`extend` for a short piece that may be rolled back, see `models.decoding.streaming.trail`."""
        check_state(state, self._specs, x.shape[0])
        followed: Trail = ()
        start = 0
        for block, count in zip(self.blocks, self._counts, strict=True):
            x, new = cast(_ResidualBlock, block).trail(x, state[start : start + count])
            followed += new
            start += count
        output: Tensor = self.norm(x)
        return output, followed

    def _advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if x.shape[-1] != self.width:
            raise ValueError(f"the input must have {self.width} channels, got {x.shape[-1]}")
        check_state(state, self._specs, x.shape[0])
        following: list[Tensor] = []
        start = 0
        for block, count in zip(self.blocks, self._counts, strict=True):
            x, new = cast(_ResidualBlock, block).advance(x, state[start : start + count])
            following += new
            start += count
        output: Tensor = self.norm(x)
        return output, tuple(following)
