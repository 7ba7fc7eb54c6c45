"""Drift: indices that can be checked by hand, and limits that chance passes as often as they say."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom

from models.uncertainty.drift import (
    Population,
    bin_counts,
    block_means,
    distance_limit,
    rate_limit,
    rise_limit,
    uniform_distance,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def share_beyond(found: list[bool], alpha: float) -> tuple[int, int, int]:
    """How often a limit was passed, and the central 99.9 % of how often it should be."""
    return sum(found), int(binom.ppf(5e-4, len(found), alpha)), int(binom.isf(5e-4, len(found), alpha))


def test_stability_is_the_sum_over_bins_and_grows_with_the_shift() -> None:
    fold = Population.fit(torch.arange(100.0))
    assert fold.edges.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    half = torch.arange(50.0)
    before, after = (10 + 0.5) / (100 + 5), ((10 + 0.5) / (50 + 5), 0.5 / (50 + 5))
    by_hand = 5 * sum((share - before) * math.log(share / before) for share in after)
    assert fold.stability(half) == pytest.approx(by_hand)
    assert fold.stability(torch.arange(100.0)) == pytest.approx(0, abs=1e-12)
    assert fold.stability(torch.arange(100.0) + 5) < fold.stability(torch.arange(100.0) + 20)
    assert math.isnan(fold.stability(torch.tensor([math.nan])))


def test_zero_and_one_are_two_bins_and_a_constant_tells_nothing() -> None:
    games = Population.fit(torch.tensor([0.0] * 80 + [1.0] * 20))
    assert games.counts.tolist() == [80, 20]
    assert games.stability(torch.ones(30)) > 1
    rain = Population.fit(torch.tensor([0.0] * 97 + [3.0, 1.0, 2.0]))
    assert rain.counts.tolist() == [97, 3], "what is rare has a bin of its own"
    constant = Population.fit(torch.full((30,), 2.0))
    assert math.isnan(constant.stability(torch.full((5,), 2.0))) and constant.outside(torch.tensor([2.0, 3.0])) == 0.5
    assert constant.standardised(torch.tensor([2.5])).tolist() == [0.5]
    with pytest.raises(ValueError, match="no value"):
        Population.fit(torch.tensor([math.nan]))


def test_a_population_survives_json_and_counts_what_is_out_of_range() -> None:
    fold = Population.fit(torch.cat([normal(200), torch.tensor([math.nan])]))
    again = Population.from_state(fold.state())
    assert again.state() == fold.state()
    assert again.outside(torch.tensor([0.0, 9.0, -9.0, math.nan])) == pytest.approx(2 / 3)
    assert int(bin_counts(normal(50), fold.edges).sum()) == 50


def test_independent_values_of_the_same_population_pass_its_limit_as_often_as_it_says() -> None:
    fold = Population.fit(normal(4000))
    assert torch.equal(fold.counts, bin_counts(normal(4000), fold.edges))
    limit = fold.stability_limit(60, 0.05)
    passed, _, most = share_beyond([fold.stability(normal(60, seed=seed)) > limit for seed in range(1, 600)], 0.05)
    assert 5 < passed <= most, "counting half a value more makes the index a little smaller"


@pytest.mark.parametrize("live", [1, 2, 5])
def test_the_mean_of_blocks_passes_its_limit_as_often_as_it_says(live: int) -> None:
    found = []
    for seed in range(2000):
        drawn = normal(live + 6, seed=seed)
        found.append(float(drawn[:live].mean()) > rise_limit(drawn[:live], drawn[live:], 0.05))
    passed, least, most = share_beyond(found, 0.05)
    assert least <= passed <= most


def test_too_few_blocks_and_blocks_without_spread_have_honest_limits() -> None:
    assert rise_limit(torch.ones(1), torch.ones(1), 0.05) == math.inf
    assert rise_limit(torch.empty(0), torch.ones(5), 0.05) == math.inf
    assert rise_limit(torch.ones(2), torch.ones(5), 0.05) == 1.0
    assert block_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 2])).tolist() == [5.0, 2.0]


def test_distance_and_rate_have_the_limits_of_their_distributions() -> None:
    uniform = torch.rand(400, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = [uniform_distance(each)[0] > distance_limit(50, 0.05) for each in uniform]
    passed, least, most = share_beyond(found, 0.05)
    assert least <= passed <= most
    distance, level = uniform_distance(torch.full((10,), 0.3, dtype=torch.float64))
    assert (distance, level) == (pytest.approx(0.7), pytest.approx(0.3))
    assert binom.sf(rate_limit(40, 0.05, 0.01) * 40, 40, 0.05) <= 0.01
    assert rate_limit(0.2, 0.05, 0.01) == 1.0
