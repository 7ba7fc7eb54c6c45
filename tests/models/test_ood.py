"""The out-of-distribution gate: the distance it computes and the law of its p-values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf
from torch import Tensor

from models.uncertainty.ood import Mahalanobis, conformal_p_value


def features(count: int, seed: int) -> Tensor:
    """Correlated features of different size, ``(count, 5)``."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(5, 5))
    return torch.from_numpy(rng.normal(size=(count, 5)) @ mix * [1.0, 3.0, 0.2, 1.0, 10.0] + 4.0)


def test_distance_equals_the_formula_with_ledoit_wolf_covariance() -> None:
    train, new = features(80, 0), features(20, 1)
    estimate = LedoitWolf().fit(train.numpy())
    inverse = np.linalg.inv(estimate.covariance_)
    expected = [(x - estimate.location_) @ inverse @ (x - estimate.location_) for x in new.numpy()]
    np.testing.assert_allclose(Mahalanobis.fit(train).score(new).numpy(), expected, rtol=1e-5)


def test_distance_of_float32_features_is_computed_in_float64() -> None:
    train = features(80, 0)
    scores = Mahalanobis.fit(train.float()).score(train.float())
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), Mahalanobis.fit(train).score(train).numpy(), rtol=1e-3)


@pytest.mark.parametrize("constant", [0.0, 1e6])
def test_constant_and_duplicate_columns_are_harmless(constant: float) -> None:
    train = torch.cat([features(60, 0), torch.full((60, 1), constant, dtype=torch.float64), features(60, 0)[:, :1]], dim=1)
    scores = Mahalanobis.fit(train).score(train)
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()


def test_all_constant_features_are_harmless() -> None:
    train = torch.ones(30, 3)
    scores = Mahalanobis.fit(train).score(torch.cat([train, train + 1.0]))
    assert torch.isfinite(scores).all()
    assert scores[0] < scores[-1]


def test_p_value_by_hand() -> None:
    calibration = torch.tensor([5.0, 1.0, 3.0, 3.0])
    p_values = conformal_p_value(torch.tensor([0.0, 1.0, 3.0, 4.0, 5.0, 6.0]), calibration)
    torch.testing.assert_close(p_values, torch.tensor([5.0, 5.0, 4.0, 2.0, 2.0, 1.0], dtype=torch.float64) / 5)


def test_p_values_of_exchangeable_windows_are_uniform() -> None:
    """Chi-square over the 20 values that 19 calibration scores allow, each as likely as the others."""
    scores = torch.from_numpy(np.random.default_rng(0).standard_cauchy(size=(4000, 20)))
    ranks = torch.cat([conformal_p_value(row[:1], row[1:]) for row in scores]).mul(20).round().long()
    assert stats.chisquare(np.bincount(ranks.numpy(), minlength=21)[1:]).pvalue > 1e-3


def test_p_values_under_ties_err_on_the_safe_side() -> None:
    """P(p <= a) <= a: the observed count stays below the binomial's upper 1e-4 quantile."""
    scores = torch.from_numpy(np.random.default_rng(1).integers(0, 4, size=(3000, 40)).astype(float))
    p_values = torch.cat([conformal_p_value(row[:1], row[1:]) for row in scores])
    for level in (0.05, 0.1, 0.2, 0.3, 0.5):
        assert int((p_values <= level).sum()) <= stats.binom(3000, level).ppf(1 - 1e-4)
    assert float(p_values.min()) > 0


def test_a_shift_raises_the_alarm_and_clean_windows_do_not() -> None:
    gate = Mahalanobis.fit(features(300, 0))
    calibration = gate.score(features(199, 1))
    clean = conformal_p_value(gate.score(features(500, 2)), calibration)
    shifted = conformal_p_value(gate.score(features(500, 3) + 20.0), calibration)
    assert float((shifted <= 0.05).double().mean()) > 0.99
    assert int((clean <= 0.05).sum()) <= stats.betabinom(500, 10, 190).ppf(1 - 1e-4)  # alarms: 1 - Beta(190, 10)
