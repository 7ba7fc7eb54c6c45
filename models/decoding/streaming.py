"""Streaming: a causal backbone fed one step at a time, at a cost that does not grow with the context.

A state is a flat tuple of tensors whose first dimension is the batch, and a step never writes into the state it is
given. So a state is a value: keep an old one to roll back to it, `fork` it into many sampled paths, `gather` the rows
that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Recorded",
    "Sliding",
    "State",
    "StateSpec",
    "StreamingBackbone",
    "Trail",
    "check_state",
    "extend",
    "fork",
    "gather",
    "recurrence",
    "roll_back",
    "trail",
    "trail_reference",
    "zero_state",
]

State = tuple[Tensor, ...]
"""Everything a backbone remembers of the past; the batch is dimension 0 of each tensor."""


@runtime_checkable
class StreamingBackbone(Protocol):
    """A causal map (batch, time, width) -> (batch, time, width) that can also be run step by step."""

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """State before the first step: the same as a past of nothing, for `batch` rows of real type `dtype`."""
        ...

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Next output (batch, width) and state from the next input (batch, width); `state` stays as it was."""
        ...


class StateSpec(NamedTuple):
    """One tensor of a state: its name in messages, its shape without the batch, and what kind of numbers it holds."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["real", "complex", "count"] = "real"


def zero_state(specs: Sequence[StateSpec], batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
    """All-zero state of `batch` rows: `dtype` for real tensors, its complex partner for complex ones, int64 for counts.

    Raises
    ------
    ValueError
        If `batch` is below 1 or `dtype` is not a real floating type.
    """
    if batch < 1 or not dtype.is_floating_point:
        raise ValueError(f"a state needs at least 1 row and a floating type, got {batch} and {dtype}")
    types = {"real": dtype, "complex": dtype.to_complex(), "count": torch.int64}
    return tuple(torch.zeros(batch, *spec.shape, device=device, dtype=types[spec.kind]) for spec in specs)


def check_state(state: State, specs: Sequence[StateSpec], batch: int) -> None:
    """Raise ValueError, naming the tensor, unless `state` is what `specs` say for `batch` rows."""
    if len(state) != len(specs):
        raise ValueError(f"the state must hold {len(specs)} tensors, got {len(state)}")
    for tensor, spec in zip(state, specs, strict=True):
        if tensor.shape != (batch, *spec.shape):
            raise ValueError(f"state {spec.name} must be {(batch, *spec.shape)}, got {tuple(tensor.shape)}")


def gather(state: State, index: Tensor) -> State:
    """Rows `index` (rows,) int64 of a state, in that order; a row may come once, often or never.

    Raises
    ------
    IndexError
        If `index` names a row that the state does not have.
    """
    return tuple(tensor[index.to(tensor.device)] for tensor in state)


def fork(state: State, copies: int) -> State:
    """Every row `copies` times in a row, (batch, ...) -> (batch * copies, ...), as when paths leave one history.

    Raises
    ------
    ValueError
        If `copies` is below 1.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    return tuple(tensor.repeat_interleave(copies, dim=0) for tensor in state)


def extend(backbone: StreamingBackbone, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Feed (batch, time >= 1, width) from `state` on: outputs (batch, time, width) and the state after the last step.

    Takes the backbone's own `extend`, one pass over the whole piece, where it has one, and else one step after another.

    Raises
    ------
    ValueError
        If `x` is not (batch, time >= 1, width).
    """
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"x must be (batch, time >= 1, width), got {tuple(x.shape)}")
    own = getattr(backbone, "extend", None)
    if own is not None:
        output, last = own(x, state)
        return output, last
    outputs = []
    for x_t in x.unbind(1):
        y_t, state = backbone.step(x_t, state)
        outputs.append(y_t)
    return torch.stack(outputs, dim=1), state


class Recorded(NamedTuple):
    """A state's tensor before a piece of T steps and after each of them, ``(B, T + 1, ...)``."""

    values: Tensor

    def at(self, count: Tensor) -> Tensor:
        """The tensor of each row after ``count`` (B,) steps."""
        return self.values[torch.arange(len(count), device=count.device), count]


class Sliding(NamedTuple):
    """A state's tensor that holds the last `size` inputs along `axis`, and the T inputs of a piece after them."""

    values: Tensor
    size: int
    axis: int

    def at(self, count: Tensor) -> Tensor:
        """The tensor of each row after ``count`` (B,) steps."""
        first = int(count[0])
        if len(count) == 1 or bool((count == first).all()):
            return self.values.narrow(self.axis, first, self.size)
        moved = self.values.movedim(self.axis, 1)
        step = count[:, None] + torch.arange(self.size, device=count.device)
        return moved[torch.arange(len(count), device=count.device)[:, None], step].movedim(1, self.axis)


Trail = tuple[Recorded | Sliding, ...]
"""What each tensor of a state was after any number of the steps of a piece: what `roll_back` goes back to."""


def roll_back(followed: Trail, count: Tensor) -> State:
    """The state of each row after the first ``count`` (B,) int64 of the piece's steps, 0 to T, each row its own number."""
    return tuple(part.at(count) for part in followed)


def trail_reference(backbone: StreamingBackbone, x: Tensor, state: State) -> tuple[Tensor, Trail]:
    """What `trail` computes, one step after another, every state kept whole."""
    outputs, states = [], [state]
    for x_t in x.unbind(1):
        y_t, state = backbone.step(x_t, state)
        outputs.append(y_t)
        states.append(state)
    return torch.stack(outputs, dim=1), tuple(Recorded(torch.stack(parts, dim=1)) for parts in zip(*states, strict=True))


def trail(backbone: StreamingBackbone, x: Tensor, state: State) -> tuple[Tensor, Trail]:
    """Feed (batch, time >= 1, width) from `state` on: outputs (batch, time, width), and the state after any of the steps.

    Takes the backbone's own `trail`, one pass over a short piece, where it has one, and else one step after another.
    """
    own: Callable[[Tensor, State], tuple[Tensor, Trail]] | None = getattr(backbone, "trail", None)
    return trail_reference(backbone, x, state) if own is None else own(x, state)


def recurrence(decay: Tensor, increment: Tensor, state: Tensor) -> Tensor:
    """States (B, T + 1, ...) of h[t] = decay[t] h[t - 1] + increment[t], the first of them `state` (B, ...).

    For a short piece whose every state is wanted: one fused operation a step. `increment` is (B, T, ...), `decay` such that
    ``decay[:, t]`` broadcasts against it.
    """
    states = [state]
    for factor, added in zip(decay.unbind(1), increment.unbind(1), strict=True):
        states.append(torch.addcmul(added, factor, states[-1]))
    return torch.stack(states, dim=1)
