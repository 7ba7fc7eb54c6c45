"""Temperature scaling finds a known stretch, and never harms the fold it was fitted on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, MEDIAN, Predictive, pinball_loss
from models.uncertainty.temperature import QuantileTemperature

Z = stats.norm.ppf(LEVELS)
BELOW, ABOVE = slice(0, MEDIAN), slice(MEDIAN + 1, None)


def stretched_normal(count: int, below: list[float], above: list[float], seed: int = 0) -> tuple[Predictive, Tensor]:
    """Normal(10, 2) forecasts ``(count, H)`` of truths whose two sides are wider by ``below`` and ``above``."""
    noise = np.random.default_rng(seed).normal(size=(count, len(below)))
    target = 10.0 + 2.0 * np.where(noise < 0, noise * below, noise * above)
    quantiles = torch.from_numpy(10.0 + 2.0 * Z).expand(count, len(below), -1)
    return Predictive(quantiles), torch.from_numpy(target)


def standard_error(factor: float, side: slice, count: int) -> float:
    """Of the factor that minimises the pinball loss: the sandwich of an M-estimator (van der Vaart, 1998, th. 5.23).

    With psi = sum over tau of z (1[y < c z] - tau): Var psi = sum z z' (min(tau, tau') - tau tau'), and the slope of its
    mean at the true factor c is sum z^2 f(c z), where f(c z) = phi(z) / c on this side.
    """
    z, tau = Z[side], np.array(LEVELS)[side]
    spread = z @ (np.minimum.outer(tau, tau) - np.outer(tau, tau)) @ z
    slope = (z**2 * stats.norm.pdf(z)).sum() / factor
    return math.sqrt(spread / count) / slope


@pytest.mark.parametrize("mode", ["global", "per_step"])
def test_recovers_a_known_stretch_of_each_side(mode: str) -> None:
    """Within 4.5 standard errors."""
    count = 4000
    predictive, target = stretched_normal(count, [2.0, 2.0], [0.5, 0.5])
    temperature = QuantileTemperature.fit(predictive, target, mode)
    n = count * 2 if mode == "global" else count
    for factors, truth, side in ((temperature.below, 2.0, BELOW), (temperature.above, 0.5, ABOVE)):
        assert factors.shape == (2,)
        assert ((factors - truth).abs() < 4.5 * standard_error(truth, side, n)).all()


def test_each_step_has_its_own_factor_unless_global() -> None:
    predictive, target = stretched_normal(2000, [1.0, 3.0], [1.0, 3.0])
    per_step = QuantileTemperature.fit(predictive, target, "per_step")
    for factors, side in ((per_step.below, BELOW), (per_step.above, ABOVE)):
        for step, truth in enumerate((1.0, 3.0)):
            assert abs(float(factors[step]) - truth) < 4.5 * standard_error(truth, side, 2000)
    shared = QuantileTemperature.fit(predictive, target, "global")
    assert float(shared.below[0]) == float(shared.below[1])
    assert 1.0 < float(shared.below[0]) < 3.0


def test_scaling_restores_coverage_of_new_truths() -> None:
    """Observed share at each level within 4.5 binomial standard deviations, plus the factor's own error."""
    temperature = QuantileTemperature.fit(*stretched_normal(4000, [2.5], [0.4]))
    predictive, target = stretched_normal(4000, [2.5], [0.4], seed=1)
    scaled = temperature.apply(predictive)
    for index, level in enumerate(LEVELS):
        share = float((target <= scaled.values[..., index]).double().mean())
        assert abs(share - level) < 2 * 4.5 * math.sqrt(level * (1 - level) / 4000)


def test_median_stays_where_it_is() -> None:
    predictive, target = stretched_normal(500, [2.0, 1.0], [0.3, 1.0])
    scaled = QuantileTemperature.fit(predictive, target).apply(predictive)
    torch.testing.assert_close(scaled.median, predictive.median, rtol=0, atol=0)


def test_none_is_the_identity() -> None:
    predictive, target = stretched_normal(50, [2.0, 1.0], [0.3, 1.0])
    scaled = QuantileTemperature.fit(predictive, target, "none").apply(predictive)
    torch.testing.assert_close(scaled.values, predictive.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_loss_on_its_fold_never_rises(seed: int) -> None:
    """Truths unlike any stretch of the forecasts: shifted, heavy-tailed, few."""
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(np.sort(generator.normal(size=(12, 3, len(LEVELS))), axis=-1))
    target = torch.from_numpy(generator.standard_t(1.5, size=(12, 3)) + generator.normal())
    predictive = Predictive(values)

    def loss(forecast: Predictive) -> float:
        return float(pinball_loss(forecast.values, target, forecast.levels).mean())

    unscaled = loss(predictive)
    shared = loss(QuantileTemperature.fit(predictive, target, "global").apply(predictive))
    per_step = loss(QuantileTemperature.fit(predictive, target, "per_step").apply(predictive))
    assert shared <= unscaled + 1e-12
    assert per_step <= shared + 1e-9


def test_a_point_mass_is_left_alone() -> None:
    predictive = Predictive(torch.zeros(20, 2, len(LEVELS)))
    temperature = QuantileTemperature.fit(predictive, torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(temperature.below, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(temperature.above, torch.ones(2, dtype=torch.float64))


def test_state_round_trip() -> None:
    temperature = QuantileTemperature.fit(*stretched_normal(200, [2.0, 1.0], [0.3, 1.0]))
    again = QuantileTemperature.from_state(temperature.state())
    torch.testing.assert_close(again.below, temperature.below, rtol=0, atol=0)
    torch.testing.assert_close(again.above, temperature.above, rtol=0, atol=0)


def test_unknown_mode_is_an_error() -> None:
    predictive, target = stretched_normal(10, [1.0], [1.0])
    with pytest.raises(ValueError, match="per_window"):
        QuantileTemperature.fit(predictive, target, "per_window")


def test_each_group_has_its_own_pair_and_others_the_global_one() -> None:
    groups = torch.arange(4000) % 2 + 5  # groups 5 and 6
    parts = {5: stretched_normal(2000, [2.0, 2.0], [0.5, 0.5]), 6: stretched_normal(2000, [0.7, 0.7], [3.0, 3.0], seed=1)}
    values, target = torch.empty(4000, 2, len(LEVELS), dtype=torch.float64), torch.empty(4000, 2, dtype=torch.float64)
    for group, (predictive, truth) in parts.items():
        values[groups == group], target[groups == group] = predictive.values, truth
    groups[:10] = 8  # too few for factors of their own
    whole = Predictive(values)
    temperature = QuantileTemperature.fit(whole, target, "per_group", groups)
    shared = QuantileTemperature.fit(whole, target, "global")
    assert temperature.groups.keys() == {5, 6}
    for group, truths in ((5, (2.0, 0.5)), (6, (0.7, 3.0))):
        for factor, truth, side in zip(temperature.groups[group], truths, (BELOW, ABOVE), strict=True):
            assert abs(factor - truth) < 4.5 * standard_error(truth, side, 3980)
    rows = Predictive(values[:4])
    scaled = temperature.apply(rows, torch.tensor([8, 5, 99, 6])).values
    for row, (below, above) in enumerate(
        [(shared.below[0], shared.above[0]), temperature.groups[5], (shared.below[0], shared.above[0]), temperature.groups[6]]
    ):
        pair = (torch.full((2,), float(factor), dtype=torch.float64) for factor in (below, above))
        torch.testing.assert_close(scaled[row], QuantileTemperature(*pair).apply(Predictive(values[row])).values)
    again = QuantileTemperature.from_state(temperature.state())
    torch.testing.assert_close(again.apply(whole, groups).values, temperature.apply(whole, groups).values, rtol=0, atol=0)


def test_members_of_an_ensemble_are_scaled_by_the_groups_of_their_windows() -> None:
    predictive, target = stretched_normal(80, [2.0, 2.0], [0.5, 0.5])
    groups = torch.arange(80) % 2
    temperature = QuantileTemperature.fit(predictive, target, "per_group", groups)
    members = Predictive(torch.stack([predictive.values, predictive.values + 1.0]))
    scaled = temperature.apply(members, groups).values
    torch.testing.assert_close(scaled[0], temperature.apply(predictive, groups).values)
    torch.testing.assert_close(scaled[1], temperature.apply(Predictive(predictive.values + 1.0), groups).values)


@pytest.mark.parametrize(("truth", "said"), [(float("nan"), "missing or infinite"), (3.0, "constant: all its truths are 3")])
def test_a_fold_that_tells_nothing_is_named(truth: float, said: str) -> None:
    predictive, target = stretched_normal(50, [1.0], [1.0])
    target[: 1 if truth != truth else 50] = truth
    with pytest.raises(ValueError, match=said):
        QuantileTemperature.fit(predictive, target)


def test_few_blocks_of_time_draw_factors_towards_one() -> None:
    full = QuantileTemperature(torch.tensor([4.0, 1.0]), torch.tensor([0.25, 9.0]), {7: (2.0, 0.5)})
    assert full.shrunk(1).below.tolist() == [1.0, 1.0]
    half = full.shrunk(4)
    assert (half.below.tolist(), half.above.tolist()) == ([2.0, 1.0], [0.5, 3.0])
    assert half.groups[7] == pytest.approx((2**0.5, 0.5**0.5))
    assert full.shrunk(10_000).above[1] == pytest.approx(9.0, rel=1e-2)


def test_shrinkage_saves_what_one_odd_block_would_spoil() -> None:
    """Factors from one odd block are worse on later ones than none; those from many blocks are better."""
    rng = np.random.default_rng(6)
    spread = np.repeat([6.0, *(1.6 * np.exp(0.2 * rng.normal(size=39)))], 100)  # the first block is an odd one
    truth = torch.from_numpy((spread * rng.normal(size=4000))[:, None])
    told = torch.from_numpy(Z).expand(4000, 1, -1)
    levels = torch.tensor(LEVELS, dtype=torch.float64)

    def later_loss(fitted: QuantileTemperature) -> float:
        return float(pinball_loss(fitted.apply(Predictive(told[2000:])).values, truth[2000:], levels).mean())

    none = later_loss(QuantileTemperature.identity(1))
    one, many = (QuantileTemperature.fit(Predictive(told[:n]), truth[:n], mode="global") for n in (100, 2000))
    assert later_loss(one) > later_loss(one.shrunk(1)) == none
    assert later_loss(many.shrunk(20)) < none
