"""The selective scan of Mamba: a linear recurrence whose coefficients depend on the input at every step.

For every series b, channel e and state n (Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
2023, equations 1-4 with the discretisation of its Algorithm 2):

    h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t],      h[-1] = 0
    y[t] = sum_n C[t] h[t] + D u[t]

`selective_scan_reference` is that, line for line. `selective_scan` gives the same numbers several times faster: it lays
the states out as (batch, state, channel) so that every operation of the recurrence runs over contiguous memory, keeps
one state a chunk instead of one a step, and recomputes a chunk's states when backward reaches it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.decoding.streaming import recurrence

__all__ = [
    "CHUNK",
    "resolve_backend",
    "selective_scan",
    "selective_scan_from",
    "selective_scan_reference",
    "selective_scan_step",
]

logger = logging.getLogger("weatherglass")

CHUNK = 16
"""Steps between two kept states: memory for states falls by this factor, at the price of one recomputation."""

LOG2_E = 1.0 / math.log(2.0)
"""exp(x) = exp2(x log2(e)); torch's exp2 takes a third of the time of its exp on a CPU without fast vector maths."""


@functools.cache
def _cuda_kernel() -> Callable[..., Tensor] | None:
    """mamba-ssm's Mamba-1 scan, or None without its compiled kernel, which a default install of the package lacks."""
    try:
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError):
        return None
    if getattr(interface, "selective_scan_cuda", None) is None:
        return None
    kernel: Callable[..., Tensor] = interface.selective_scan_fn
    return kernel


@functools.cache
def _backend(is_cuda: bool) -> str:
    name = "mamba_ssm" if is_cuda and _cuda_kernel() is not None else "torch"
    logger.info("selective scan on %s tensors: %s", "CUDA" if is_cuda else "CPU", name)
    return name


def resolve_backend(x: Tensor) -> str:
    """Which scan runs on tensors where `x` is: "mamba_ssm" (its CUDA kernel, where built) or "torch" (this file).

    Chosen, and logged to "weatherglass", once for each kind of device in a process.
    """
    return _backend(x.is_cuda)


def selective_scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Selective scan as a plain loop over time, the oracle of `selective_scan`.

    Parameters
    ----------
    u, delta : Tensor (batch, time, channel)
        Input and step size; float32 or float64, like everything below.
    A : Tensor (channel, state)
        Diagonal of the continuous transition; negative for a stable system.
    B, C : Tensor (batch, time, state)
        Input and output coefficients.
    D : Tensor (channel,)
        Skip coefficient.

    Returns
    -------
    Tensor (batch, time, channel)
        Output of the recurrence, differentiable in all six arguments.

    Raises
    ------
    ValueError
        If the shapes do not fit together or the sequence is empty.

    Gu & Dao (2023), Algorithm 2.
    """
    _check(u, delta, A, B, C, D)
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, dim=1)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = CHUNK) -> Tensor:
    """Selective scan with chunked recomputation; same arguments and result as `selective_scan_reference`.

    Single-precision CUDA tensors go to mamba-ssm's kernel where it is there (`resolve_backend`).

    Parameters
    ----------
    u, delta, A, B, C, D : Tensor
        As in `selective_scan_reference`. The recurrence is computed in the dtype of `A`, also under autocast: half
        precision loses a state that decays slowly.
    chunk : int
        Steps between two kept states. The sequence need not be a multiple of it.

    Returns
    -------
    Tensor (batch, time, channel)
        Output of the recurrence, once differentiable in all six tensors. Working memory in backward is
        `(time / chunk + 3 chunk) * batch * state * channel` numbers.

    Raises
    ------
    ValueError
        If the shapes do not fit together, the sequence is empty or `chunk` is below 1.

    Gu & Dao (2023), section 3.3.2 (recomputation).
    """
    _check(u, delta, A, B, C, D)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    with torch.autocast(u.device.type, enabled=False):
        u, delta, B, C, D = (x.to(A.dtype) for x in (u, delta, B, C, D))
        if A.dtype == torch.float32 and resolve_backend(u) == "mamba_ssm":
            kernel = _cuda_kernel()
            assert kernel is not None
            u, delta, B, C = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
            return kernel(u, delta, A, B, C, D).transpose(1, 2)
        apply: Callable[..., tuple[Tensor, Tensor]] = _SelectiveScan.apply
        return apply(u, delta, A, B, C, D, None, chunk)[0]


def selective_scan_from(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Selective scan that goes on from h[-1] = `state` (batch, channel, state) and also returns the last state.

    Parameters
    ----------
    state : Tensor (batch, channel, state)
        Where the piece before this one ended; it is not written to.
    u, delta, A, B, C, D, chunk
        As in `selective_scan`.

    Returns
    -------
    tuple of Tensor (batch, time, channel) and Tensor (batch, channel, state)
        Output and state after the last step, once differentiable in all seven tensors.

    Raises
    ------
    ValueError
        As `selective_scan`, and for a state that does not fit.
    """
    _check(u, delta, A, B, C, D)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if state.shape != (u.shape[0], *A.shape):
        raise ValueError(f"state must be {(u.shape[0], *A.shape)}, got {tuple(state.shape)}")
    with torch.autocast(u.device.type, enabled=False):
        u, delta, B, C, D, state = (x.to(A.dtype) for x in (u, delta, B, C, D, state))
        apply: Callable[..., tuple[Tensor, Tensor]] = _SelectiveScan.apply
        output, last = apply(u, delta, A, B, C, D, state.transpose(1, 2), chunk)
        return output, last.transpose(1, 2)


def selective_scan_step(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence: `u`, `delta` (batch, channel), `B`, `C` (batch, state), `state` as above.

    Returns the output (batch, channel) and the new state (batch, channel, state); `state` is not written to.
    """
    increment = (delta * u)[:, :, None] * B[:, None, :]
    state = torch.addcmul(increment, torch.exp(delta[:, :, None] * A), state)
    return torch.matmul(state, C[:, :, None]).squeeze(-1) + D * u, state


def selective_scan_trail(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan_from` over a short piece, with all its states (batch, time + 1, channel, state), `state` the first."""
    increment = (delta * u)[..., None] * B[:, :, None, :]
    states = recurrence(torch.exp(delta[..., None] * A), increment, state)
    return torch.matmul(states[:, 1:], C[..., None]).squeeze(-1) + D * u, states


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    """Raise ValueError unless the six shapes fit together."""
    if u.ndim != 3 or A.ndim != 2 or u.shape[1] < 1:
        raise ValueError(
            f"u must be (batch, time >= 1, channel) and A (channel, state), got {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, time, channel = u.shape
    coefficients = (batch, time, A.shape[1])
    expected = {
        "delta": (delta, (batch, time, channel)),
        "A": (A, (channel, A.shape[1])),
        "B": (B, coefficients),
        "C": (C, coefficients),
        "D": (D, (channel,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} to fit u {tuple(u.shape)}, got {tuple(tensor.shape)}")


def _outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write `left (time, batch, state)` times `right (time, batch, channel)` to `out (time, batch, state, channel)`."""
    torch.mul(left.unsqueeze(-1), right.unsqueeze(-2), out=out)


def _contract_state(coefficients: Tensor, states: Tensor) -> Tensor:
    """Sum over the state axis: (time, batch, state) with (time, batch, state, channel) to (time, batch, channel)."""
    return torch.matmul(coefficients.unsqueeze(-2), states).squeeze(-2)


def _contract_channel(states: Tensor, values: Tensor, scratch: Tensor) -> Tensor:
    """Sum over the channel axis: (time, batch, state, channel) with (time, batch, channel) to (time, batch, state).

    The products go to `scratch`, shaped like `states`: a fresh buffer a call would cost more than the arithmetic.
    """
    return torch.mul(states, values.unsqueeze(-2), out=scratch).sum(-1)


def _chunk_states(delta: Tensor, scaled: Tensor, binary: Tensor, B: Tensor, decay: Tensor, states: Tensor) -> None:
    """Fill `decay` and `states[1:]` of one chunk in place, from the state before it in `states[0]`.

    Shapes: delta and scaled = delta u (steps, batch, channel); binary = A log2(e) (state, channel); B (steps, batch,
    state); decay (steps, batch, state, channel); states (steps + 1, batch, state, channel).
    """
    torch.mul(delta.unsqueeze(-2), binary, out=decay)
    decay.exp2_()
    _outer(B, scaled, states[1:])
    steps, rows = decay.unbind(0), states.unbind(0)
    for t, step in enumerate(steps):
        rows[t + 1].addcmul_(step, rows[t])


class _SelectiveScan(torch.autograd.Function):
    """Autograd pair of `selective_scan`; everything inside is time-major with the channel innermost."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        initial: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        u, delta, B, C = (x.transpose(0, 1).contiguous() for x in (u, delta, B, C))
        A = A.t().contiguous()
        binary = A * LOG2_E
        (time, batch, channel), state = u.shape, A.shape[0]
        scaled = delta * u
        starts = range(0, time, chunk)
        kept = u.new_empty(len(starts), batch, state, channel)
        longest = min(chunk, time)
        decay = u.new_empty(longest, batch, state, channel)
        states = u.new_empty(longest + 1, batch, state, channel)
        output = D * u
        last = torch.zeros_like(states[0]) if initial is None else initial
        for index, start in enumerate(starts):
            steps = min(chunk, time - start)
            piece = slice(start, start + steps)
            kept[index].copy_(last)
            states[0].copy_(last)
            _chunk_states(delta[piece], scaled[piece], binary, B[piece], decay[:steps], states[: steps + 1])
            output[piece] += _contract_state(C[piece], states[1 : steps + 1])
            last = states[steps]
        ctx.save_for_backward(u, delta, A, B, C, D, kept)
        ctx.chunk = chunk
        return output.transpose(0, 1), last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        """Reverse recurrence g[t] = C[t] dy[t] + exp(delta[t+1] A) g[t+1], where g is the gradient of the state."""
        u, delta, A, B, C, D, kept = ctx.saved_tensors
        chunk: int = ctx.chunk
        (time, batch, channel), state = u.shape, A.shape[0]
        dy = grad_output.transpose(0, 1).contiguous()
        scaled = delta * u
        binary = A * LOG2_E
        d_scaled, d_delta = torch.empty_like(u), torch.zeros_like(u)
        d_A, d_B, d_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        longest = min(chunk, time)
        decays = u.new_empty(longest, batch, state, channel)
        grads = u.new_empty(longest, batch, state, channel)
        buffer = u.new_empty(longest + 1, batch, state, channel)
        carry = grad_last.clone(memory_format=torch.contiguous_format)
        for index in reversed(range(kept.shape[0])):
            start = index * chunk
            steps = min(chunk, time - start)
            piece = slice(start, start + steps)
            decay, grad, states = decays[:steps], grads[:steps], buffer[: steps + 1]
            states[0].copy_(kept[index])
            _chunk_states(delta[piece], scaled[piece], binary, B[piece], decay, states)
            d_C[piece] = _contract_channel(states[1:], dy[piece], grad)
            _outer(C[piece], dy[piece], grad)
            grad[-1].add_(carry)
            rows, factors = grad.unbind(0), decay.unbind(0)
            for t in range(steps - 1, 0, -1):
                rows[t - 1].addcmul_(factors[t], rows[t])
            d_scaled[piece] = _contract_state(B[piece], grad)
            # decay turns into the gradient of the exponent delta A: g[t] exp(delta[t] A) h[t-1].
            exponent = decay.mul_(grad)
            carry.copy_(exponent[0])
            exponent.mul_(states[:-1])
            d_B[piece] = _contract_channel(grad, scaled[piece], states[1:])
            for n in range(state):
                d_delta[piece].addcmul_(exponent[:, :, n], A[n])
            d_A += exponent.mul_(delta[piece].unsqueeze(-2)).sum((0, 1))
        d_u = (dy * D).addcmul_(d_scaled, delta)
        d_delta.addcmul_(d_scaled, u)
        d_D = (dy * u).sum((0, 1))
        return (
            d_u.transpose(0, 1),
            d_delta.transpose(0, 1),
            d_A.t(),
            d_B.transpose(0, 1),
            d_C.transpose(0, 1),
            d_D,
            carry if ctx.needs_input_grad[6] else None,
            None,
        )
