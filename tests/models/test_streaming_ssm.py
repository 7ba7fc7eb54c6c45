"""Streaming the state-space family: a step at a time equals the whole pass, and a state is a value."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from models.decoding.streaming import State, StreamingBackbone, extend, fork, gather
from models.forecasters.hybrid import HybridBackbone
from models.forecasters.mamba import MambaBackbone
from models.forecasters.mamba2 import Mamba2Backbone
from models.forecasters.s4d import S4DBackbone
from models.layers import selective_scan as scan
from models.layers.state_space import ResidualStack

WIDTH, TIME = 8, 43

BACKBONES: dict[str, Callable[[], ResidualStack]] = {
    "s4d-legs-zoh": lambda: S4DBackbone(WIDTH, 2, 8, "legs", "zoh", 0.1),
    "s4d-real-bilinear": lambda: S4DBackbone(WIDTH, 2, 5, "real", "bilinear", 0.1),
    "mamba": lambda: MambaBackbone(WIDTH, 2, state_size=4, conv_size=4, expand=2, dropout=0.1),
    "mamba-no-convolution": lambda: MambaBackbone(WIDTH, 1, state_size=4, conv_size=1, expand=2, dropout=0.1),
    "mamba2": lambda: Mamba2Backbone(WIDTH, 2, state_size=4, conv_size=4, expand=2, heads=4, dropout=0.1),
    "hybrid": lambda: HybridBackbone(WIDTH, 3, state_size=4, conv_size=4, expand=2, heads=2, dropout=0.1),
    "hybrid-short-window": lambda: HybridBackbone(WIDTH, 3, 4, 4, 2, 2, 0.1, window=7),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> ResidualStack:
    torch.manual_seed(0)
    return BACKBONES[request.param]().double().eval()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(batch: int = 3, time: int = TIME) -> Tensor:
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def start(backbone: ResidualStack, batch: int = 3) -> State:
    return backbone.initial_state(batch, "cpu", torch.float64)


def walk(backbone: ResidualStack, x: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for t in range(x.shape[1]):
        y, state = backbone.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_same(found: State, expected: State) -> None:
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_steps_equal_the_whole_pass(backbone: ResidualStack) -> None:
    assert isinstance(backbone, StreamingBackbone)
    y, _ = walk(backbone, inputs(), start(backbone))
    torch.testing.assert_close(y, backbone(inputs()), rtol=1e-10, atol=1e-10)


def test_steps_equal_the_whole_pass_in_single_precision(backbone: ResidualStack) -> None:
    backbone.float()
    x = inputs().float()
    y, _ = walk(backbone, x, backbone.initial_state(3, "cpu", torch.float32))
    torch.testing.assert_close(y, backbone(x), rtol=1e-4, atol=1e-5)


def test_pieces_equal_the_whole_pass_and_end_in_the_state_of_the_steps(backbone: ResidualStack) -> None:
    _, expected = walk(backbone, inputs(), start(backbone))
    state, outputs = start(backbone), []
    for piece in inputs().split([1, 20, 4, 18], dim=1):
        y, state = extend(backbone, piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), backbone(inputs()), rtol=1e-10, atol=1e-10)
    assert_same(state, expected)


def test_a_protocol_without_its_own_extend_is_fed_step_by_step(backbone: ResidualStack) -> None:
    class StepsOnly:
        initial_state, step = backbone.initial_state, backbone.step

    y, state = extend(StepsOnly(), inputs(), start(backbone))
    torch.testing.assert_close(y, backbone(inputs()), rtol=1e-10, atol=1e-10)
    assert_same(state, walk(backbone, inputs(), start(backbone))[1])


def test_a_state_is_a_flat_tuple_of_constant_size_with_the_batch_first(backbone: ResidualStack) -> None:
    state = start(backbone)
    sizes = [tensor.shape for tensor in state]
    assert all(isinstance(tensor, Tensor) and tensor.shape[0] == 3 for tensor in state)
    for time in (1, TIME):
        _, later = extend(backbone, inputs(time=time), state)
        assert [tensor.shape for tensor in later] == sizes
        assert [tensor.dtype for tensor in later] == [tensor.dtype for tensor in state]


def test_rolling_back_is_keeping_the_old_state(backbone: ResidualStack) -> None:
    x = inputs()
    _, kept = walk(backbone, x[:, :20], start(backbone))
    before = tuple(tensor.clone() for tensor in kept)
    expected, _ = walk(backbone, x[:, 20:], kept)
    walk(backbone, -x[:, 20:], kept)
    extend(backbone, -x[:, 20:], kept)
    assert all(torch.equal(got, want) for got, want in zip(kept, before, strict=True))
    again, _ = walk(backbone, x[:, 20:], kept)
    assert torch.equal(again, expected)


def test_gathered_rows_go_on_as_in_their_own_batch(backbone: ResidualStack) -> None:
    x, index = inputs(), torch.tensor([2, 0, 2, 1])
    _, state = walk(backbone, x[:, :20], start(backbone))
    y, _ = walk(backbone, x[index, 20:], gather(state, index))
    torch.testing.assert_close(y, backbone(x)[index, 20:], rtol=1e-10, atol=1e-10)
    with pytest.raises(IndexError):
        gather(state, torch.tensor([3]))


def test_forked_paths_share_their_history_and_then_part(backbone: ResidualStack) -> None:
    x = inputs()
    _, state = walk(backbone, x[:, :20], start(backbone))
    paths = torch.cat([x[:, :20].repeat_interleave(4, dim=0), inputs(batch=12)[:, 20:]], dim=1)
    y, _ = walk(backbone, paths[:, 20:], fork(state, 4))
    torch.testing.assert_close(y, backbone(paths)[:, 20:], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="copies must be at least 1"):
        fork(state, 0)


def test_rows_of_different_ages_stream_side_by_side(backbone: ResidualStack) -> None:
    """Merged states of a long and an empty history: each row goes on as if alone."""
    x = inputs()
    _, old = walk(backbone, x[:1, :20], start(backbone, batch=1))
    merged = tuple(torch.cat(pair) for pair in zip(old, start(backbone, batch=1), strict=True))
    y, _ = walk(backbone, torch.cat([x[:1, 20:], x[1:2, 20:]]), merged)
    torch.testing.assert_close(y[0], backbone(x[:1])[0, 20:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y[1], backbone(x[1:2, 20:])[0], rtol=1e-10, atol=1e-10)


def test_a_state_that_does_not_fit_is_named(backbone: ResidualStack) -> None:
    state = start(backbone)
    with pytest.raises(ValueError, match=f"must hold {len(state)} tensors, got {len(state) - 1}"):
        backbone.step(inputs()[:, 0], state[1:])
    for wrong in ((state[0][:2], *state[1:]), (state[0][..., None], *state[1:])):
        with pytest.raises(ValueError, match=r"state blocks\.0\.\w+ must be \(3, "):
            backbone.step(inputs()[:, 0], wrong)
    with pytest.raises(ValueError, match="must have 8 channels, got 7"):
        backbone.step(inputs()[:, 0, :7], state)
    with pytest.raises(ValueError, match="must be \\(batch, 8\\)"):
        backbone.step(inputs(), state)
    with pytest.raises(ValueError, match="time >= 1"):
        extend(backbone, inputs()[:, :0], state)
    with pytest.raises(ValueError, match="at least 1 row"):
        start(backbone, batch=0)


def scan_arguments(time: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = torch.rand(2, time, 3, generator=generator, dtype=torch.float64)
    return [normal(2, 3, 4), normal(2, time, 3), delta, -normal(3, 4).exp(), normal(2, time, 4), normal(2, time, 4), normal(3)]


@pytest.mark.parametrize("time", [1, 16, 37])
def test_scan_from_a_state_has_the_values_and_gradients_of_its_steps(time: int) -> None:
    with torch.enable_grad():
        tensors = [tensor.requires_grad_() for tensor in scan_arguments(time)]
        state, u, delta, A, B, C, D = tensors
        outputs = []
        for t in range(time):
            y, state = scan.selective_scan_step(state, u[:, t], delta[:, t], A, B[:, t], C[:, t], D)
            outputs.append(y)
        slow = (torch.stack(outputs, dim=1), state)
        fast = scan.selective_scan_from(*tensors)
        weights = [torch.randn_like(output) for output in slow]
        found, expected = torch.autograd.grad(fast, tensors, weights), torch.autograd.grad(slow, tensors, weights)
    for got, want in zip((*fast, *found), (*slow, *expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_scan_from_nothing_is_the_scan_and_a_wrong_state_is_named() -> None:
    state, *rest = scan_arguments(20)
    y, _ = scan.selective_scan_from(torch.zeros_like(state), *rest)
    torch.testing.assert_close(y, scan.selective_scan(*rest))
    torch.testing.assert_close(y, scan.selective_scan_reference(*rest))
    with pytest.raises(ValueError, match=r"state must be \(2, 3, 4\)"):
        scan.selective_scan_from(state[:1], *rest)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        scan.selective_scan_from(state, *rest, chunk=0)


class OnCuda:
    """Stands for a tensor on a GPU, of which only the place is asked."""

    is_cuda = True


@pytest.fixture
def fresh_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    caches = (scan._backend, scan._cuda_kernel)
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(("kernel", "chosen"), [(object(), "mamba_ssm"), (None, "torch"), ("absent", "torch")])
def test_backend_needs_the_compiled_kernel_and_not_the_package_alone(
    fresh_backend: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernel: object, chosen: str
) -> None:
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.__dict__.update(selective_scan_cuda=kernel, selective_scan_fn=lambda *arguments: arguments)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        fresh_backend.setitem(sys.modules, name, types.ModuleType(name))
    fresh_backend.setitem(sys.modules, interface.__name__, None if kernel == "absent" else interface)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="weatherglass"):
        for _ in range(3):
            assert scan.resolve_backend(OnCuda()) == chosen  # type: ignore[arg-type]
            assert scan.resolve_backend(torch.zeros(1)) == "torch"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"selective scan on CUDA tensors: {chosen}", "selective scan on CPU tensors: torch"]


def test_the_kernel_gets_its_own_layout_and_our_result_back(fresh_backend: pytest.MonkeyPatch) -> None:
    """mamba-ssm wants (batch, channel, time); a stand-in with its signature must give the loop's numbers."""

    def kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
        return scan.selective_scan_reference(u, delta, A, B, C, D).transpose(1, 2)

    fresh_backend.setattr(scan, "resolve_backend", lambda x: "mamba_ssm")
    fresh_backend.setattr(scan, "_cuda_kernel", lambda: kernel)
    arguments = [tensor.float() for tensor in scan_arguments(20)[1:]]
    torch.testing.assert_close(scan.selective_scan(*arguments), scan.selective_scan_reference(*arguments))
