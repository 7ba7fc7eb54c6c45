"""Rolling back: a short piece in one pass, and the state after any of its steps, are what single steps give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.decoding.streaming import State, roll_back, trail, trail_reference
from models.forecasters.hybrid import HybridBackbone
from models.forecasters.lstm import LSTMBackbone
from models.forecasters.mamba import MambaBackbone
from models.forecasters.mamba2 import Mamba2Backbone
from models.forecasters.s4d import S4DBackbone
from models.forecasters.tcn import TCNBackbone
from models.forecasters.wavenet import WaveNetBackbone

WIDTH, ROWS = 8, 4

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: LSTMBackbone(WIDTH, 2, 0.1),
    "tcn": lambda: TCNBackbone(WIDTH, 3, 3, 0.1),
    "wavenet": lambda: WaveNetBackbone(WIDTH, 3, 2, 2, 0.1),
    "s4d": lambda: S4DBackbone(WIDTH, 2, 8, "legs", "zoh", 0.1),
    "s4d-real": lambda: S4DBackbone(WIDTH, 2, 5, "real", "bilinear", 0.1),
    "mamba": lambda: MambaBackbone(WIDTH, 2, state_size=4, conv_size=4, expand=2, dropout=0.1),
    "mamba-no-convolution": lambda: MambaBackbone(WIDTH, 1, state_size=4, conv_size=1, expand=2, dropout=0.1),
    "mamba2": lambda: Mamba2Backbone(WIDTH, 2, state_size=4, conv_size=4, expand=2, heads=4, dropout=0.1),
    "hybrid": lambda: HybridBackbone(WIDTH, 3, 4, 4, 2, 2, 0.1, window=7),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[request.param]().double().eval().requires_grad_(False)


def started(backbone: nn.Module, seen: int) -> State:
    """A state after `seen` random steps."""
    state = backbone.initial_state(ROWS, "cpu", torch.float64)
    return backbone.extend(torch.randn(ROWS, seen, WIDTH, dtype=torch.float64), state)[1] if seen else state


def assert_same(found: State, expected: State) -> None:
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("seen", "time"), [(0, 1), (0, 5), (11, 4), (3, 9)])
def test_a_piece_and_all_its_states_equal_the_steps(backbone: nn.Module, seen: int, time: int) -> None:
    state, x = started(backbone, seen), torch.randn(ROWS, time, WIDTH, dtype=torch.float64)
    y, followed = trail(backbone, x, state)
    expected, reference = trail_reference(backbone, x, state)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for count in range(time + 1):
        same = torch.full((ROWS,), count)
        assert_same(roll_back(followed, same), roll_back(reference, same))


def test_each_row_goes_back_by_its_own_number_of_steps(backbone: nn.Module) -> None:
    state, x = started(backbone, 6), torch.randn(ROWS, 3, WIDTH, dtype=torch.float64)
    count = torch.tensor([2, 0, 3, 1])
    found = roll_back(trail(backbone, x, state)[1], count)
    assert_same(found, roll_back(trail_reference(backbone, x, state)[1], count))
    again = torch.randn(ROWS, 2, WIDTH, dtype=torch.float64)
    for row in range(ROWS):  # what follows depends on nothing that was taken back
        kept = torch.cat([x[row : row + 1, : count[row]], again[row : row + 1]], dim=1)
        expected = backbone.extend(kept, tuple(part[row : row + 1] for part in state))[0][:, -2:]
        torch.testing.assert_close(backbone.extend(again, found)[0][row : row + 1], expected, rtol=1e-9, atol=1e-9)


def test_the_lstm_streams_what_it_computes_whole() -> None:
    torch.manual_seed(0)
    lstm = LSTMBackbone(WIDTH, 2, 0.1).double().eval()
    x: Tensor = torch.randn(ROWS, 9, WIDTH, dtype=torch.float64)
    state = lstm.initial_state(ROWS, "cpu", torch.float64)
    outputs = []
    for x_t in x.unbind(1):
        y_t, state = lstm.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, dim=1), lstm(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="width and layers must be at least 1, got 0 and 2"):
        LSTMBackbone(0, 2, 0.1)
