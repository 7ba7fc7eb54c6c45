"""Every conformal score: the exact law of its coverage, joint bands, ties, too few scores, and mutants that fail alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty import conformal_scores
from models.uncertainty.conformal import JointConformal, conformal_quantile, conformal_rank, tail_score
from models.uncertainty.conformal_scores import (
    SCORES,
    BonferroniBand,
    StepIntervals,
    from_plain,
    interval_score,
    to_plain,
)
from models.uncertainty.guarantee import coverage_band

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
ONE_SIDED = [name for name, score in SCORES.items() if score.sides == 1]
Quantile = Callable[[Tensor, float], Tensor]


def forecasts(count: int, horizon: int, spread: float = 1.0, seed: int = 0) -> Predictive:
    """Normal forecasts of different location and size, ``(count, horizon)``."""
    generator = torch.Generator().manual_seed(seed)
    location = torch.randn(count, horizon, 1, generator=generator, dtype=torch.float64) * 5
    size = spread * (torch.rand(count, horizon, 1, generator=generator, dtype=torch.float64) + 0.5)
    return Predictive(location + size * NORMAL)


def truths(predictive: Predictive, noise: np.ndarray) -> Tensor:
    """The median plus ``noise`` in standard deviations of a Normal forecast."""
    return predictive.median + torch.from_numpy(noise) * (predictive.values[..., -3] - predictive.median) / NORMAL[-3]


def rows(predictive: Predictive, cut: slice) -> Predictive:
    return Predictive(predictive.values[cut])


def law_pvalue(covered: np.ndarray, n: int, fresh: int, level: float) -> float:
    """Chi-square p-value of covered counts out of ``fresh``, one a calibration set, against the beta-binomial law."""
    rank = math.ceil(round((n + 1) * level, 9))
    expected = len(covered) * stats.betabinom(fresh, rank, n + 1 - rank).pmf(np.arange(fresh + 1))
    observed = np.bincount(covered, minlength=fresh + 1).astype(float)
    rare = int(np.argmax(expected.cumsum() >= 8)) + 1  # join the cells of small counts
    join = lambda counts: np.concatenate([[counts[:rare].sum()], counts[rare:]])  # noqa: E731
    return float(stats.chisquare(join(observed), join(expected)).pvalue)


def step_law(name: str, quantile: Quantile, monkeypatch: pytest.MonkeyPatch) -> float:
    """p-value of score ``name`` with a given quantile function, over 1500 independent exchangeable draws.

    The draws lie along the axis of steps, each step being calibrated by its own 19 windows and tried on 40 others. The
    forecasts are too narrow and the truths heavy-tailed: the law asks for neither.
    """
    monkeypatch.setattr(conformal_scores, "conformal_quantile", quantile)
    n, fresh, draws = 19, 40, 1500
    predictive = forecasts(n + fresh, draws, spread=0.5, seed=1)
    target = truths(predictive, np.random.default_rng(2).standard_t(3, size=(n + fresh, draws)))
    fitted = StepIntervals.fit(name, rows(predictive, slice(0, n)), target[:n], levels=(90,))
    lower, upper = fitted.interval(rows(predictive, slice(n, None)), 90)
    covered = ((lower <= target[n:]) & (target[n:] <= upper)).sum(0).numpy()
    return law_pvalue(covered, n, fresh, 0.9)


MUTANTS = {
    "rank too low": lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level) - 2],
    "rank too high": lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level)],
    "interpolated": lambda scores, level: torch.quantile(scores, level, dim=0),
}


@pytest.mark.parametrize("name", ONE_SIDED)
def test_step_coverage_follows_the_exact_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_law(name, conformal_quantile, monkeypatch) > 1e-3


@pytest.mark.parametrize("name", ONE_SIDED)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_rejects_wrong_quantiles(name: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_law(name, MUTANTS[mutant], monkeypatch) < 1e-9


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize(("spread", "skewed"), [(1.0, False), (0.2, False), (4.0, True)])
def test_step_intervals_cover_however_wrong_the_forecast(name: str, spread: float, skewed: bool) -> None:
    """Coverage of 2000 new windows lies in the band of the beta-binomial law with probability 1 - 1e-4 a step.

    Of two sides calibrated apart the union bound holds from below alone; with 399 scores it loses little.
    """
    n, fresh, horizon = 399, 2000, 3
    rng = np.random.default_rng(1)
    noise = rng.exponential(size=(n + fresh, horizon)) - 0.5 if skewed else rng.standard_cauchy((n + fresh, horizon))
    predictive = forecasts(n + fresh, horizon, spread)
    target = truths(predictive, noise / spread)
    fitted = StepIntervals.fit(name, rows(predictive, slice(0, n)), target[:n], levels=(80,))
    lower, upper = fitted.interval(rows(predictive, slice(n, None)), 80)
    share = ((lower <= target[n:]) & (target[n:] <= upper)).double().mean(0)
    low, high = coverage_band(n, fresh, 0.8, confidence=1 - 1e-4)
    assert ((share >= low) & (share <= high + 0.01 * (SCORES[name].sides - 1))).all(), share


def test_cqr_is_the_published_formula_and_narrows_wide_forecasts() -> None:
    predictive = forecasts(99, 2, spread=5.0)
    target = truths(predictive, np.random.default_rng(0).normal(size=(99, 2)) / 5)
    low, high = predictive.values[..., LEVELS.index(0.05)], predictive.values[..., LEVELS.index(0.95)]
    expected = torch.maximum(low - target, target - high).sort(dim=0).values[89]
    fitted = StepIntervals.fit("cqr", predictive, target, levels=(90,))
    torch.testing.assert_close(fitted.radius[90][:, 0], expected, rtol=0, atol=1e-6)
    assert (fitted.radius[90] < 0).all()
    lower, upper = fitted.interval(predictive, 90)
    torch.testing.assert_close(upper - lower, (high - low + 2 * expected).clamp(min=0), rtol=0, atol=1e-5)


def test_asymmetric_cqr_follows_the_skew() -> None:
    predictive = forecasts(999, 1)
    target = truths(predictive, np.random.default_rng(0).exponential(size=(999, 1)) * 3)
    radius = StepIntervals.fit("cqr_asymmetric", predictive, target, levels=(90,)).radius[90][0]
    assert radius[0] < 0 < radius[1]


def test_tail_intervals_are_the_quantiles_beyond_which_the_ranked_tail_lies() -> None:
    predictive = forecasts(18, 4)
    target = truths(predictive, np.random.default_rng(3).normal(size=(18, 4)))
    ours = StepIntervals.fit("tail", predictive, target)
    for level in (80, 90, 95):
        radius = conformal_quantile(tail_score(predictive, target), level / 100)
        assert torch.equal(ours.radius[level][:, 0], radius)
        tail = 0.5 * torch.exp(-radius)
        expected = (predictive.tail_quantile(tail, upper=side) for side in (False, True))
        for mine, quantile in zip(ours.interval(predictive, level), expected, strict=True):
            torch.testing.assert_close(mine, quantile, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", list(SCORES))
def test_too_few_scores_give_the_whole_line_and_the_record_says_so(name: str) -> None:
    predictive = forecasts(8, 2)
    fitted = StepIntervals.fit(name, predictive, predictive.median + 0.1, levels=(50, 90))
    lower, upper = fitted.interval(predictive, 90)
    assert (lower == -math.inf).all()
    assert (upper == math.inf).all()
    assert fitted.record(90)["n"] == 8
    assert fitted.record(90)["rank"] > 8
    assert fitted.record(90)["finite"] is False
    assert fitted.record(50)["finite"] is True


@pytest.mark.parametrize("name", list(SCORES))
def test_ties_only_add_coverage_and_the_tied_value_is_inside(name: str) -> None:
    """Counts around counts: many truths have the very score that is the radius, and each must be covered.

    The covered share of 3000 is at least the law's lower bound with probability 1 - 1e-4 a draw; without the ties at the
    radius it would be far below it.
    """
    rng = np.random.default_rng(4)
    n, fresh, draws = 39, 3000, 20
    centre = torch.from_numpy(rng.integers(0, 5, size=(n + fresh, draws, 1)).astype(float)) + 0.1
    predictive = Predictive(centre + 1.3 * NORMAL)
    target = centre[..., 0] - 0.1 + torch.from_numpy(rng.integers(-2, 3, size=(n + fresh, draws)).astype(float))
    fitted = StepIntervals.fit(name, rows(predictive, slice(0, n)), target[:n], levels=(80,))
    lower, upper = fitted.interval(rows(predictive, slice(n, None)), 80)
    share = ((lower <= target[n:]) & (target[n:] <= upper)).double().mean(0)
    assert (share >= coverage_band(n, fresh, 0.8, confidence=1 - 1e-4)[0]).all()
    scores = SCORES[name].score(rows(predictive, slice(0, n)), target[:n], 0.8)
    inside = (scores <= fitted.radius[80]).all(-1)
    low, high = fitted.interval(rows(predictive, slice(0, n)), 80)
    assert ((low <= target[:n]) & (target[:n] <= high))[inside].all()


@pytest.mark.parametrize("name", list(SCORES))
def test_intervals_are_nested_ordered_and_survive_a_restart(name: str) -> None:
    predictive = forecasts(40, 4, spread=6.0)
    target = truths(predictive, np.random.default_rng(2).normal(size=(40, 4)) / 6)
    fitted = StepIntervals.fit(name, predictive, target)
    again = StepIntervals.from_state(json.loads(json.dumps(fitted.state(), allow_nan=False)))
    new, previous = forecasts(50, 4, spread=0.1, seed=9), None
    for level in (80, 90, 95):
        bounds = fitted.interval(new, level)
        assert all(torch.equal(one, other) for one, other in zip(bounds, again.interval(new, level), strict=True))
        assert (bounds[0] <= bounds[1]).all()
        if previous is not None:
            assert (bounds[0] <= previous[0]).all()
            assert (bounds[1] >= previous[1]).all()
        previous = bounds


@pytest.mark.parametrize("name", list(SCORES))
def test_a_constant_fold_is_told(name: str) -> None:
    flat = Predictive(torch.full((30, 1, len(LEVELS)), 7.0))
    fitted = StepIntervals.fit(name, flat, torch.full((30, 1), 7.0))
    assert fitted.record(90)["constant_steps"] == [1]
    lower, upper = fitted.interval(flat, 90)
    assert ((lower <= 7.0) & (upper >= 7.0)).all()


@pytest.mark.parametrize("name", ["tail", "cqr", "scaled_residual"])
def test_point_forecasts_that_miss_never_give_a_narrow_interval(name: str) -> None:
    """Truths that no tail of a point mass can tell apart: the other scores reach them, the tail score says that it cannot."""
    flat = Predictive(torch.full((30, 1, len(LEVELS)), 7.0))
    target = 7.0 + torch.rand(30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = StepIntervals.fit(name, flat, target)
    lower, upper = fitted.interval(flat, 90)
    assert ((lower <= target) & (target <= upper)).sum() >= 28
    assert fitted.record(90)["finite"] is (name != "tail")


def test_missing_values_and_unknown_names_are_errors() -> None:
    predictive = forecasts(20, 3)
    target = predictive.median.clone()
    target[4, 1] = math.nan
    with pytest.raises(ValueError, match="1 missing truth values, the first in window 4 at step 2"):
        StepIntervals.fit("cqr", predictive, target)
    values = predictive.values.clone()
    values[3, 2] = math.nan
    with pytest.raises(ValueError, match="missing forecast values, the first in window 3 at step 3"):
        BonferroniBand.fit("tail", Predictive(values), predictive.median)
    with pytest.raises(ValueError, match="'naive' is not a conformal score; there are tail, cqr"):
        interval_score("naive")
    with pytest.raises(ValueError, match="no interval of 70 % was calibrated; there are 80, 90, 95"):
        StepIntervals.fit("cqr", predictive, predictive.median).interval(predictive, 70)


@pytest.mark.parametrize("name", list(SCORES))
def test_the_empty_set_and_the_whole_line_have_their_bounds(name: str) -> None:
    predictive = forecasts(3, 2)
    radius = torch.tensor([[-math.inf], [math.inf]], dtype=torch.float64).expand(2, SCORES[name].sides)
    lower, upper = SCORES[name].interval(predictive, radius, 0.9)
    assert (lower[:, 0] == math.inf).all()
    assert (upper[:, 0] == -math.inf).all()
    assert (lower[:, 1] == -math.inf).all()
    assert (upper[:, 1] == math.inf).all()


def correlated(count: int, horizon: int, share: float, seed: int) -> np.ndarray:
    """Errors of variance 1 that have ``share`` of their variance in common along a path."""
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=(count, 1)), rng.normal(size=(count, horizon))
    return math.sqrt(share) * common + math.sqrt(1 - share) * own


def joint_counts(band: Callable[[Predictive, Tensor], Callable[[Predictive], tuple[Tensor, Tensor]]], n: int) -> np.ndarray:
    """Whole paths covered out of 40, for 400 independent draws of n calibration paths of 4 steps."""
    draws, fresh, horizon = 400, 40, 4
    counts = np.empty(draws, dtype=int)
    for draw in range(draws):
        predictive = forecasts(n + fresh, horizon, spread=0.7, seed=draw)
        target = truths(predictive, correlated(n + fresh, horizon, 0.5, draw))
        lower, upper = band(rows(predictive, slice(0, n)), target[:n])(rows(predictive, slice(n, None)))
        counts[draw] = int(((lower <= target[n:]) & (target[n:] <= upper)).all(-1).sum())
    return counts


def test_joint_max_score_bands_follow_the_exact_law() -> None:
    scale = torch.ones(4, dtype=torch.float64)
    assert law_pvalue(joint_counts(lambda *fold: JointConformal.fit(*fold, scale).band, 19), 19, 40, 0.9) > 1e-3


@pytest.mark.parametrize("name", list(SCORES))
def test_bonferroni_bands_cover_paths_and_are_wider_than_the_max_score(name: str) -> None:
    """4000 paths against 399: at least the law's lower bound, with probability 1 - 1e-4."""
    n, fresh, horizon = 799, 4000, 8
    predictive = forecasts(n + fresh, horizon, seed=3)
    target = truths(predictive, correlated(n + fresh, horizon, 0.8, 4))
    fold, new, truth = (rows(predictive, slice(0, n)), target[:n]), rows(predictive, slice(n, None)), target[n:]
    bonferroni = BonferroniBand.fit(name, *fold)
    lower, upper = bonferroni.band(new)
    assert float(((lower <= truth) & (truth <= upper)).all(-1).double().mean()) >= coverage_band(n, fresh, 0.9, 1 - 1e-4)[0]
    joint = JointConformal.fit(*fold, torch.ones(horizon, dtype=torch.float64)).band(new)
    assert float((upper - lower).mean()) > 1.1 * float((joint[1] - joint[0]).mean())


def test_bonferroni_of_too_few_paths_is_infinite() -> None:
    """Ten steps at 90 % jointly need 99 % each, and so 99 paths."""
    predictive = forecasts(99, 10)
    target = truths(predictive, np.random.default_rng(0).normal(size=(99, 10)))
    assert BonferroniBand.fit("cqr", predictive, target).radius.isfinite().all()
    few = BonferroniBand.fit("cqr", rows(predictive, slice(0, 98)), target[:98])
    assert (few.radius == math.inf).all()


def test_plain_numbers_come_back_bit_by_bit() -> None:
    values = torch.tensor([[0.1, -math.inf], [math.inf, 5e-324]], dtype=torch.float64)
    text = json.dumps(to_plain(values), allow_nan=False)
    assert torch.equal(from_plain(json.loads(text)), values)
    assert from_plain(json.loads(json.dumps(to_plain(torch.tensor([math.nan])), allow_nan=False))).isnan().all()
