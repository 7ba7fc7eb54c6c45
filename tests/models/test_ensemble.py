"""Pooling members, the split of their variance, and their weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss
from models.uncertainty.ensemble import decompose, greedy_weights, pool

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def members() -> Tensor:
    """Three members of different location and spread for ``(2, 3)`` windows and steps, ``(3, 2, 3, Q)``."""
    generator = torch.Generator().manual_seed(1)
    location = torch.randn(3, 2, 3, 1, generator=generator, dtype=torch.float64) * 2
    spread = torch.rand(3, 2, 3, 1, generator=generator, dtype=torch.float64) + 0.3
    return location + spread * NORMAL


def distribution_function(quantiles: np.ndarray, y: float) -> float:
    """Linear between the levels, exponential beyond them, written out for one distribution."""
    if y < quantiles[0]:
        return LEVELS[0] * math.exp((y - quantiles[0]) * math.log(LEVELS[1] / LEVELS[0]) / (quantiles[1] - quantiles[0]))
    if y > quantiles[-1]:
        gap, ratio = quantiles[-1] - quantiles[-2], (1 - LEVELS[-2]) / (1 - LEVELS[-1])
        return 1 - (1 - LEVELS[-1]) * math.exp((quantiles[-1] - y) * math.log(ratio) / gap)
    return float(np.interp(y, quantiles, LEVELS))


def test_quantile_average_is_the_weighted_mean_of_quantiles() -> None:
    values = members()
    expected = 0.2 * values[0] + 0.5 * values[1] + 0.3 * values[2]
    torch.testing.assert_close(pool(values, WEIGHTS).values, expected)


def test_quantile_average_of_equal_shapes_keeps_the_shape() -> None:
    """Vincent averaging of Normals is the Normal of mean location and mean spread."""
    values = torch.stack([1.0 + 2.0 * NORMAL, 5.0 + 1.0 * NORMAL])
    pooled = pool(values, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(pooled.values, 3.0 + 1.5 * NORMAL)


def test_linear_pool_has_the_mixtures_distribution_function() -> None:
    values = members()
    pooled = pool(values, WEIGHTS, "linear").values
    for window in range(2):
        for step in range(3):
            parts = values[:, window, step].numpy()
            for index, level in enumerate(LEVELS):
                y = float(pooled[window, step, index])
                mixture = sum(w * distribution_function(q, y) for w, q in zip(WEIGHTS.tolist(), parts, strict=True))
                assert mixture == pytest.approx(level, abs=1e-7)


def test_linear_pool_stands_atoms_and_members_far_apart() -> None:
    """A point mass, another ten away and a Normal: below the first atom the Normal alone, then jumps to each."""
    values = torch.stack([torch.zeros_like(NORMAL), torch.full_like(NORMAL, 10.0), NORMAL])
    pooled = pool(values, torch.tensor([0.3, 0.3, 0.4]), "linear")
    level = lambda value: float(pooled.values[LEVELS.index(value)])  # noqa: E731
    assert Predictive(NORMAL).cdf(torch.tensor(level(0.1))) == pytest.approx(0.25, abs=1e-6)
    assert [level(value) for value in (0.25, 0.35, 0.45)] == pytest.approx([0.0] * 3, abs=1e-6)
    assert [level(value) for value in (0.75, 0.9, 0.99)] == pytest.approx([10.0] * 3, abs=1e-6)


def test_passes_of_members_split_as_if_each_pass_were_a_member() -> None:
    """The law of total variance may be taken in two stages: passes within members, then members."""
    generator = torch.Generator().manual_seed(5)
    shift = torch.randn((2, 6, 4, 1), generator=generator, dtype=torch.float64)
    passes = shift + NORMAL * (1 + 0.3 * torch.rand((2, 6, 4, 1), generator=generator, dtype=torch.float64))
    weights, even = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.full((6,), 1 / 6, dtype=torch.float64)
    members = torch.stack([pool(each, even, "linear").values for each in passes])
    splits = torch.stack([torch.stack(decompose(each, even)) for each in passes])
    found = decompose(members, weights, splits)
    flat = torch.repeat_interleave(weights / 6, 6)
    expected = decompose(passes.reshape(12, 4, -1), flat)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0.02, atol=0.01)  # a mixture's mean from 23 of its quantiles


def test_linear_pool_of_equal_members_is_that_member() -> None:
    values = members()[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(pool(values, WEIGHTS, "linear").values, values[0], rtol=1e-6, atol=1e-6)


def test_linear_pool_is_wider_than_the_quantile_average() -> None:
    """Of calibrated members that disagree (Lichtendahl et al., 2013)."""
    values = torch.stack([NORMAL - 1.0, NORMAL + 1.0])
    weights = torch.tensor([0.5, 0.5])
    width = lambda pooled: float(pooled.values[-1] - pooled.values[0])  # noqa: E731
    assert width(pool(values, weights, "linear")) > width(pool(values, weights)) + 0.5


def test_unknown_method_is_an_error() -> None:
    with pytest.raises(ValueError, match="median_average"):
        pool(members(), WEIGHTS, "median_average")


def test_parts_sum_to_the_variance_of_the_mixture() -> None:
    """Against 400,000 draws of the mixture; the variance estimate has standard error sqrt((m4 - v^2) / n)."""
    values = members()[:, 0, 0]
    aleatoric, epistemic = decompose(values, WEIGHTS)
    count = 400_000
    draws = Predictive(values).sample(count, torch.Generator().manual_seed(2))
    chosen = torch.multinomial(WEIGHTS, count, replacement=True, generator=torch.Generator().manual_seed(3))
    mixture = draws[torch.arange(count), chosen]
    centred = mixture - mixture.mean()
    variance, fourth = float(centred.square().mean()), float((centred**4).mean())
    error = math.sqrt((fourth - variance**2) / count)
    assert abs(float(aleatoric + epistemic) - variance) < 4.5 * error


def test_members_that_agree_leave_no_epistemic_variance() -> None:
    values = members()[:1].expand(3, -1, -1, -1)
    aleatoric, epistemic = decompose(values, WEIGHTS)
    torch.testing.assert_close(epistemic, torch.zeros_like(epistemic))
    torch.testing.assert_close(aleatoric, Predictive(values[0]).variance)


def test_epistemic_variance_of_shifted_members_by_hand() -> None:
    values = torch.stack([NORMAL, NORMAL + 3.0])
    aleatoric, epistemic = decompose(values, torch.tensor([0.25, 0.75]))
    assert float(epistemic) == pytest.approx(0.25 * 0.75 * 9.0)
    torch.testing.assert_close(aleatoric, Predictive(NORMAL).variance)


def test_greedy_weights_favour_the_member_that_made_the_truth() -> None:
    rng = np.random.default_rng(0)
    level = torch.from_numpy(rng.normal(scale=2.0, size=(300, 2)))
    target = level + torch.from_numpy(rng.normal(size=(300, 2)))
    wrong = torch.from_numpy(rng.normal(scale=2.0, size=(300, 2)))
    shapes = [(level + 1.0, 1.0), (level, 1.0), (wrong, 1.0), (level, 4.0)]
    values = torch.stack([location[..., None] + spread * NORMAL for location, spread in shapes])
    weights = greedy_weights(values, target)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert (weights > 0).all()
    assert int(weights.argmax()) == 1
    assert weights.tolist() == [0.125, 0.625, 0.125, 0.125], "every member once, and as many picks, all of the right one"
    assert float(greedy_weights(values, target, rounds=40)[1]) > 0.7
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    loss = lambda w: float(pinball_loss(pool(values, w).values, target, levels).mean())  # noqa: E731
    assert loss(weights) < loss(torch.full((4,), 0.25))
