"""LSTM as a causal backbone that streams and can be rolled back, for an autoregressive forecaster on bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Recorded, State, StateSpec, Trail, check_state, trail_reference, zero_state
from models.layers.dropout import Dropout
from models.layers.lstm import lstm_in_blocks

__all__ = ["LSTMBackbone"]


class LSTMBackbone(nn.Module):
    """Stack of LSTM layers (batch, time, width) -> (batch, time, width) with dropout between them.

    Parameters
    ----------
    width : int
        Channels in, hidden and out.
    layers : int
    dropout : float
        Probability of dropping an entry between two layers, in [0, 1).

    Raises
    ------
    ValueError
        If `width` or `layers` is below 1.

    Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997); gates as torch has them.
    """

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"width and layers must be at least 1, got {width} and {layers}")
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.between = nn.ModuleList(Dropout(dropout) for _ in range(layers - 1))
        self._specs = [StateSpec(f"layers.{layer}.{name}", (width,)) for layer in range(layers) for name in ("hidden", "cell")]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        return self._pass(x, None)[0]

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """State before the first step: zero hidden and cell of every layer, (batch, width) each."""
        return zero_state(self._specs, batch, device, dtype)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with (batch, time, width) from `state` in one pass: outputs of the same shape and the state that follows."""
        check_state(state, self._specs, x.shape[0])
        return self._pass(x, state)

    def _pass(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        after: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            before = None if state is None else (state[2 * index][None], state[2 * index + 1][None])
            x, (hidden, cell) = lstm_in_blocks(layer, x, before)
            after += [hidden[0], cell[0]]
            if index < len(self.between):
                x = self.between[index](x)
        return x, tuple(after)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """`extend` by one step, (batch, width) -> (batch, width)."""
        check_state(state, self._specs, x_t.shape[0])
        after: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            given = _weighed(layer, "ih", x_t)
            hidden, cell = _cell(layer, given, state[2 * index], state[2 * index + 1])
            after += [hidden, cell]
            x_t = self.between[index](hidden) if index < len(self.between) else hidden
        return x_t, tuple(after)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """`extend` for a short piece that may be rolled back: what does not wait for the step before is one product a layer."""
        check_state(state, self._specs, x.shape[0])
        if x.shape[1] == 1:
            return trail_reference(self, x, state)
        followed: list[Recorded] = []
        for index, layer in enumerate(self.layers):
            given = _weighed(layer, "ih", x)
            hiddens, cells = [state[2 * index]], [state[2 * index + 1]]
            for given_t in given.unbind(1):
                hidden, cell = _cell(layer, given_t, hiddens[-1], cells[-1])
                hiddens.append(hidden)
                cells.append(cell)
            followed += [Recorded(torch.stack(hiddens, dim=1)), Recorded(torch.stack(cells, dim=1))]
            x = followed[-2].values[:, 1:]
            if index < len(self.between):
                x = self.between[index](x)
        return x, tuple(followed)


def _cell(lstm: nn.Module, given: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state (batch, width) after a step whose input, weighed, is `given` (batch, 4 width)."""
    gates = given + _weighed(lstm, "hh", hidden)
    write, forget, value, read = gates.chunk(4, dim=-1)
    cell = forget.sigmoid() * cell + write.sigmoid() * value.tanh()
    return read.sigmoid() * cell.tanh(), cell


def _weighed(lstm: nn.Module, kind: str, x: Tensor) -> Tensor:
    """x (..., width) times a layer's weight of the input, "ih", or of the hidden state, "hh": (..., 4 width)."""
    return functional.linear(x, getattr(lstm, f"weight_{kind}_l0"), getattr(lstm, f"bias_{kind}_l0"))
