"""Conformal ranks, intervals and joint bands: exact laws, and mutants that the same tests reject."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.conformal import (
    JointConformal,
    conformal_quantile,
    conformal_rank,
    half_widths,
    tail_score,
)
from models.uncertainty.conformal_scores import StepIntervals
from models.uncertainty.guarantee import coverage_band

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))


def forecasts(count: int, horizon: int, spread: float = 1.0, seed: int = 0) -> Predictive:
    """Normal forecasts of different location and size, ``(count, horizon)``."""
    generator = torch.Generator().manual_seed(seed)
    location = torch.randn(count, horizon, 1, generator=generator, dtype=torch.float64) * 5
    size = spread * (torch.rand(count, horizon, 1, generator=generator, dtype=torch.float64) + 0.5)
    return Predictive(location + size * NORMAL)


def truths(predictive: Predictive, noise: np.ndarray) -> Tensor:
    """The median plus ``noise`` in units of the 5 % to 95 % half width of a Normal."""
    return predictive.median + torch.from_numpy(noise) * half_widths(predictive)[1] / float(NORMAL[-3])


@pytest.mark.parametrize(
    ("n", "level", "rank"),
    [(9, 0.9, 9), (8, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (99, 0.95, 95), (1, 0.5, 1), (19, 0.95, 19)],
)
def test_rank_is_exact(n: int, level: float, rank: int) -> None:
    assert conformal_rank(n, level) == rank


def test_quantile_is_an_order_statistic_or_infinite() -> None:
    scores = torch.tensor([3.0, 1.0, 9.0, 2.0, 7.0, 5.0, 8.0, 4.0, 6.0])
    assert float(conformal_quantile(scores, 0.9)) == 9.0
    assert float(conformal_quantile(scores, 0.5)) == 5.0
    assert float(conformal_quantile(scores[:8], 0.9)) == math.inf
    both = conformal_quantile(torch.stack([scores, -scores], dim=1), 0.8)
    assert both.tolist() == [8.0, -2.0]
    assert conformal_quantile(torch.zeros(3, 4), 0.9).tolist() == [math.inf] * 4


def coverage_law_pvalue(quantile: Callable[[Tensor, float], Tensor], n: int = 19, level: float = 0.9) -> float:
    """Chi-square test of how many of 40 new scores are covered, over 3000 calibration sets, against the exact law.

    Given n exchangeable continuous scores, coverage is Beta(k, n + 1 - k), so the count is beta-binomial.
    """
    repeats, fresh = 3000, 40
    scores = torch.from_numpy(np.random.default_rng(0).exponential(size=(n + fresh, repeats)))
    covered = (scores[n:] <= quantile(scores[:n], level)).sum(0).numpy()
    rank = math.ceil(round((n + 1) * level, 9))
    expected = repeats * stats.betabinom(fresh, rank, n + 1 - rank).pmf(np.arange(fresh + 1))
    observed = np.bincount(covered, minlength=fresh + 1).astype(float)
    rare = int(np.argmax(expected.cumsum() >= 8)) + 1  # join the cells of small counts
    join = lambda counts: np.concatenate([[counts[:rare].sum()], counts[rare:]])  # noqa: E731
    return float(stats.chisquare(join(observed), join(expected)).pvalue)


def test_coverage_follows_the_beta_binomial_law() -> None:
    assert coverage_law_pvalue(conformal_quantile) > 1e-3


@pytest.mark.parametrize(
    "mutant",
    [
        lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level) - 2],
        lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level)],
        lambda scores, level: torch.quantile(scores, level, dim=0),
        lambda scores, level: torch.from_numpy(
            np.quantile(scores.numpy(), conformal_rank(len(scores), level) / len(scores), axis=0, method="higher")
        ),
    ],
    ids=["rank too low", "rank too high", "interpolated", "numpy's higher at k / n"],
)
def test_the_law_rejects_wrong_quantiles(mutant: Callable[[Tensor, float], Tensor]) -> None:
    assert coverage_law_pvalue(mutant) < 1e-9


def test_conditional_coverage_is_beta() -> None:
    """With uniform scores the quantile is its own coverage: Kolmogorov's test over 2000 calibration sets."""
    for n, level in ((19, 0.9), (50, 0.8), (39, 0.95)):
        scores = torch.from_numpy(np.random.default_rng(n).uniform(size=(n, 2000)))
        rank = conformal_rank(n, level)
        law = stats.beta(rank, n + 1 - rank)
        assert stats.kstest(conformal_quantile(scores, level).numpy(), law.cdf).pvalue > 1e-3


def test_score_is_monotone_in_the_distance_from_the_median_and_does_not_saturate() -> None:
    predictive = Predictive(NORMAL)
    assert float(tail_score(predictive, torch.tensor(0.0))) == pytest.approx(0.0, abs=1e-6)
    for sign in (-1.0, 1.0):
        distance = torch.linspace(0.01, 100.0, 500, dtype=torch.float64)
        scores = tail_score(Predictive(NORMAL.expand(500, -1)), sign * distance)
        assert (scores.diff() > 0).all()
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize(("spread", "tails"), [(1.0, "normal"), (0.2, "normal"), (4.0, "normal"), (1.0, "cauchy")])
def test_step_intervals_cover_however_wrong_the_forecast(spread: float, tails: str) -> None:
    """Coverage of 2000 new windows lies in the band of the beta-binomial law with probability 1 - 1e-4 a step."""
    n, fresh, horizon = 199, 2000, 3
    rng = np.random.default_rng(1)
    draw = rng.standard_normal if tails == "normal" else rng.standard_cauchy
    predictive = forecasts(n + fresh, horizon)
    target = truths(predictive, draw(size=(n + fresh, horizon)) / spread)
    first, last = Predictive(predictive.values[:n]), Predictive(predictive.values[n:])
    conformal = StepIntervals.fit("tail", first, target[:n])
    for level in (80, 90, 95):
        lower, upper = conformal.interval(last, level)
        share = ((lower <= target[n:]) & (target[n:] <= upper)).double().mean(0)
        low, high = coverage_band(n, fresh, level / 100, confidence=1 - 1e-4)
        assert ((share >= low) & (share <= high)).all(), (level, share)


def test_step_intervals_hold_the_median_and_are_nested() -> None:
    predictive = forecasts(99, 4)
    target = truths(predictive, np.random.default_rng(2).normal(size=(99, 4)))
    conformal = StepIntervals.fit("tail", predictive, target)
    new = forecasts(50, 4, seed=9)
    bounds = [conformal.interval(new, level) for level in (80, 90, 95)]
    for lower, upper in bounds:
        assert (lower <= new.median + 1e-6).all()
        assert (upper >= new.median - 1e-6).all()
    for (inner_low, inner_high), (outer_low, outer_high) in itertools.pairwise(bounds):
        assert (outer_low <= inner_low).all()
        assert (outer_high >= inner_high).all()


def test_too_few_scores_give_the_whole_line() -> None:
    predictive = forecasts(18, 2)
    conformal = StepIntervals.fit("tail", predictive, predictive.median + 0.1)
    lower, upper = conformal.interval(predictive, 95)
    assert (lower == -math.inf).all()
    assert (upper == math.inf).all()
    assert torch.isfinite(conformal.interval(predictive, 90)[0]).all()


def correlated_noise(count: int, horizon: int, seed: int) -> np.ndarray:
    """Normal errors that grow with the step and share most of their size along a path."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(count, 1)), rng.normal(size=(count, horizon))
    return (0.9 * shared + math.sqrt(1 - 0.81) * own) * np.linspace(0.5, 2.0, horizon)


def test_joint_band_covers_whole_paths_and_is_narrower_than_bonferroni() -> None:
    n, fresh, horizon = 399, 3000, 10
    predictive = forecasts(200 + n + fresh, horizon, seed=3)
    target = truths(predictive, correlated_noise(200 + n + fresh, horizon, 4))
    part = lambda cut: (Predictive(predictive.values[cut]), target[cut])  # noqa: E731
    scale = JointConformal.step_scale(*part(slice(0, 200)))
    calibration, (new, truth) = part(slice(200, 200 + n)), part(slice(200 + n, None))
    lower, upper = JointConformal.fit(*calibration, scale).band(new)
    share = float(((lower <= truth) & (truth <= upper)).all(-1).double().mean())
    low, high = coverage_band(n, fresh, 0.9, confidence=1 - 1e-4)
    assert low <= share <= high

    steps = StepIntervals.fit("tail", *calibration, levels=(90, 99))  # 99 = 100 - 10 / horizon: Bonferroni's level
    whole = lambda bounds: float(((bounds[0] <= truth) & (truth <= bounds[1])).all(-1).double().mean())  # noqa: E731
    bonferroni = steps.interval(new, 99)
    assert float((upper - lower).mean()) < 0.9 * float((bonferroni[1] - bonferroni[0]).mean())
    assert whole(steps.interval(new, 90)) < low  # intervals of each step do not hold jointly


def test_joint_band_holds_the_median_and_follows_the_side() -> None:
    """Forecasts skewed to the right get a band skewed to the right."""
    skewed = Predictive((forecasts(99, 3).values * 0.3).exp())
    target = skewed.sample(1, torch.Generator().manual_seed(0))[0]
    lower, upper = JointConformal.fit(skewed, target, torch.ones(3, dtype=torch.float64)).band(skewed)
    assert (lower < skewed.median).all()
    assert (upper - skewed.median > skewed.median - lower).all()


def test_joint_band_of_heavy_tails_is_finite() -> None:
    predictive = forecasts(99, 5)
    target = truths(predictive, np.random.default_rng(5).standard_cauchy(size=(99, 5)) * 1e6)
    scale = JointConformal.step_scale(predictive, target)
    for bound in JointConformal.fit(predictive, target, scale).band(predictive):
        assert torch.isfinite(bound).all()


def test_joint_band_of_point_masses_is_finite_and_of_few_windows_infinite() -> None:
    flat = Predictive(torch.full((99, 2, len(LEVELS)), 7.0))
    scale = JointConformal.step_scale(flat, torch.full((99, 2), 7.0))
    conformal = JointConformal.fit(flat, torch.full((99, 2), 7.5), scale)
    lower, upper = conformal.band(flat)
    assert torch.isfinite(lower).all()
    assert (upper >= 7.5).all()
    few = JointConformal.fit(Predictive(flat.values[:8]), torch.full((8, 2), 7.5), scale)
    assert few.radius == math.inf
    assert (few.band(flat)[1] == math.inf).all()
