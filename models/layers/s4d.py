"""S4D: a diagonal state-space model for every channel, run as a long convolution or as a recurrence.

A channel with input u and N states follows (Gu, Gupta, Goel & Re, "On the Parameterization and Initialization of
Diagonal State Space Models", 2022, equations 1-3)

    h'(t) = A h(t) + B u(t),   y(t) = C h(t) + D u(t),   A diagonal,

and, sampled with step delta, h[t] = Abar h[t-1] + Bbar u[t] and y[t] = C h[t] + D u[t]. Because Abar does not depend on
the input, y is also the convolution of u with K[l] = C Abar^l Bbar. Complex states come in conjugate pairs, and one half
of each is kept: C h then is 2 Re(C h).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.decoding.streaming import StateSpec, recurrence
from models.layers.state_space import log_uniform_step, spare_from_weight_decay

__all__ = [
    "DISCRETISATIONS",
    "INITIALISATIONS",
    "S4D",
    "causal_fft_convolution",
    "discretise",
    "hippo_legs",
    "powers",
    "spectrum",
]

INITIALISATIONS = ("legs", "lin", "inv", "real")
DISCRETISATIONS = ("zoh", "bilinear", "euler")


def hippo_legs(state_size: int) -> tuple[Tensor, Tensor]:
    """The HiPPO-LegS matrices A (N, N) and B (N,), float64: A = -(tril(P P^T) - diag(n)), B = P, P[n] = sqrt(2 n + 1).

    Gu, Dao, Ermon, Rudra & Re, "HiPPO: Recurrent Memory with Optimal Polynomial Projections" (2020), theorem 2.
    """
    n = torch.arange(state_size, dtype=torch.float64)
    scale = torch.sqrt(2 * n + 1)
    return torch.diag(n) - torch.tril(torch.outer(scale, scale)), scale


def spectrum(initialisation: str, state_size: int) -> tuple[Tensor, Tensor]:
    """Diagonal A and input vector B at the start of training, for one channel.

    Parameters
    ----------
    initialisation : str
        "legs": the eigenvalues of the normal part of HiPPO-LegS, A + P P^T / 2, and B in its eigenvectors' basis,
        halved, with which it tends to the Legendre basis as N grows. "lin": -1/2 + i pi n. "inv": -1/2 + i N/pi
        (N / (2 n + 1) - 1). "real": -(n + 1), the eigenvalues of HiPPO-LegS itself. B is 1 for the last three.
    state_size : int
        N, the real dimension; even for all but "real".

    Returns
    -------
    tuple of Tensor (M,) and Tensor (M,)
        complex128 with M = N / 2, imaginary parts positive or zero; float64 with M = N for "real".

    Raises
    ------
    ValueError
        If the initialisation does not exist, or N is below 1, or odd where pairs are needed.

    Gu et al. (2022), section 4.
    """
    if initialisation not in INITIALISATIONS:
        raise ValueError(f"initialisation must be one of {', '.join(INITIALISATIONS)}, got '{initialisation}'")
    if state_size < 1 or (state_size % 2 and initialisation != "real"):
        raise ValueError(f"state_size must be at least 1, and even for conjugate pairs, got {state_size}")
    if initialisation == "real":
        diagonal = -torch.arange(1.0, state_size + 1.0, dtype=torch.float64)
        return diagonal, torch.ones_like(diagonal)
    pairs = state_size // 2
    if initialisation == "legs":
        A, B = hippo_legs(state_size)
        skew = A + torch.outer(B, B) / 2 + torch.eye(state_size, dtype=torch.float64) / 2
        frequencies, vectors = torch.linalg.eigh(-1j * skew)  # skew = V diag(i frequencies) V*
        inputs = (vectors.mH @ B.to(vectors.dtype)) / 2
        return torch.complex(torch.full((pairs,), -0.5).double(), frequencies[pairs:]), inputs[pairs:]
    n = torch.arange(pairs, dtype=torch.float64)
    imaginary = math.pi * n if initialisation == "lin" else state_size / math.pi * (state_size / (2 * n + 1) - 1)
    diagonal = torch.complex(torch.full_like(n, -0.5), imaginary)
    return diagonal, torch.ones_like(diagonal)


def discretise(A: Tensor, B: Tensor, step: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Abar and Bbar of the sampled system, shaped like `A`, from the continuous one and its step size.

    With z = step A: "zoh" exp(z), expm1(z) / A B; "bilinear" (1 + z/2) / (1 - z/2), step / (1 - z/2) B; both keep every
    stable system stable. "euler" 1 + z, step B, which does not: |Abar| reaches 8 at step 0.1 and N = 16. It is there to
    be compared with.

    Raises
    ------
    ValueError
        If the method does not exist.

    Gu et al. (2022), section 3.1.
    """
    z = step * A
    if method == "zoh":
        return torch.exp(z), torch.expm1(z) / A * B
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), step / (1 - z / 2) * B
    if method == "euler":
        return 1 + z, step * B
    raise ValueError(f"discretisation must be one of {', '.join(DISCRETISATIONS)}, got '{method}'")


def powers(base: Tensor, length: int) -> Tensor:
    """base ** 0, ..., base ** (length - 1) along a new last axis, by doubling; the base is complex or of any sign."""
    values, factor = torch.ones_like(base)[..., None], base[..., None]
    while (done := values.shape[-1]) < length:
        values = torch.cat([values, values[..., : length - done] * factor], dim=-1)
        factor = factor * factor
    return values


def causal_fft_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y[t] = sum_{l <= t} kernel[l] u[t - l] over the last axis, `u` (batch, channel, time), `kernel` (channel, time).

    Padded to twice the length: without it the product of spectra is a circular convolution, and the end of the series
    would leak into its beginning. Later inputs reach an output as rounding error only, but a NaN reaches all outputs.
    """
    length = u.shape[-1]
    product = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(product, n=2 * length)[..., :length]


class S4D(nn.Module):
    """Diagonal state-space models side by side, one a channel; channels do not mix.

    Parameters
    ----------
    width : int
        Channels.
    state_size : int
        N, states of a channel; N / 2 conjugate pairs unless `initialisation` is "real".
    initialisation, discretisation : str
        As in `spectrum` and `discretise`.

    Raises
    ------
    ValueError
        As `spectrum` and `discretise`.

    Gu et al. (2022). Re A = -exp(log_decay) stays negative in training; delta is log-uniform in `STEP_RANGE` at the
    start, C standard normal, D normal.
    """

    def __init__(self, width: int, state_size: int, initialisation: str, discretisation: str) -> None:
        super().__init__()
        if discretisation not in DISCRETISATIONS:
            raise ValueError(f"discretisation must be one of {', '.join(DISCRETISATIONS)}, got '{discretisation}'")
        diagonal, inputs = spectrum(initialisation, state_size)
        self.width, self.states, self.discretisation = width, len(diagonal), discretisation
        self.complex = diagonal.is_complex()
        self.log_step = nn.Parameter(log_uniform_step(width).log())
        self.log_decay = nn.Parameter((-diagonal.real).log().float().repeat(width, 1))
        self.frequency = nn.Parameter(diagonal.imag.float().repeat(width, 1)) if self.complex else None
        self.B = nn.Parameter(_as_real(inputs).repeat(width, 1, 1))
        parts = self.B.shape[-1]
        self.C = nn.Parameter(torch.randn(width, self.states, parts) * parts**-0.5)
        self.D = nn.Parameter(torch.randn(width))
        self._frozen: tuple[Tensor, Tensor, Tensor] | None = None
        self.undecayed = ("log_step", "log_decay", "B", "D", *(("frequency",) if self.complex else ()))
        spare_from_weight_decay(self)

    @property
    def state_spec(self) -> StateSpec:
        """The states (width, M) of the recurrence: complex halves of pairs, or real."""
        return StateSpec("s4d", (self.width, self.states), "complex" if self.complex else "real")

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Abar, Bbar and C, each (width, M); C carries the factor 2 of conjugate pairs."""
        if self._frozen is not None:
            return self._frozen
        decay = -torch.exp(self.log_decay)
        A = decay if self.frequency is None else torch.complex(decay, self.frequency)
        decays, inputs = discretise(A, _from_real(self.B), torch.exp(self.log_step)[:, None], self.discretisation)
        return decays, inputs, _from_real(self.C) * (2 if self.complex else 1)

    @torch.no_grad()
    def freeze(self) -> None:
        """Compute `coefficients` once and for all, for a copy of which the weights change no more."""
        self._frozen = self.coefficients()

    def kernel(self, length: int) -> Tensor:
        """K[l] = C Abar^l Bbar for l < `length`, real (width, length)."""
        decays, inputs, outputs = self.coefficients()
        return torch.matmul((outputs * inputs)[:, None], powers(decays, length)).squeeze(1).real

    def forward(self, u: Tensor) -> Tensor:
        """Convolution mode: map (batch, time, width) to (batch, time, width)."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(self.D.dtype)
            return causal_fft_convolution(u.transpose(1, 2), self.kernel(u.shape[1])).transpose(1, 2) + self.D * u

    def extend(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution mode that goes on from `state` (batch, width, M); also the state after the last step."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(self.D.dtype)
            length = u.shape[1]
            decays, inputs, outputs = self.coefficients()
            factors = powers(decays, length)  # (width, M, time)
            by_channel = state.transpose(0, 1)  # (width, batch, M)
            remembered = torch.matmul(by_channel * (outputs * decays)[:, None], factors).real  # (width, batch, time)
            pieces = u.permute(2, 0, 1).to(factors.dtype)  # (width, batch, time)
            gathered = torch.matmul(pieces, factors.flip(-1).transpose(1, 2)) * inputs[:, None]
            last = gathered + by_channel * (factors[..., -1] * decays)[:, None]
            kernel = torch.matmul((outputs * inputs)[:, None], factors).squeeze(1).real
            y = causal_fft_convolution(u.transpose(1, 2), kernel).transpose(1, 2) + remembered.permute(1, 2, 0)
            return y + self.D * u, last.transpose(0, 1)

    def trail(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Recurrent mode over a short piece (batch, time, width): outputs, and all states (batch, time + 1, width, M)."""
        decays, inputs, outputs = self.coefficients()
        states = recurrence(decays.expand(1, u.shape[1], -1, -1), inputs * u[..., None], state)
        return (states[:, 1:] * outputs).sum(-1).real + self.D * u, states

    def step(self, u_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Recurrent mode, one step: `u_t` (batch, width), `state` (batch, width, M), which is not written to."""
        decays, inputs, outputs = self.coefficients()
        state = torch.addcmul(inputs * u_t[..., None], decays, state)
        return (state * outputs).sum(-1).real + self.D * u_t, state


def _as_real(values: Tensor) -> Tensor:
    """(M,) real or complex to float32 (M, 1) or (M, 2)."""
    return (torch.view_as_real(values) if values.is_complex() else values[..., None]).float()


def _from_real(values: Tensor) -> Tensor:
    """Inverse of `_as_real` along the last axis, in the values' own precision."""
    return torch.view_as_complex(values) if values.shape[-1] == 2 else values[..., 0]
