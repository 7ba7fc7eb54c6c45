"""S4D: spectra at the start, discretisations, convolution against recurrence, causality."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.forecasters.s4d import S4DBackbone
from models.layers.s4d import (
    DISCRETISATIONS,
    INITIALISATIONS,
    S4D,
    causal_fft_convolution,
    discretise,
    hippo_legs,
    powers,
    spectrum,
)
from models.layers.state_space import no_weight_decay_parameters

STABLE = ("zoh", "bilinear")


def recurrence(layer: S4D, u: Tensor) -> Tensor:
    """The sampled system of equation 3, one step after another, for `u` (batch, time, width)."""
    decays, inputs, outputs = layer.coefficients()
    h = torch.zeros(u.shape[0], *decays.shape, dtype=decays.dtype)
    result = []
    for t in range(u.shape[1]):
        h = decays * h + inputs * u[:, t, :, None]
        result.append((outputs * h).sum(-1).real + layer.D * u[:, t])
    return torch.stack(result, dim=1)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("discretisation", STABLE)
@pytest.mark.parametrize("time", [1, 2, 33, 100])
def test_convolution_equals_recurrence(initialisation: str, discretisation: str, time: int) -> None:
    torch.manual_seed(0)
    layer = S4D(5, 16, initialisation, discretisation).double()
    u = torch.randn(3, time, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = recurrence(layer, u)
        assert (layer(u) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("initialisation", ["legs", "real"])
def test_convolution_and_recurrence_have_the_same_gradients(initialisation: str) -> None:
    torch.manual_seed(0)
    layer = S4D(4, 8, initialisation, "zoh").double()
    u = torch.randn(2, 21, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 21, 4, dtype=torch.float64)
    inputs = [u, *layer.parameters()]
    fast = torch.autograd.grad(layer(u), inputs, weight)
    slow = torch.autograd.grad(recurrence(layer, u), inputs, weight)
    for got, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_bilinear_with_negative_and_euler_with_zero_powers_agree_with_the_recurrence() -> None:
    """Real A with a long step: Abar is negative in bilinear, and 0 where Euler meets step A = -1."""
    torch.manual_seed(0)
    u = torch.randn(2, 30, 1, dtype=torch.float64)
    for discretisation, step in (("bilinear", 1.0), ("euler", 0.25)):
        layer = S4D(1, 4, "real", discretisation).double()
        with torch.no_grad():
            layer.log_step.fill_(math.log(step))
        assert bool((layer.coefficients()[0] < 1e-6).any())
        torch.testing.assert_close(layer(u), recurrence(layer, u), rtol=1e-12, atol=1e-12)


def test_padding_is_what_makes_the_convolution_causal() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    expected = torch.stack([(kernel[:, : t + 1].flip(-1) * u[..., : t + 1]).sum(-1) for t in range(50)], dim=-1)
    torch.testing.assert_close(causal_fft_convolution(u, kernel), expected, rtol=1e-12, atol=1e-12)
    circular = torch.fft.irfft(torch.fft.rfft(u) * torch.fft.rfft(kernel), n=50)
    assert (circular - expected).abs().mean() > 0.28 * expected.abs().mean()


def test_powers_are_those_of_repeated_multiplication() -> None:
    base = torch.tensor([0.9, -0.5, 0.0, 1.0], dtype=torch.float64)
    expected = torch.stack([base**n for n in range(11)], dim=-1)
    torch.testing.assert_close(powers(base, 11), expected, rtol=1e-13, atol=0.0)
    turn = torch.polar(torch.ones(1).double(), torch.full((1,), math.tau / 12, dtype=torch.float64))
    torch.testing.assert_close(powers(turn, 13)[0, 12], turn[0] * 0 + 1, rtol=0.0, atol=1e-13)


def test_hippo_legs_is_lower_triangular_with_the_eigenvalues_of_real() -> None:
    A, B = hippo_legs(4)
    assert torch.equal(A, A.tril())
    torch.testing.assert_close(A.diagonal(), spectrum("real", 4)[0])
    torch.testing.assert_close(A[2, 1], -torch.tensor(15.0).double().sqrt())
    torch.testing.assert_close(B**2, torch.tensor([1.0, 3.0, 5.0, 7.0]).double())


@pytest.mark.parametrize("state_size", [2, 16, 64])
def test_legs_are_the_eigenvalues_of_the_normal_part_of_hippo(state_size: int) -> None:
    A, B = hippo_legs(state_size)
    normal = A + torch.outer(B, B) / 2
    torch.testing.assert_close(normal @ normal.T, normal.T @ normal)
    eigenvalues = torch.linalg.eigvals(normal)
    diagonal, inputs = spectrum("legs", state_size)
    assert bool((diagonal.real == -0.5).all()) and bool((diagonal.imag > 0).all())
    expected = eigenvalues.imag[eigenvalues.imag > 0].sort().values
    torch.testing.assert_close(diagonal.imag.sort().values, expected, rtol=1e-9, atol=1e-9)
    # The eigenvectors are orthonormal, so the halves of both conjugate halves of B keep its length.
    torch.testing.assert_close(2 * inputs.abs().square().sum(), B.square().sum() / 4)


def test_legs_without_its_rank_one_part_tends_to_the_legendre_basis() -> None:
    """Basis n of exp(t A_normal) B / 2 tends to exp(-t) sqrt(2n+1) P_n(2 exp(-t) - 1) as N grows (Gu et al. 2022).

    Here n = 0. The kernel itself oscillates ever faster; its integral from 0 to t tends to 1 - exp(-t).
    """
    errors = []
    times = torch.linspace(0.05, 5.0, 30, dtype=torch.float64)
    for state_size in (8, 32, 128):
        diagonal, inputs = spectrum("legs", state_size)
        A, B = hippo_legs(state_size)
        first = torch.linalg.eigh(-1j * (A + torch.outer(B, B) / 2 + torch.eye(state_size).double() / 2))[1][0]
        weights = first[state_size // 2 :] * inputs / diagonal
        integral = 2 * (weights * torch.expm1(times[:, None] * diagonal)).sum(-1).real
        errors.append(float((integral + torch.expm1(-times)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 2e-3


def test_lin_and_inv_follow_their_formulas() -> None:
    lin, ones = spectrum("lin", 8)
    torch.testing.assert_close(lin, -0.5 + 1j * math.pi * torch.arange(4).double())
    assert bool((ones == 1).all())
    inv, _ = spectrum("inv", 8)
    expected = torch.tensor([8 / math.pi * (8 / odd - 1) for odd in (1, 3, 5, 7)], dtype=torch.float64)
    torch.testing.assert_close(inv, torch.complex(torch.full((4,), -0.5).double(), expected))


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("discretisation", STABLE)
def test_zoh_and_bilinear_are_stable_at_every_step_size(initialisation: str, discretisation: str) -> None:
    A, B = spectrum(initialisation, 64)
    for step in (1e-3, 1e-1, 10.0):
        decays, _ = discretise(A, B, torch.tensor(step, dtype=torch.float64), discretisation)
        assert decays.abs().max() < 1


def test_euler_is_unstable_at_a_step_that_the_range_allows() -> None:
    """Why Euler is not a default: at step 0.1 and N = 16, |Abar| passes 1 for every complex spectrum."""
    largest = {}
    for initialisation in INITIALISATIONS:
        A, B = spectrum(initialisation, 16)
        largest[initialisation] = float(discretise(A, B, torch.tensor(0.1).double(), "euler")[0].abs().max())
    assert largest["legs"] == pytest.approx(8.15, abs=0.01)
    assert largest["inv"] == pytest.approx(7.70, abs=0.01)
    assert largest["lin"] == pytest.approx(2.40, abs=0.01)
    assert largest["real"] < 1


def test_discretisations_meet_the_continuous_system_as_the_step_shrinks() -> None:
    """ZOH is exact for a constant input; bilinear errs by step squared, Euler by step: halving it divides by 4 and 2."""
    A, B, time = torch.tensor([-0.7 + 2j], dtype=torch.complex128), torch.ones(1, dtype=torch.complex128), 2.0
    exact = (torch.exp(A * time) - 1) / A * B
    errors = {}
    for method in DISCRETISATIONS:
        for steps in (200, 400):
            decay, gain = discretise(A, B, torch.tensor(time / steps, dtype=torch.float64), method)
            reached = gain * powers(decay, steps).sum(-1)
            errors[method, steps] = float((reached - exact).abs())
    assert errors["zoh", 200] < 1e-12
    assert errors["bilinear", 200] / errors["bilinear", 400] == pytest.approx(4, rel=0.02)
    assert errors["euler", 200] / errors["euler", 400] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_a_layer_starts_from_its_spectrum_with_steps_in_range(initialisation: str) -> None:
    torch.manual_seed(0)
    layer = S4D(200, 8, initialisation, "zoh")
    A, _ = spectrum(initialisation, 8)
    torch.testing.assert_close(-torch.exp(layer.log_decay.double()), A.real.expand(200, -1), rtol=1e-5, atol=0.0)
    step = layer.log_step.exp()
    assert step.min() >= 1e-3 * (1 - 1e-4) and step.max() <= 1e-1 * (1 + 1e-4)
    # The mean of 200 uniform draws of log step: standard error log(100) / sqrt(12 * 200); four of them.
    assert abs(float(layer.log_step.detach().mean()) - math.log(1e-2)) < 4 * math.log(100) / math.sqrt(12 * 200)


@pytest.mark.parametrize("step", [0, 7, 18])
@pytest.mark.parametrize("initialisation", ["legs", "real"])
def test_no_output_sees_a_later_input_and_all_see_the_first(step: int, initialisation: str) -> None:
    """The FFT mixes all steps, so its zeros are zeros up to rounding."""
    torch.manual_seed(0)
    backbone = S4DBackbone(8, 2, 8, initialisation, "zoh", dropout=0.1).double()
    x = torch.randn(4, 20, 8, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
    size = gradient.abs().amax((0, 2))
    assert size[0] > 1e-6 and size[step] > 1e-6
    assert size[step + 1 :].max() < 1e-13


def test_every_parameter_learns_and_dynamics_escape_weight_decay() -> None:
    torch.manual_seed(0)
    backbone = S4DBackbone(8, 2, 8, "legs", "bilinear", dropout=0.1)
    backbone(torch.randn(4, 20, 8)).mul(torch.randn(4, 20, 8)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    spared = {name.rsplit(".", 1)[1] for name in no_weight_decay_parameters(backbone)}
    assert spared == {"log_step", "log_decay", "frequency", "B", "D"}
    assert all("_no_weight_decay" in vars(backbone.get_parameter(name)) for name in no_weight_decay_parameters(backbone))


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="initialisation must be one of legs, lin, inv, real, got 'random'"):
        S4DBackbone(8, 1, 8, "random", "zoh", 0.0)
    with pytest.raises(ValueError, match="discretisation must be one of zoh, bilinear, euler, got 'tustin'"):
        S4DBackbone(8, 1, 8, "legs", "tustin", 0.0)
    with pytest.raises(ValueError, match="discretisation must be one of"):
        discretise(torch.ones(1), torch.ones(1), torch.ones(1), "tustin")
    with pytest.raises(ValueError, match="even for conjugate pairs, got 7"):
        S4DBackbone(8, 1, 7, "lin", "zoh", 0.0)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        S4DBackbone(8, 0, 8, "legs", "zoh", 0.0)
