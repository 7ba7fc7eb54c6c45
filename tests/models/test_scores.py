"""Scores against hand values, scoringrules and scikit-learn, and the guarantee's effective sample size and band."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss
from models.uncertainty import scores
from models.uncertainty.guarantee import can_certify, coverage_band, effective_sample_size

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
DECILES = np.arange(1, 10) / 10


def normal_forecasts(count: int = 40, horizon: int = 3, seed: int = 0) -> tuple[Predictive, Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(size=(count, horizon)) * 3, rng.uniform(0.5, 2.0, size=(count, horizon))
    target = torch.from_numpy(mean + deviation * rng.normal(size=(count, horizon)))
    values = torch.from_numpy(mean)[..., None] + torch.from_numpy(deviation)[..., None] * NORMAL
    return Predictive(values), target, mean, deviation


def test_wql_equals_scoringrules_and_the_definition() -> None:
    predictive, target, mean, deviation = normal_forecasts()
    quantiles = mean[..., None] + deviation[..., None] * stats.norm.ppf(DECILES)
    total = sum(
        2 * scoringrules.quantile_score(target.numpy(), quantiles[..., i], level).sum() for i, level in enumerate(DECILES)
    )
    assert scores.wql(predictive, target) == pytest.approx(total / 9 / np.abs(target.numpy()).sum(), rel=1e-9)


def test_wql_of_a_point_forecast_is_its_wape() -> None:
    """All quantiles equal: 2 sum of pinball over symmetric levels is the absolute error."""
    _, target, mean, _ = normal_forecasts()
    point = torch.from_numpy(mean)
    spread = Predictive(point[..., None].expand(-1, -1, len(LEVELS)))
    assert scores.wql(spread, target) == pytest.approx(scores.wape(point, target))


def test_crps_of_normal_quantiles_is_near_the_closed_form() -> None:
    """The 23 stored quantiles, with their chords and tails, lose under 1 % of the Normal's score on average."""
    predictive, target, mean, deviation = normal_forecasts(400)
    expected = scoringrules.crps_normal(target.numpy(), mean, deviation)
    actual = scores.crps(predictive, target).numpy()
    assert actual.shape == expected.shape
    assert actual.mean() == pytest.approx(expected.mean(), rel=0.01)
    np.testing.assert_allclose(actual, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("rows", [1, 7, 39, 40, 1000])
def test_crps_in_parts_is_that_of_all_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    predictive, target, _, _ = normal_forecasts()
    expected = scores._crps(predictive, target, 100)
    monkeypatch.setattr(scores, "CRPS_CELLS", rows * 300)
    assert torch.equal(scores.crps(predictive, target), expected)
    levels = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    one_by_one = torch.stack(
        [pinball_loss(predictive.quantile(each)[..., None], target, each[None])[..., 0] for each in levels]
    )
    torch.testing.assert_close(expected, 2 * one_by_one.mean(0), rtol=1e-12, atol=1e-12)
    assert scores.crps(Predictive(predictive.values[:0]), target[:0]).shape == (0, 3)
    one = scores.crps(Predictive(predictive.values[0, 0]), target[0])  # a distribution against several truths
    assert torch.equal(one[:1], expected[0, :1]) and one.shape == (3,)


def test_crps_equals_its_integral_over_the_distribution_function() -> None:
    """``integral of (F(x) - 1[y <= x])^2`` (Gneiting and Raftery, 2007, eq. 20) on a fine grid of x."""
    predictive, target = Predictive(NORMAL.expand(3, -1)), torch.tensor([-2.0, 0.1, 3.0], dtype=torch.float64)
    grid = torch.linspace(-25, 25, 200_001, dtype=torch.float64)
    cdf = Predictive(NORMAL).cdf(grid)
    expected = [float((cdf - (y <= grid).double()).square().sum() * (50 / 200_000)) for y in target]
    np.testing.assert_allclose(scores.crps(predictive, target, points=2000).numpy(), expected, rtol=2e-3)


def test_wape_and_mase_by_hand() -> None:
    target = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    forecast = torch.tensor([[12.0, 20.0], [27.0, 45.0]])
    assert scores.wape(forecast, target) == pytest.approx(10 / 100)
    assert scores.mase(forecast, target, torch.tensor([2.0, 4.0])) == pytest.approx((1 + 0 + 0.75 + 1.25) / 4)


def test_coverage_includes_the_bounds() -> None:
    lower, upper = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert scores.coverage(lower, upper, torch.tensor([0.0, 1.0, 1.1, -0.1])).tolist() == [True, True, False, False]


def test_calibrated_forecasts_are_reliable_and_narrow_ones_are_not() -> None:
    """Shares are binomial: within 4.5 standard deviations of their level at every level."""
    predictive, target, mean, _ = normal_forecasts(2000, 1)
    observed, levels = scores.reliability(predictive, target), predictive.levels
    assert ((observed - levels).abs() < 4.5 * (levels * (1 - levels) / 2000).sqrt()).all()
    centre = torch.from_numpy(mean)[..., None]
    narrow = Predictive(centre + (predictive.values - centre) * 0.3)
    assert scores.calibration_error(narrow, target) > 5 * scores.calibration_error(predictive, target)


def test_pit_distance_is_kolmogorovs() -> None:
    pit = torch.tensor([0.1, 0.2, 0.9])
    assert scores.pit_distance(pit) == pytest.approx(2 / 3 - 0.2, abs=1e-6)
    predictive, target, _, _ = normal_forecasts(1000, 1)
    assert scores.pit_distance(predictive.cdf(target)) < 2.4 / math.sqrt(1000)  # one in 50,000 (Kolmogorov's law)


def test_risk_coverage_by_hand() -> None:
    share, risk = scores.risk_coverage(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([6.0, 1.0, 2.0]))
    torch.testing.assert_close(share, torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(risk, torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64))
    assert scores.aurc(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([6.0, 1.0, 2.0])) == pytest.approx(5.5 / 3)


def test_no_order_beats_the_oracle_and_the_last_point_is_the_mean() -> None:
    risk = torch.from_numpy(np.random.default_rng(0).exponential(size=30))
    oracle = scores.aurc(risk, risk)
    for seed in range(50):
        uncertainty = torch.randn(30, generator=torch.Generator().manual_seed(seed))
        assert scores.aurc(uncertainty, risk) >= oracle
        assert float(scores.risk_coverage(uncertainty, risk)[1][-1]) == pytest.approx(float(risk.mean()))
    assert scores.aurc(-risk, risk) > oracle


@pytest.mark.parametrize(("count", "digits"), [(200, 8), (37, 8), (7, 8), (200, 1), (40, 0)])
def test_detection_scores_equal_scikit_learns(count: int, digits: int) -> None:
    """Few digits make ties."""
    rng = np.random.default_rng(count + digits)
    negative = np.round(rng.normal(size=150), digits) * 1e4
    positive = np.round(rng.normal(loc=1.0, size=count), digits) * 1e4
    auroc, fpr = scores.detection_scores(torch.from_numpy(negative), torch.from_numpy(positive))
    labels, joined = np.r_[np.zeros(150), np.ones(count)], np.r_[negative, positive]
    assert auroc == pytest.approx(roc_auc_score(labels, joined), abs=1e-5)
    false, true, _ = roc_curve(labels, joined, drop_intermediate=False)
    assert fpr == pytest.approx(false[true >= 0.95].min())


def test_a_score_that_says_nothing_detects_nothing() -> None:
    auroc, fpr = scores.detection_scores(torch.ones(30), torch.ones(30))
    assert auroc == pytest.approx(0.5)
    assert fpr == 1.0


def test_independent_windows_count_in_full() -> None:
    """B p (1 - p) / s^2 is n times (B - 1) / chi-square(B - 1), whose 1e-4 quantile bounds it from below."""
    blocks, size = 200, 10
    covered = torch.from_numpy(np.random.default_rng(0).binomial(1, 0.9, size=blocks * size).astype(float))
    block = torch.arange(blocks).repeat_interleave(size)
    n_eff = effective_sample_size(covered, block)
    assert blocks * size * (blocks - 1) / stats.chi2(blocks - 1).ppf(1 - 1e-4) < n_eff <= blocks * size


def test_windows_that_share_their_fate_count_once_a_block() -> None:
    fate = torch.from_numpy(np.random.default_rng(1).binomial(1, 0.8, size=60).astype(float))
    assert effective_sample_size(fate.repeat_interleave(12), torch.arange(60).repeat_interleave(12)) == 60


def test_partly_shared_fate_lies_between_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    chance = np.repeat(rng.choice([0.6, 1.0], size=300), 12)
    covered = torch.from_numpy((rng.uniform(size=3600) < chance).astype(float))
    block = torch.arange(300).repeat_interleave(12)
    n_eff = effective_sample_size(covered, block)
    assert 300 < n_eff < 2000  # design effect 1 + 11 rho, rho = Var(chance) / (p (1 - p)) = 0.25: 3600 / 3.75 = 960
    order = torch.randperm(3600, generator=torch.Generator().manual_seed(0))
    assert effective_sample_size(covered[order], 1000 - block[order]) == pytest.approx(n_eff)


def test_without_a_miss_or_a_second_block_nothing_is_claimed_beyond_blocks() -> None:
    block = torch.arange(5).repeat_interleave(20)
    assert effective_sample_size(torch.ones(100), block) == 5
    assert effective_sample_size(torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3)) == 1


@pytest.mark.parametrize(("n", "fresh", "level"), [(99, 200, 0.9), (19, 1000, 0.9), (500, 50, 0.8)])
def test_coverage_band_holds_at_its_confidence(n: int, fresh: int, level: float) -> None:
    """Simulated: draw coverage from its Beta, then the count; both tails within 4.5 binomial errors of 2.5 % or less."""
    rng = np.random.default_rng(n)
    rank = math.ceil(round((n + 1) * level, 9))
    share = rng.binomial(fresh, rng.beta(rank, n + 1 - rank, size=40_000)) / fresh
    low, high = coverage_band(n, fresh, level)
    slack = 4.5 * math.sqrt(0.025 * 0.975 / 40_000)
    assert (share < low).mean() <= 0.025 + slack
    assert (share > high).mean() <= 0.025 + slack
    assert ((share < low + 1.5 / fresh).mean() > 0.025 - slack) or low == 0.0  # no wider than it must be
    assert low < level < high or high == 1.0


def test_coverage_band_narrows_with_evidence_and_widens_with_confidence() -> None:
    width = lambda *arguments: np.diff(coverage_band(*arguments))[0]  # noqa: E731
    assert width(1000, 1000, 0.9) < width(100, 1000, 0.9) < width(100, 100, 0.9)
    assert width(100, 100, 0.9, 0.99) > width(100, 100, 0.9, 0.8)


@pytest.mark.parametrize(("n", "level", "certifies"), [(9, 0.9, True), (8, 0.9, False), (19, 0.95, True), (18, 0.95, False)])
def test_certificate_needs_enough_scores(n: int, level: float, certifies: bool) -> None:
    assert can_certify(n, level) is certifies
    assert certifies == (n >= math.ceil(round(1 / (1 - level), 9)) - 1)


def tied_scores(seed: int) -> tuple[Tensor, Tensor]:
    """Clean and strange scores with many equal ones, of unequal number."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 12, 90).astype(float)), torch.from_numpy(rng.integers(4, 16, 40).astype(float))


def test_average_precision_equals_scikit_learns_also_under_ties() -> None:
    negative, positive = tied_scores(0)
    labels = np.r_[np.zeros(90), np.ones(40)]
    expected = average_precision_score(labels, torch.cat([negative, positive]).numpy())
    assert scores.average_precision(negative, positive) == pytest.approx(expected, rel=1e-5)
    assert scores.average_precision(positive * 0, positive * 0) == pytest.approx(0.5)
    assert scores.average_precision(negative, positive + 100) == pytest.approx(1.0)


BLOCKS, PER_BLOCK = 30, 12
BLOCK_NAMES = torch.arange(BLOCKS).repeat_interleave(PER_BLOCK)


def blocked(seed: int) -> tuple[Tensor, Tensor]:
    """Clean scores and their perturbed pairs, whose shift depends on the block: windows of a block rise and fall together."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(1.0, 1.0, size=BLOCKS).repeat(PER_BLOCK)
    clean = rng.normal(size=BLOCKS * PER_BLOCK)
    return torch.from_numpy(clean), torch.from_numpy(clean + shift + 0.3 * rng.normal(size=len(clean)))


def has_the_width_of_chance(blocks: Tensor) -> bool:
    """95 % intervals are 3.92 standard deviations of AUROC over 200 fresh data sets wide, within a third, on average."""
    labels = np.r_[np.zeros(len(BLOCK_NAMES)), np.ones(len(BLOCK_NAMES))]
    spread = np.std([roc_auc_score(labels, torch.cat(blocked(seed)).numpy()) for seed in range(100, 300)])
    widths = []
    for seed in range(6):
        auroc = scores.detection_intervals(*blocked(seed), blocks, blocks, resamples=100, seed=seed)["auroc"]
        widths.append(auroc.upper - auroc.lower)
    return 0.67 < float(np.mean(widths)) / (3.92 * float(spread)) < 1.33


def test_block_bootstrap_has_the_width_of_chance_and_a_window_bootstrap_has_not() -> None:
    assert has_the_width_of_chance(BLOCK_NAMES)
    assert not has_the_width_of_chance(torch.arange(len(BLOCK_NAMES)))


def test_detection_intervals_hold_the_estimates_and_repeat_by_seed() -> None:
    negative, positive = blocked(0)
    intervals = scores.detection_intervals(negative, positive, BLOCK_NAMES, BLOCK_NAMES, resamples=50, seed=3)
    auroc, fpr95 = scores.detection_scores(negative, positive)
    estimates = {"auroc": auroc, "aupr": scores.average_precision(negative, positive), "fpr95": fpr95}
    assert {name: interval.estimate for name, interval in intervals.items()} == estimates
    assert all(interval.lower < interval.estimate < interval.upper for interval in intervals.values())
    again = scores.detection_intervals(negative, positive, BLOCK_NAMES, BLOCK_NAMES, resamples=50, seed=3)
    assert again == intervals
    other = scores.detection_intervals(negative, positive, BLOCK_NAMES, BLOCK_NAMES, resamples=50, seed=4)
    assert other != intervals


@pytest.mark.parametrize("digits", [1, 8])
def test_a_resample_that_counts_windows_has_the_scores_of_one_that_repeats_them(digits: int) -> None:
    """Against torchmetrics on the windows themselves, with few distinct scores and with many."""
    generator = torch.Generator().manual_seed(5)
    negative = torch.randn(300, generator=generator, dtype=torch.float64).round(decimals=digits)
    positive = (1 + torch.randn(80, generator=generator, dtype=torch.float64)).round(decimals=digits)
    ranked = scores._Ranked.of(negative, positive)
    for _ in range(5):
        often = [torch.randint(4, (len(each),), generator=generator) for each in (negative, positive)]
        drawn = [each.repeat_interleave(times) for each, times in zip((negative, positive), often, strict=True)]
        np.testing.assert_allclose(ranked.scores(*often).numpy(), scores._all_scores(*drawn), rtol=1e-6)


def test_one_block_has_no_bootstrap() -> None:
    with pytest.raises(ValueError, match=r"at least two blocks .* there are 1"):
        scores.detection_intervals(torch.zeros(3), torch.ones(3), torch.tensor([0, 0, 1]), torch.tensor([0, 2, 2]))


def test_spearman_shares_ranks_and_says_nothing_of_constants() -> None:
    first = torch.tensor([1.0, 2.0, 2.0, 5.0])
    ranks = stats.rankdata(first.numpy()), stats.rankdata([3.0, 1.0, 9.0, 9.0])
    expected = np.corrcoef(*ranks)[0, 1]
    assert scores.spearman(first, torch.tensor([3.0, 1.0, 9.0, 9.0])) == pytest.approx(expected)
    assert scores.spearman(first, first.exp()) == pytest.approx(1.0)
    assert scores.spearman(torch.ones(4), first) == 0.0


def test_expected_calibration_error_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(200, 3, 5)) * 2, rng.integers(0, 5, size=(200, 3))
    mass = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    confidence, correct = mass.max(-1).ravel(), (mass.argmax(-1) == target).ravel()
    cell = np.ceil(confidence * 15).astype(int) - 1
    expected = sum(abs(correct[cell == c].mean() - confidence[cell == c].mean()) * (cell == c).mean() for c in np.unique(cell))
    actual = scores.expected_calibration_error(torch.from_numpy(logits), torch.from_numpy(target))
    assert actual == pytest.approx(expected, abs=1e-5)


def test_calibration_summary_shows_a_repair() -> None:
    """Forecasts at half their spread, and as they are: every score is lower for the latter."""
    predictive, target, mean, _ = normal_forecasts(400)
    centre = torch.from_numpy(mean)[..., None]
    before = scores.calibration_summary(Predictive(centre + 0.5 * (predictive.values - centre)), target)
    after = scores.calibration_summary(predictive, target)
    assert before.keys() == {"calibration_error", "pit_distance", "crps"}
    assert all(after[name] < before[name] for name in before)
    assert after["calibration_error"] < 0.5 * before["calibration_error"]
