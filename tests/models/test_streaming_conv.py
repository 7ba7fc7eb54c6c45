"""Streaming of the TCN and the WaveNet: step by step equals the full pass, and a state is a value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.decoding.streaming import StreamingBackbone, extend, fork, gather
from models.forecasters.tcn import TCNBackbone
from models.forecasters.wavenet import WaveNetBackbone
from models.layers.causal_conv import CausalConv1d

WIDTH, TIME = 6, 40
BACKBONES: dict[str, Callable[[], TCNBackbone | WaveNetBackbone]] = {
    "tcn": lambda: TCNBackbone(WIDTH, levels=3, kernel_size=3, dropout=0.2),
    "wavenet": lambda: WaveNetBackbone(WIDTH, levels=3, stacks=2, kernel_size=3, dropout=0.2),
    "wavenet, 2 taps": lambda: WaveNetBackbone(WIDTH, levels=4, stacks=1, kernel_size=2, dropout=0.0),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> TCNBackbone | WaveNetBackbone:
    torch.manual_seed(0)
    made = BACKBONES[request.param]()
    made.double().eval()
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, TIME, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_steps_equal_the_full_pass(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    assert isinstance(backbone, StreamingBackbone)
    state, outputs = backbone.initial_state(3, "cpu", torch.float64), []
    for x_t in x.unbind(1):
        y_t, state = backbone.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), backbone(x), rtol=0.0, atol=1e-12)


def test_pieces_of_any_length_equal_the_full_pass(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    state, outputs = backbone.initial_state(3, "cpu", torch.float64), []
    for piece in x.split([1, 2, 17, 20], dim=1):
        output, state = extend(backbone, piece, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), backbone(x), rtol=0.0, atol=1e-12)


def test_an_old_state_can_be_gone_back_to(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    _, state = backbone.extend(x[:, :30], backbone.initial_state(3, "cpu", torch.float64))
    copies = tuple(part.clone() for part in state)
    after = state
    for x_t in torch.randn(5, 3, WIDTH, dtype=torch.float64):  # steps that are then thrown away
        _, after = backbone.step(x_t, after)
    assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))
    y_t, _ = backbone.step(x[:, 30], state)
    torch.testing.assert_close(y_t, backbone(x)[:, 30], rtol=0.0, atol=1e-12)


def test_forked_and_gathered_rows_go_their_own_ways(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    _, state = backbone.extend(x[:, :25], backbone.initial_state(3, "cpu", torch.float64))
    ways = torch.randn(6, 8, WIDTH, dtype=torch.float64)
    forked, _ = backbone.extend(ways, fork(state, 2))
    alone = backbone(torch.cat([x[:, :25].repeat_interleave(2, 0), ways], 1))[:, 25:]
    torch.testing.assert_close(forked, alone, rtol=0.0, atol=1e-12)
    kept, _ = backbone.extend(ways[[4, 0]], gather(state, torch.tensor([2, 0])))
    torch.testing.assert_close(kept, alone[[4, 0]], rtol=0.0, atol=1e-12)


def test_a_state_does_not_grow_with_the_context(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    first = backbone.initial_state(3, "cpu", torch.float64)
    _, last = backbone.extend(x, first)
    assert [part.shape for part in last] == [part.shape for part in first]
    convolutions = [module for module in backbone.modules() if isinstance(module, CausalConv1d)]
    assert [part.shape[2] for part in last] == [convolution.padding for convolution in convolutions]


def test_the_state_holds_what_the_receptive_field_needs(backbone: TCNBackbone | WaveNetBackbone) -> None:
    """Each convolution adds (k - 1) d steps to the view of the past, and remembers exactly as many."""
    state = backbone.initial_state(1, "cpu", torch.float64)
    assert 1 + sum(part.shape[2] for part in state) == backbone.receptive_field


def test_a_state_of_the_wrong_shape_is_refused(backbone: TCNBackbone | WaveNetBackbone, x: torch.Tensor) -> None:
    state = backbone.initial_state(3, "cpu", torch.float64)
    with pytest.raises(ValueError, match="the state must hold"):
        backbone.step(x[:, 0], state[1:])
    with pytest.raises(ValueError, match=r"state blocks\.0.* must be"):
        backbone.step(x[:, 0], (state[0][:, :, 1:], *state[1:]))
    with pytest.raises(ValueError, match=r"state blocks\.0.* must be"):
        backbone.step(x[:2, 0], state)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 2)])
def test_a_convolution_steps_as_it_convolves(groups: int, kernel_size: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(4, 8, kernel_size, dilation, groups=groups, weight_norm=True).double()
    x, outputs = torch.randn(2, 4, 11, dtype=torch.float64), []
    past = torch.zeros(2, 4, (kernel_size - 1) * dilation, dtype=torch.float64)
    for x_t in x.unbind(2):
        y_t, past = layer.step(x_t, past)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 2), layer(x), rtol=0.0, atol=1e-12)
