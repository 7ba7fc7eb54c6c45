"""The fast scan against its plain loop: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from models.layers.selective_scan import CHUNK, selective_scan, selective_scan_reference

NAMES = ("u", "delta", "A", "B", "C", "D")


def arguments(batch: int, time: int, channel: int, state: int, dtype: torch.dtype) -> list[Tensor]:
    """Random arguments with step sizes and decays as in a trained network; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = torch.rand(batch, time, channel, generator=generator, dtype=torch.float64) + 1e-3
    A = -torch.arange(1.0, state + 1.0, dtype=torch.float64) * torch.exp(0.3 * normal(channel, state))
    tensors = [
        normal(batch, time, channel),
        delta,
        A,
        normal(batch, time, state),
        normal(batch, time, state),
        normal(channel),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def fast(inputs: Sequence[Tensor], chunk: int = CHUNK) -> Tensor:
    u, delta, A, B, C, D = inputs
    return selective_scan(u, delta, A, B, C, D, chunk=chunk)


def slow(inputs: Sequence[Tensor]) -> Tensor:
    u, delta, A, B, C, D = inputs
    return selective_scan_reference(u, delta, A, B, C, D)


def value_and_gradients(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, inputs, weight.to(output.dtype))]


@pytest.mark.parametrize("time", [1, 15, 16, 17, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_fast_scan_equals_the_loop_in_values_and_gradients(time: int, dtype: torch.dtype, tolerance: float) -> None:
    shape = (3, time, 5, 4)
    exact, inputs = arguments(*shape, torch.float64), arguments(*shape, dtype)
    expected, found = value_and_gradients(slow(exact), exact), value_and_gradients(fast(inputs), inputs)
    for name, want, got in zip(("y", *NAMES), expected, found, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        error, size = (got.double() - want).abs().max(), want.abs().max()
        assert error <= tolerance * size, f"{name}: error {error:.1e} at size {size:.1e}"


def test_chunk_size_changes_memory_not_results() -> None:
    inputs = arguments(2, 23, 3, 2, torch.float64)
    expected = value_and_gradients(fast(inputs), inputs)
    for chunk in (1, 7, 23, 64):
        for want, got in zip(expected, value_and_gradients(fast(inputs, chunk), inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    inputs = arguments(2, 7, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: fast(x, chunk=3), inputs)


def test_long_sequences_with_strong_decay_stay_finite() -> None:
    """The product of decays over the sequence underflows here, where a scan by cumulative sums of logs gives NaN."""
    inputs = arguments(1, 600, 2, 3, torch.float32)
    inputs[1] = torch.full_like(inputs[1], 5.0).requires_grad_()
    assert all(bool(torch.isfinite(x).all()) for x in value_and_gradients(fast(inputs), inputs))


def test_constant_input_reaches_the_fixed_point_of_the_recurrence() -> None:
    """h = dt B u / (1 - exp(dt A)) is where the recurrence stands still."""
    steps, delta, A, B, C, D = 400, 0.1, -0.7, 1.3, 0.4, 0.2
    ones = torch.ones(1, steps, 1, dtype=torch.float64)
    decay, skip = torch.tensor([[A]], dtype=torch.float64), torch.tensor([D], dtype=torch.float64)
    y = selective_scan(ones, delta * ones, decay, B * ones, C * ones, skip)
    fixed_point = C * delta * B / (1 - torch.exp(torch.tensor(delta * A, dtype=torch.float64))) + D
    torch.testing.assert_close(y[0, -1, 0], fixed_point, rtol=1e-10, atol=0.0)


def test_autocast_keeps_the_recurrence_in_the_dtype_of_its_parameters() -> None:
    inputs = [tensor.detach() for tensor in arguments(2, 20, 4, 3, torch.float32)]
    expected = fast(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(inputs), expected)


@pytest.mark.parametrize("scan", [fast, slow])
def test_shapes_that_do_not_fit_are_named(scan: Callable[[Sequence[Tensor]], Tensor]) -> None:
    for position, name in enumerate(NAMES):
        inputs = arguments(2, 6, 3, 4, torch.float32)
        inputs[position] = inputs[position][..., :-1]
        with pytest.raises(ValueError, match=r"must be" if name in ("u", "A") else f"^{name} must be"):
            scan(inputs)
    empty = [x[:, :0] if x.ndim == 3 else x for x in arguments(2, 6, 3, 4, torch.float32)]
    with pytest.raises(ValueError, match="time >= 1"):
        scan(empty)


def test_chunk_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        fast(arguments(1, 3, 2, 2, torch.float32), chunk=0)
