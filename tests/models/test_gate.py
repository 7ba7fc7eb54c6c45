"""The gate as a whole, tails, expected errors and abstention: what they promise holds for new windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy import stats
from torch import Tensor

from models.uncertainty.abstention import Abstention, ExpectedError
from models.uncertainty.descriptors import DESCRIPTORS
from models.uncertainty.gate import Gate
from models.uncertainty.ood import conformal_p_value
from models.uncertainty.tail import TailProbability

ENCODED = 6


def features(count: int, seed: int) -> Tensor:
    """Encoder features and descriptors of ordinary windows: correlated, heavy-tailed in some columns, constant in one."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(ENCODED, ENCODED))
    encoded = rng.normal(size=(count, ENCODED)) @ mix
    described = rng.standard_t(4, size=(count, len(DESCRIPTORS))) * 0.3
    described[:, 3] = 0.0
    return torch.from_numpy(np.concatenate([encoded, described], axis=1))


def forecasts(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signals of forecasts (spread, disagreement) and their errors, which follow them."""
    rng = np.random.default_rng(seed)
    spread, disagreement = rng.lognormal(-2, 0.5, count), rng.lognormal(-3, 0.5, count)
    error = spread**0.8 * disagreement**0.3 * rng.lognormal(0, 0.3, count)
    return torch.from_numpy(np.stack([spread, disagreement], axis=1)), torch.zeros(count), torch.from_numpy(error)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate.fit(features(800, 0), features(399, 1), alpha=0.05)


def test_false_alarms_follow_the_beta_binomial_law(gate: Gate) -> None:
    """20 of 400 ranks are flagged: the rate is Beta(20, 380) given the fold; bounds at 1e-4 on each side."""
    flagged = int(gate.is_ood(gate.score(features(2000, 2))).sum())
    law = stats.betabinom(2000, 20, 380)
    assert law.ppf(1e-4) <= flagged <= law.ppf(1 - 1e-4)


@pytest.mark.parametrize("column", [0, ENCODED, ENCODED + 3, -1])
def test_any_one_feature_far_out_raises_the_alarm(gate: Gate, column: int) -> None:
    """Also a descriptor that never varied."""
    strange = features(200, 3)
    strange[:, column] += 30.0
    assert bool(gate.is_ood(gate.score(strange)).all())


def test_the_score_grows_with_the_distance_beyond_all_that_was_seen(gate: Gate) -> None:
    window = features(1, 4).repeat(6, 1)
    window[:, ENCODED] += 10.0 ** torch.arange(1, 7)
    scores = gate.score(window)
    assert bool((scores.diff() > 0).all())
    assert torch.isfinite(scores).all()


def test_an_unknown_descriptor_counts_as_ordinary(gate: Gate) -> None:
    window = torch.cat([torch.zeros(5, ENCODED), torch.full((5, len(DESCRIPTORS)), torch.nan)], dim=1)
    assert not gate.is_ood(gate.score(window)).any()


def test_the_threshold_and_the_p_value_agree(gate: Gate) -> None:
    scores = gate.score(features(500, 5))
    assert torch.equal(scores > gate.threshold, gate.is_ood(scores))


def test_a_saved_gate_is_the_same_gate(gate: Gate) -> None:
    error, ood, later = fitted_abstention()
    whole = gate.with_abstention(error, ood, later, 0.05)
    again = Gate.from_tensors(load(save(whole.tensors())))
    new, signals = features(300, 6), forecasts(300, 6)[0]
    score = whole.score(new)
    torch.testing.assert_close(again.score(new), score, rtol=0, atol=0)
    uncertainty = whole.uncertainty(signals, score)
    torch.testing.assert_close(again.uncertainty(signals, score), uncertainty, rtol=0, atol=0)
    assert torch.equal(again.abstain(score, uncertainty), whole.abstain(score, uncertainty))
    assert again.alpha == whole.alpha


def test_a_gate_without_abstention_gives_every_forecast(gate: Gate) -> None:
    score = gate.score(features(50, 7) + 100.0)
    assert not gate.abstain(score, torch.full((50,), 1e9)).any()


def test_few_training_windows_are_enough_to_fit() -> None:
    gate = Gate.fit(features(12, 0), features(8, 1), alpha=0.05)
    assert torch.isfinite(gate.score(features(20, 2))).all()
    assert not gate.is_ood(gate.score(features(20, 2) + 99)).any(), "eight windows cannot certify five percent"


def test_surprise_is_the_log_of_the_tail_probability() -> None:
    """Of 20,000 exponential values the share above x is exp(-x); a Pareto value's own tail goes on as a line in its log."""
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=20_000))
    tail = TailProbability.fit(values)
    inside = torch.linspace(0.05, 2.2, 30, dtype=torch.float64)
    torch.testing.assert_close(tail.apply(inside), inside, rtol=0.05, atol=0.02)
    pareto = TailProbability.fit(torch.exp(values / 2))
    torch.testing.assert_close(
        pareto.apply(torch.exp(torch.tensor([4.0]) / 2)).double(), torch.tensor([4.0]).double(), rtol=0.1, atol=0
    )


def test_surprise_never_falls_and_ties_are_told_alike() -> None:
    tail = TailProbability.fit(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 5.0]))
    surprise = tail.apply(torch.linspace(0, 50, 500))
    assert bool((surprise.diff() >= 0).all())
    assert bool(torch.isfinite(TailProbability.fit(torch.ones(9)).apply(torch.tensor([0.0, 1.0, 2.0]))).all())


def test_expected_error_recovers_how_errors_follow_signals() -> None:
    """Standard errors of the slopes are about 0.3 / (0.5 sqrt(4000)) = 0.01."""
    signals, surprise, error = forecasts(4000, 0)
    fitted = ExpectedError.fit(signals, surprise, error)
    np.testing.assert_allclose(fitted.coefficients[1:3].numpy(), [0.8, 0.3], atol=0.04)
    assert float(fitted.coefficients[3]) == 0.0, "a surprise that never varies says nothing"


def test_more_uncertainty_or_surprise_never_means_a_smaller_expected_error() -> None:
    signals, _, error = forecasts(500, 1)
    surprise = -error.log()  # strange windows happened to have small errors
    fitted = ExpectedError.fit(signals, surprise, error)
    assert bool((fitted.coefficients[1:] >= 0).all())
    assert float(fitted.predict(signals[:1], torch.tensor([99.0]))) >= float(fitted.predict(signals[:1], torch.tensor([0.0])))


def fitted_abstention() -> tuple[ExpectedError, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    error = ExpectedError.spread_alone()
    folds = []
    for seed in (11, 12):
        rng = np.random.default_rng(seed)
        folds.append((torch.from_numpy(rng.exponential(size=3999)), torch.from_numpy(rng.lognormal(size=3999))))
    return error, folds[0], folds[1]


class EachForItself:
    """The mistake of withholding the nominal share for each reason, and so about twice as much."""

    def __init__(self, ood: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor], fraction: float) -> None:
        self.later, self.fraction = later, fraction

    def withhold(self, strangeness: Tensor, uncertainty: Tensor) -> Tensor:
        parts = zip((strangeness, uncertainty), self.later, strict=True)
        return torch.stack([conformal_p_value(new, known) <= self.fraction for new, known in parts]).any(0)


def holds_its_share(fit: type) -> bool:
    """Whether at most 5 % is withheld, within the upper 1e-4 of Beta(200, 3800) given the fold."""
    make = Abstention.fit if fit is Abstention else fit
    abstention = make(*fitted_abstention()[1:], 0.05)
    rng = np.random.default_rng(13)
    new = torch.from_numpy(rng.exponential(size=4000)), torch.from_numpy(rng.lognormal(size=4000))
    return int(abstention.withhold(*new).sum()) <= stats.betabinom(4000, 200, 3800).ppf(1 - 1e-4)


def test_the_share_withheld_is_that_of_both_reasons_together() -> None:
    assert holds_its_share(Abstention)
    assert not holds_its_share(EachForItself)


def test_what_is_far_out_for_either_reason_is_withheld() -> None:
    abstention = Abstention.fit(*fitted_abstention()[1:], 0.05)
    strange, uncertain = torch.tensor([1e3, 0.1]), torch.tensor([0.1, 1e4])
    assert bool(abstention.withhold(strange, uncertain).all())
    assert not abstention.withhold(torch.tensor([0.1]), torch.tensor([0.1])).any()
    assert abstention.certified


def test_a_fold_too_small_withholds_nothing_and_says_so() -> None:
    fold = torch.arange(10.0), torch.arange(10.0)
    abstention = Abstention.fit(fold, fold, 0.05)
    assert not abstention.certified
    assert not abstention.withhold(torch.tensor([1e6]), torch.tensor([1e6])).any()
