"""An autoregressive forecaster with a categorical head as a model of tokens, which decoding of any kind can sample.

A token is a bin of the scaled target less its base. What the network reads at the next step is a value in that bin, at a
place that the path's own random numbers fix before a token is drawn: given those, the network is a distribution over
tokens, and so is every draft that reads the same values.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.rules import choose
from models.decoding.streaming import State, Trail, extend, fork, trail
from models.decoding.streams import WITHIN, Streams
from models.decoding.truncation import Truncation
from models.forecasters.autoregressive import Autoregressive
from models.forecasters.wavenet import WaveNetBlock
from models.heads import CategoricalHead
from models.layers.causal_conv import CausalConv1d
from models.layers.packed import PackedLinear, pack_linear_layers
from models.layers.s4d import S4D
from models.panel import Batch

__all__ = ["BinnedPaths", "Stepper", "can_compile", "values_in_bins"]


Tables = tuple[Tensor, Tensor, int]
"""Values of tokens ``(R, H + 1, V + 1)``, inputs known ahead ``(B, H, width)``, and the paths of a window."""


def inference_copy(module: nn.Module) -> nn.Module:
    """A copy for steps alone: in evaluation mode, and what depends on the weights only is computed once."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    for part in list(copied.modules()):
        if isinstance(part, S4D | CausalConv1d | WaveNetBlock):
            part.freeze()
    pack_linear_layers(copied)
    return copied


@functools.cache
def can_compile() -> bool:
    """Whether `torch.compile` works here; on a CPU it wants a C++ compiler."""
    try:
        torch.compile(lambda x: x.sin() + x.cos(), dynamic=False)(torch.ones(2))
    except Exception as error:  # whatever a missing or broken compiler raises
        logging.getLogger(__name__).info("steps are not compiled: %s", str(error).strip().partition("\n")[0])
        return False
    return True


class Stepper:
    """A forecaster's network as it is run over paths: single steps and short pieces, compiled or not.

    Parameters
    ----------
    forecaster : Autoregressive
        With a categorical head.
    compiled : bool
        By `torch.compile`, for one number of paths at a time. The first call of each kind then takes seconds to minutes.

    Raises
    ------
    ValueError
        If the forecaster's head is not categorical.
    """

    def __init__(self, forecaster: Autoregressive, compiled: bool = False) -> None:
        if not isinstance(forecaster.head, CategoricalHead):
            name = type(forecaster.head).__name__
            raise ValueError(f"paths are sampled as tokens from a categorical head, and this forecaster has a {name}")
        self.forecaster, self.head, self.compiled = forecaster, forecaster.head, compiled
        self.backbone: Any = inference_copy(forecaster.backbone)
        self.weight = forecaster.project.weight[:, 0].detach()
        self.project = PackedLinear(self.head.project.weight, self.head.project.bias)
        compile_: Callable[[Any], Any] = torch.compile(dynamic=False) if compiled else lambda function: function
        self.step, self.trail, self.draw = compile_(self._step), compile_(self._trail), compile_(self._draw)

    def _input(self, tables: Tables, previous: Tensor, position: Tensor, rows: Tensor) -> Tensor:
        """Inputs (..., width) of steps ``position`` of paths ``rows`` after tokens ``previous``."""
        values, known, copies = tables
        position = position.clamp(max=known.shape[1] - 1)
        return known[rows // copies, position] + values[rows, position, previous][..., None] * self.weight

    def _step(self, tables: Tables, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.backbone.step(self._input(tables, previous, position, rows), state)
        return self.project(hidden), state

    def _draw(
        self,
        tables: Tables,
        previous: Tensor,
        position: Tensor,
        rows: Tensor,
        state: State,
        uniform: Tensor,
        truncation: Truncation,
    ) -> tuple[Tensor, Tensor, State]:
        logits, state = self._step(tables, previous, position, rows, state)
        mass = truncation.probabilities(logits)
        return choose(mass, uniform), mass, state

    def _trail(self, tables: Tables, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, Trail]:
        position = position[:, None] + torch.arange(previous.shape[1], device=previous.device)
        hidden, followed = trail(self.backbone, self._input(tables, previous, position, rows[:, None]), state)
        return self.project(hidden), followed


class BinnedPaths:
    """Paths of a batch's windows under one forecaster, a `models.decoding.path_model.PathModel`.

    Path ``i`` is a path of window ``i // copies``. Covariates that are known ahead are read at each path's own step.

    Parameters
    ----------
    stepper : Stepper
        Of the forecaster.
    batch : Batch
        B windows.
    copies : int
        Paths of a window; R = B * copies.
    values : Tensor
        ``(R, H + 1, V + 1)``, from `values_in_bins` of the forecaster whose tokens are sampled.
    """

    def __init__(self, stepper: Stepper, batch: Batch, copies: int, values: Tensor) -> None:
        forecaster = stepper.forecaster
        self.stepper, self.copies, self.values = stepper, copies, values
        self.rows, self.horizon, self.bins = values.shape[0], values.shape[1] - 1, values.shape[2] - 1
        self.resizable = not stepper.compiled
        with torch.no_grad():
            inputs, target, _ = forecaster._inputs(batch)
            context = forecaster.context
            history = forecaster._teacher_forced(inputs[:, :context], target[:, :context])
            state = stepper.backbone.initial_state(len(inputs), history.device, history.dtype)
            hidden, self._state = extend(stepper.backbone, history, state)
            self.features = hidden[:, -1]
            weight = forecaster.project.weight[:, 1:]
            self.known = functional.linear(inputs[:, context:], weight, forecaster.project.bias)  # (B, H, width)

    def begin(self) -> State:
        """The state after the history, once for each path."""
        return fork(self._state, self.copies)

    def step(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = self.stepper.step((self.values, self.known, self.copies), previous, position, rows, state)
        return logits, state

    def draw(
        self, previous: Tensor, position: Tensor, rows: Tensor, state: State, uniform: Tensor, truncation: Truncation
    ) -> tuple[Tensor, Tensor, State]:
        """A step and the token that ``uniform`` (r,) chooses of it: tokens, their probabilities (r, V), and the state."""
        tables = self.values, self.known, self.copies
        token, mass, state = self.stepper.draw(tables, previous, position, rows, state, uniform, truncation)
        return token, mass, state

    def verify(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, Trail]:
        logits, followed = self.stepper.trail((self.values, self.known, self.copies), previous, position, rows, state)
        return logits, followed

    def paths(self, tokens: Tensor) -> Tensor:
        """Values ``(B, copies, H)`` of tokens ``(R, H)``, in the windows' own scale."""
        return self.values[:, 1:].gather(2, tokens[..., None])[..., 0].view(-1, self.copies, self.horizon)


@torch.no_grad()
def values_in_bins(forecaster: Autoregressive, batch: Batch, copies: int, streams: Streams) -> Tensor:
    """What each token stands for at each step of each path: ``(R, H + 1, V + 1)``, scaled values before each step.

    ``[:, h + 1, v]`` is the value of token v at step h, uniform within its bin (exponential beyond the outer edges) by the
    path's own number; ``[:, 0, V]`` is the last known value, that of the start token. What is left over is zero.
    """
    head = forecaster.head
    assert isinstance(head, CategoricalHead)
    _, target, base = forecaster._inputs(batch)
    context, horizon = forecaster.context, base.shape[1] - forecaster.context
    share = streams.all(WITHIN)[..., None].to(base.dtype)
    share = share.clamp(torch.finfo(share.dtype).tiny, 1.0 - torch.finfo(share.dtype).eps).expand(-1, -1, head.bins)
    index = torch.arange(head.bins, device=base.device).expand_as(share)
    placed = head._place(index, share, 1.0 - share, head.edges.to(base.dtype), head._widths().to(base.dtype))
    values = base.new_zeros((len(share), horizon + 1, head.bins + 1))
    values[:, 1:, :-1] = placed + base[:, context:].repeat_interleave(copies, 0)[..., None]
    values[:, 0, -1] = target[:, context - 1].repeat_interleave(copies)
    return values
