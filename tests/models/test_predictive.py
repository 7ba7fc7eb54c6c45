"""The predictive distribution: inverse to itself, with the moments and density that its quantile function implies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss


def random_predictive(count: int = 6, seed: int = 0) -> Predictive:
    """Skewed distributions of very different location and size, ``(count,)``."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randn(count, len(LEVELS), generator=generator, dtype=torch.float64).exp()
    size = torch.logspace(-3, 3, count, dtype=torch.float64)[:, None]
    location = torch.randn(count, 1, generator=generator, dtype=torch.float64) * 10
    return Predictive(size * (gaps.cumsum(-1) + location))


def normal_quantiles() -> Tensor:
    return torch.from_numpy(stats.norm.ppf(LEVELS))


@pytest.mark.parametrize("level", [1e-12, 1e-6, 0.005, 0.01, 0.0372, 0.05, 0.3, 0.5, 0.6, 0.99, 0.995, 1 - 1e-6, 1 - 1e-12])
def test_cdf_is_the_inverse_of_quantile(level: float) -> None:
    predictive = random_predictive()
    back = predictive.cdf(predictive.quantile(torch.tensor(level, dtype=torch.float64)))
    torch.testing.assert_close(back, torch.full_like(back, level), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("tail", [1e-300, 1e-100, 1e-12, 1e-3, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_each_tail_keeps_its_relative_precision(tail: float, upper: bool) -> None:
    predictive = random_predictive()
    value = predictive.tail_quantile(torch.tensor(tail, dtype=torch.float64), upper=upper)
    below, above = predictive.tail_probability(value)
    back = above if upper else below
    torch.testing.assert_close(back, torch.full_like(back, tail), rtol=1e-6, atol=0)
    torch.testing.assert_close(below + above, torch.ones_like(below))


def test_the_stored_levels_are_returned_as_they_are() -> None:
    predictive = random_predictive()
    for index, level in enumerate(LEVELS):
        error = predictive.quantile(torch.tensor(level, dtype=torch.float64)) - predictive.values[..., index]
        assert (error.abs() < 1e-6 * predictive.values.abs().amax(-1)).all()


def test_mirrored_distribution_mirrors_every_answer() -> None:
    predictive = random_predictive()
    mirror = Predictive(-predictive.values)
    level = torch.tensor(0.003, dtype=torch.float64)
    torch.testing.assert_close(mirror.quantile(1 - level), -predictive.quantile(level), rtol=1e-6, atol=0)
    torch.testing.assert_close(mirror.variance, predictive.variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(mirror.mean, -predictive.mean, rtol=1e-9, atol=0)


@pytest.mark.parametrize("level", [1e-9, 0.2, 0.5, 0.5000001, 0.9, 1 - 1e-9])
def test_one_level_for_all_is_that_level_for_each(level: float) -> None:
    predictive, one = random_predictive(), torch.tensor(level, dtype=torch.float64)
    assert torch.equal(predictive.quantile(one), predictive.quantile(one.expand(6)))


def test_zero_tail_is_infinitely_far() -> None:
    predictive = random_predictive()
    assert (predictive.tail_quantile(torch.tensor(0.0), upper=True) == math.inf).all()
    assert (predictive.tail_quantile(torch.tensor(0.0), upper=False) == -math.inf).all()
    assert (predictive.cdf(torch.tensor(math.inf)) == 1).all()
    assert (predictive.cdf(torch.tensor(-math.inf)) == 0).all()


def test_moments_equal_the_integral_of_the_quantile_function() -> None:
    predictive = random_predictive(2)
    mean, variance = predictive.moments()
    breaks = [0.0, *LEVELS, 1.0]
    for index in range(2):
        single = Predictive(predictive.values[index])

        def moment(power: int, centre: float, single: Predictive = single) -> float:
            value = lambda u: (float(single.quantile(torch.tensor(u, dtype=torch.float64))) - centre) ** power  # noqa: E731
            pieces = itertools.pairwise(breaks)
            return sum(integrate.quad(value, low, high, epsrel=1e-7, limit=30)[0] for low, high in pieces)

        centre = moment(1, 0.0)
        assert float(mean[index]) == pytest.approx(centre, rel=1e-6)
        assert float(variance[index]) == pytest.approx(moment(2, centre), rel=1e-5)


def test_moments_of_normal_quantiles_are_near_the_normals() -> None:
    predictive = Predictive(5.0 + 2.0 * normal_quantiles())
    assert float(predictive.mean) == pytest.approx(5.0, abs=1e-9)
    assert float(predictive.variance) == pytest.approx(4.0, rel=0.05)  # chords and exponential tails, not the Normal's


def test_variance_keeps_its_digits_far_from_zero() -> None:
    near, far = Predictive(normal_quantiles()), Predictive(1e6 + normal_quantiles())
    torch.testing.assert_close(far.variance, near.variance, rtol=1e-8, atol=0)


def test_samples_follow_the_distribution() -> None:
    """Kolmogorov's test of 20,000 draws; one in a million rejects by chance."""
    predictive = random_predictive(3)
    draws = predictive.sample(20_000, torch.Generator().manual_seed(4))
    assert draws.shape == (20_000, 3)
    for index in range(3):
        pit = Predictive(predictive.values[index]).cdf(draws[:, index])
        assert stats.kstest(pit.numpy(), "uniform").pvalue > 1e-6


def test_points_may_have_more_axes_than_the_distributions() -> None:
    predictive = random_predictive(3)
    y = predictive.median + torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for method in (predictive.cdf, predictive.log_prob):
        torch.testing.assert_close(method(y), torch.stack([method(row) for row in y]), rtol=0, atol=0)


def test_density_integrates_to_one() -> None:
    predictive = Predictive(random_predictive(3).values[1])
    density = lambda y: math.exp(float(predictive.log_prob(torch.tensor(y, dtype=torch.float64))))  # noqa: E731
    knots = predictive.values.tolist()
    inside = sum(integrate.quad(density, a, b)[0] for a, b in itertools.pairwise(knots))
    below = integrate.quad(density, -math.inf, knots[0])[0]
    above = integrate.quad(density, knots[-1], math.inf)[0]
    assert inside == pytest.approx(0.98, abs=1e-6)
    assert below == pytest.approx(0.01, abs=1e-6)
    assert above == pytest.approx(0.01, abs=1e-6)


def test_density_is_the_slope_of_the_distribution_function() -> None:
    predictive = random_predictive()
    for level in (1e-4, 0.017, 0.33, 0.985, 1 - 1e-4):
        y = predictive.quantile(torch.tensor(level, dtype=torch.float64))
        step = 1e-5 * (predictive.values[:, -1] - predictive.values[:, 0])
        slope = (predictive.cdf(y + step) - predictive.cdf(y - step)) / (2 * step)
        torch.testing.assert_close(predictive.log_prob(y), slope.log(), rtol=1e-4, atol=1e-4)


def test_crossed_quantiles_are_sorted() -> None:
    values = normal_quantiles()
    shuffled = values[torch.randperm(len(LEVELS), generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(Predictive(shuffled).values, values)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e8])
def test_a_point_mass_gives_finite_answers(value: float) -> None:
    predictive = Predictive(torch.full((2, len(LEVELS)), value))
    for y in (value - 1.0, value, value + 1.0):
        below, above = predictive.tail_probability(torch.tensor(y, dtype=torch.float64))
        assert torch.isfinite(below).all()
        torch.testing.assert_close(below + above, torch.ones_like(below))
    torch.testing.assert_close(predictive.quantile(torch.tensor(0.999)), torch.full((2,), value).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(predictive.mean, torch.full((2,), value, dtype=torch.float64))
    assert (predictive.variance == 0).all()
    assert torch.isfinite(predictive.log_prob(torch.tensor(value))).all()


def test_wrong_number_of_quantiles_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 quantiles"):
        Predictive(torch.zeros(3, 5))


def test_pinball_loss_by_hand_and_minimal_at_the_quantile() -> None:
    levels = torch.tensor([0.1, 0.9], dtype=torch.float64)
    loss = pinball_loss(torch.tensor([[2.0, 2.0]]).double(), torch.tensor([5.0]).double(), levels)
    torch.testing.assert_close(loss, torch.tensor([[0.3, 2.7]], dtype=torch.float64))
    sample = torch.from_numpy(np.random.default_rng(0).normal(size=4001))
    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for level in (0.1, 0.5, 0.9):
        losses = pinball_loss(grid[None].expand(4001, -1), sample, torch.full((601,), level)).mean(0)
        assert float(grid[losses.argmin()]) == pytest.approx(float(sample.quantile(level)), abs=0.011)
