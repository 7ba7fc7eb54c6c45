"""State-space duality (SSD): the recurrence of Mamba-2, whose transition is one scalar a head, by matrix products.

For every series b and head h, with state S (P, N), P channels of the head and N states (Dao & Gu, "Transformers are
SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024):

    S[t] = exp(delta[t] A) S[t-1] + delta[t] x[t] B[t]^T,      S[-1] = 0
    y[t] = S[t] C[t]

`ssd_reference` is that, line for line. `ssd` cuts time into chunks (section 6): within a chunk the same map is a masked
attention matrix, between chunks only one state is handed on, so the loop over time shrinks by the chunk's length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.decoding.streaming import recurrence

__all__ = ["CHUNK", "ssd", "ssd_reference", "ssd_step", "ssd_trail"]

CHUNK = 16
"""Steps of a chunk: work within chunks grows with it, the number of sequential steps falls with it."""


def ssd_reference(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """SSD as a plain loop over time, the oracle of `ssd`; same arguments and results."""
    _check(x, delta, A, B, C, state)
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], delta[:, t], A, B[:, t], C[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd_step(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the recurrence: `x` (batch, head, channel), `delta` (batch, head), `B`, `C` (batch, state).

    Returns the output (batch, head, channel) and the new state (batch, head, channel, state); `state` stays as it was.
    """
    increment = (delta[:, :, None] * x)[..., None] * B[:, None, None, :]
    state = torch.addcmul(increment, torch.exp(delta * A)[:, :, None, None], state)
    return torch.matmul(state, C[:, None, :, None]).squeeze(-1), state


def ssd_trail(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """SSD over a short piece, with all its states (batch, time + 1, head, channel, state), `state` the first."""
    increment = (delta[..., None] * x)[..., None] * B[:, :, None, None, :]
    states = recurrence(torch.exp(delta * A)[..., None, None], increment, state)
    return torch.matmul(states[:, 1:], C[:, :, None, :, None]).squeeze(-1), states


def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Chunked SSD.

    Parameters
    ----------
    x : Tensor (batch, time, head, channel)
        Input; float32 or float64, like everything below.
    delta : Tensor (batch, time, head)
        Step sizes, not negative.
    A : Tensor (head,)
        Continuous transition of each head; negative for a stable system.
    B, C : Tensor (batch, time, state)
        Input and output coefficients, shared by the heads.
    state : Tensor (batch, head, channel, state)
        State before the first step; it is not written to.
    chunk : int
        Steps of a chunk. The sequence need not be a multiple of it.

    Returns
    -------
    tuple of Tensor (batch, time, head, channel) and Tensor (batch, head, channel, state)
        Output and state after the last step, in the dtype of `A` also under autocast: half precision loses a state that
        decays slowly.

    Raises
    ------
    ValueError
        If the shapes do not fit together, the sequence is empty or `chunk` is below 1.

    Dao & Gu (2024), section 6 and listing 1.
    """
    _check(x, delta, A, B, C, state)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    with torch.autocast(x.device.type, enabled=False):
        x, delta, B, C, state = (tensor.to(A.dtype) for tensor in (x, delta, B, C, state))
        return _ssd(x, delta, A, B, C, state, min(chunk, x.shape[1]))


def _ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Letters in the comments: b batch, c chunks, h heads, q and k steps of a chunk, p channels, n states."""
    batch, time, heads, channels = x.shape
    missing = -time % chunk
    # Steps of size zero at the end change neither state nor earlier outputs.
    x, B, C = (functional.pad(tensor, [0, 0] * (tensor.ndim - 2) + [0, missing]) for tensor in (x, B, C))
    delta = functional.pad(delta, (0, 0, 0, missing))
    chunks = x.shape[1] // chunk
    x = (x * delta[..., None]).unflatten(1, (chunks, chunk)).transpose(2, 3)  # bchqp
    B, C = (tensor.unflatten(1, (chunks, chunk)) for tensor in (B, C))  # bcqn
    exponent = (delta * A).unflatten(1, (chunks, chunk)).transpose(2, 3)  # bchq, the log of each step's decay
    # Differences of a running sum lose the digits that the sum has grown beyond, so the sum is kept in float64.
    running = exponent.double().cumsum(-1)
    total = running[..., -1:]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    # Decay from step k to step q; masked before the exponential, which would overflow where k is later than q.
    between = (running[..., :, None] - running[..., None, :]).to(x.dtype).masked_fill(later, -torch.inf).exp()  # bchqk
    similarity = torch.matmul(C, B.transpose(-1, -2))  # bcqk
    output = torch.matmul(similarity[:, :, None] * between, x)  # bchqp
    to_end = (total - running).to(x.dtype).exp()
    collected = torch.matmul((x * to_end[..., None]).transpose(-1, -2), B[:, :, None])  # bchpn
    before = []
    for decay, increment in zip(total.to(x.dtype).exp()[..., None].unbind(1), collected.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(increment, decay, state)
    carried = torch.matmul(C[:, :, None], torch.stack(before, dim=1).transpose(-1, -2))  # bchqp
    output = torch.addcmul(output, running.to(x.dtype).exp()[..., None], carried)
    return output.transpose(2, 3).reshape(batch, chunks * chunk, heads, channels)[:, :time], state


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> None:
    """Raise ValueError unless the six shapes fit together."""
    if x.ndim != 4 or state.ndim != 4 or x.shape[1] < 1:
        raise ValueError(
            "x must be (batch, time >= 1, head, channel) and state (batch, head, channel, state), "
            f"got {tuple(x.shape)} and {tuple(state.shape)}"
        )
    batch, time, heads, channels = x.shape
    states = state.shape[-1]
    expected = {
        "delta": (delta, (batch, time, heads)),
        "A": (A, (heads,)),
        "B": (B, (batch, time, states)),
        "C": (C, (batch, time, states)),
        "state": (state, (batch, heads, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} to fit x {tuple(x.shape)}, got {tuple(tensor.shape)}")
