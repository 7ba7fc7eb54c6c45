"""Chunked SSD against its plain loop, and against the selective scan that it is a case of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.layers.selective_scan import selective_scan_reference
from models.layers.ssd import CHUNK, ssd, ssd_reference

NAMES = ("x", "delta", "A", "B", "C", "state")


def arguments(time: int, dtype: torch.dtype, batch: int = 2, head: int = 3, channel: int = 4, state: int = 5) -> list[Tensor]:
    """Random arguments with decays as in a trained network; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = torch.rand(batch, time, head, generator=generator, dtype=torch.float64) * 0.5 + 1e-3
    A = -(1 + 3 * torch.rand(head, generator=generator, dtype=torch.float64))
    tensors = [
        normal(batch, time, head, channel),
        delta,
        A,
        normal(batch, time, state),
        normal(batch, time, state),
        normal(batch, head, channel, state),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def values_and_gradients(outputs: tuple[Tensor, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, inputs, weights)]


@pytest.mark.parametrize("time", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_chunks_equal_the_loop_in_values_state_and_gradients(time: int, dtype: torch.dtype, tolerance: float) -> None:
    exact, inputs = arguments(time, torch.float64), arguments(time, dtype)
    expected = values_and_gradients(ssd_reference(*exact), exact)
    found = values_and_gradients(ssd(*inputs), inputs)
    for name, want, got in zip(("y", "last", *NAMES), expected, found, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        error, size = (got.double() - want).abs().max(), want.abs().max()
        assert error <= tolerance * size, f"{name}: error {error:.1e} at size {size:.1e}"


def test_chunk_size_changes_nothing() -> None:
    inputs = arguments(23, torch.float64)
    expected = values_and_gradients(ssd(*inputs), inputs)
    for chunk in (1, 7, 23, 64):
        for want, got in zip(expected, values_and_gradients(ssd(*inputs, chunk=chunk), inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_a_piece_goes_on_where_the_last_one_ended() -> None:
    x, delta, A, B, C, state = arguments(50, torch.float64)
    whole, last = ssd(x, delta, A, B, C, state)
    pieces = []
    for part in (slice(0, 19), slice(19, 20), slice(20, 50)):
        y, state = ssd(x[:, part], delta[:, part], A, B[:, part], C[:, part], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_ssd_is_the_selective_scan_with_one_transition_a_head() -> None:
    x, delta, A, B, C, state = arguments(37, torch.float64)
    heads, channels, states = state.shape[1:]
    y, _ = ssd(x, delta, A, B, C, torch.zeros_like(state))
    wide_A = A.repeat_interleave(channels)[:, None].expand(-1, states)
    wide_delta = delta.repeat_interleave(channels, dim=-1)
    scanned = selective_scan_reference(x.flatten(2), wide_delta, wide_A, B, C, x.new_zeros(heads * channels))
    torch.testing.assert_close(y.flatten(2), scanned)


def test_gradients_agree_with_finite_differences() -> None:
    inputs = arguments(7, torch.float64, batch=1, head=2, channel=2, state=2)
    assert torch.autograd.gradcheck(lambda *tensors: ssd(*tensors, chunk=3), inputs)


def test_large_and_small_steps_in_one_chunk_keep_single_precision() -> None:
    """A float32 running sum of the exponents would be wrong here by 5e-6; the differences must not inherit its size."""
    exact = [tensor.detach() for tensor in arguments(100, torch.float64)]
    draw = torch.rand(exact[1].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact[1] = torch.where(draw < 0.3, exact[1] * 40, exact[1] * 1e-3)
    expected, _ = ssd_reference(*exact)
    found, _ = ssd(*(tensor.float() for tensor in exact))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_strong_decay_stays_finite_in_values_and_gradients() -> None:
    """Above the diagonal of a chunk's mask the exponent would overflow; it must leave no NaN in the gradient."""
    inputs = arguments(300, torch.float32)
    inputs[1] = torch.full_like(inputs[1], 50.0).requires_grad_()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in values_and_gradients(ssd(*inputs), inputs))


def test_autocast_keeps_the_recurrence_in_the_dtype_of_its_parameters() -> None:
    inputs = [tensor.detach() for tensor in arguments(20, torch.float32)]
    expected = ssd(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(got, want) for got, want in zip(ssd(*inputs), expected, strict=True))


@pytest.mark.parametrize("function", [ssd, ssd_reference])
def test_shapes_that_do_not_fit_are_named(function: object) -> None:
    assert callable(function)
    for position, name in enumerate(NAMES):
        inputs = arguments(6, torch.float32)
        # A shorter state axis of `state` itself reads as a B that is too long.
        inputs[position] = inputs[position][:-1] if name == "state" else inputs[position][..., :-1]
        with pytest.raises(ValueError, match=r"must be" if name == "x" else f"^{name} must be"):
            function(*inputs)
    timed = {"x", "delta", "B", "C"}
    inputs = arguments(6, torch.float32)
    empty = [tensor[:, :0] if name in timed else tensor for name, tensor in zip(NAMES, inputs, strict=True)]
    with pytest.raises(ValueError, match="time >= 1"):
        function(*empty)


def test_chunk_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ssd(*arguments(3, torch.float32), chunk=0)
