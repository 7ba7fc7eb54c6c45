"""Small path models whose 3 bins and 4 steps leave 81 paths, each of a probability that is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.decoding.path_model import PathModel
from models.decoding.streaming import Recorded, State, Trail, trail
from models.decoding.truncation import AS_THEY_ARE, Truncation
from models.forecasters.hybrid import HybridBackbone
from models.forecasters.lstm import LSTMBackbone
from models.forecasters.mamba import MambaBackbone
from models.forecasters.mamba2 import Mamba2Backbone
from models.forecasters.s4d import S4DBackbone
from models.forecasters.tcn import TCNBackbone
from models.forecasters.wavenet import WaveNetBackbone

BINS, HORIZON, WIDTH = 3, 4, 8
PATHS = torch.tensor(list(itertools.product(range(BINS), repeat=HORIZON)))

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: LSTMBackbone(WIDTH, 2, 0.0),
    "convolutional": lambda: TCNBackbone(WIDTH, 2, 2, 0.0),
    "gated convolutional": lambda: WaveNetBackbone(WIDTH, 2, 1, 2, 0.0),
    "s4d": lambda: S4DBackbone(WIDTH, 1, 4, "legs", "zoh", 0.0),
    "mamba": lambda: MambaBackbone(WIDTH, 1, state_size=2, conv_size=3, expand=1, dropout=0.0),
    "mamba2": lambda: Mamba2Backbone(WIDTH, 1, state_size=2, conv_size=3, expand=1, heads=2, dropout=0.0),
    "hybrid": lambda: HybridBackbone(WIDTH, 2, 2, 3, 1, 2, 0.0, window=3),
}


class Tabular:
    """Logits (steps, histories, V) of a table, read at the number that all tokens so far spell: nothing is forgotten."""

    resizable, horizon, bins = True, HORIZON, BINS

    def __init__(self, seed: int, rows: int, strength: float = 0.6) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = rows
        self.table = strength * torch.randn(HORIZON, BINS**HORIZON, BINS, generator=generator, dtype=torch.float64)

    def begin(self) -> State:
        return (torch.zeros(self.rows, dtype=torch.long),)

    def step(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, State]:
        history = torch.where(position == 0, state[0], state[0] * BINS + previous)
        return self.table[position.clamp(max=HORIZON - 1), history % BINS**HORIZON], (history,)

    def verify(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, Trail]:
        logits, histories = [], [state[0]]
        for step, token in enumerate(previous.unbind(1)):
            value, state = self.step(token, position + step, rows, state)
            logits.append(value)
            histories.append(state[0])
        return torch.stack(logits, dim=1), (Recorded(torch.stack(histories, dim=1)),)


class Network:
    """A backbone on embedded tokens and what is known of each step, which is not the same for odd and even rows."""

    resizable, horizon, bins = True, HORIZON, BINS

    def __init__(self, kind: str, seed: int, rows: int, strength: float = 0.5, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.rows = rows
        self.backbone = BACKBONES[kind]().to(dtype).eval().requires_grad_(False)
        self.token, self.known = torch.randn(BINS + 1, WIDTH, dtype=dtype), torch.randn(2, HORIZON, WIDTH, dtype=dtype)
        hidden = self.backbone(torch.randn(64, HORIZON, WIDTH, dtype=dtype))
        self.project = strength * torch.randn(WIDTH, BINS, dtype=dtype) / hidden.square().mean().sqrt() / WIDTH**0.5

    def begin(self) -> State:
        state: State = self.backbone.initial_state(self.rows, "cpu", self.token.dtype)
        return state

    def inputs(self, previous: Tensor, position: Tensor, rows: Tensor) -> Tensor:
        return self.token[previous] + self.known[rows % 2, position.clamp(max=HORIZON - 1)]

    def step(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.backbone.step(self.inputs(previous, position, rows), state)
        return hidden @ self.project, state

    def verify(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, Trail]:
        position = position[:, None] + torch.arange(previous.shape[1])
        hidden, followed = trail(self.backbone, self.inputs(previous, position, rows[:, None]), state)
        return hidden @ self.project, followed


def path_probabilities(model: PathModel, row: int = 0, truncation: Truncation = AS_THEY_ARE) -> Tensor:
    """Probability (81,) of each of `PATHS` for a row, by one step after another along each path."""
    state = tuple(part[:1].expand(len(PATHS), *part.shape[1:]) for part in model.begin())
    rows, previous, total = torch.full((len(PATHS),), row), torch.full((len(PATHS),), BINS), torch.ones(len(PATHS)).double()
    for step in range(HORIZON):
        logits, state = model.step(previous, torch.full((len(PATHS),), step), rows, state)
        previous = PATHS[:, step]
        total = total * truncation.probabilities(logits).gather(1, previous[:, None])[:, 0]
    return total
