"""Selective prediction: the risk of what is answered stays below its bound as often as promised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.uncertainty.selective import (
    SelectiveGuarantee,
    aurc_ratio,
    clipped_loss,
    hoeffding_bentkus,
    kept_table,
    least_windows,
    miscoverage_loss,
    threshold_grid,
)

RISK, DELTA, REPEATS, WINDOWS = 0.1, 0.1, 300, 1000
Choose = Callable[[Tensor, Tensor, Tensor], float]


def fold(rng: np.random.Generator, kind: str) -> tuple[Tensor, Tensor]:
    """Uncertainty u uniform on (0, 1) and a loss of expectation 0.4 u, so that answering u <= t has the risk 0.2 t."""
    uncertainty = rng.uniform(size=WINDOWS)
    mean = 0.4 * uncertainty
    loss = rng.uniform(size=WINDOWS) < mean if kind == "zero or one" else rng.binomial(12, mean) / 12
    return torch.from_numpy(uncertainty), torch.from_numpy(loss.astype(float))


def thresholds_chosen(choose: Choose, kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    grid = threshold_grid(torch.from_numpy(rng.uniform(size=500)))
    return np.array([choose(*fold(rng, kind), grid) for _ in range(REPEATS)])


def keeps_its_promise(choose: Choose, kind: str) -> bool:
    """The risk is above 0.1 (a threshold above 0.5) in at most a share delta of repeats: binomial, its 1 - 1e-4 quantile."""
    violations = int((thresholds_chosen(choose, kind) > RISK / 0.2).sum())
    return violations <= stats.binom(REPEATS, DELTA).ppf(1 - 1e-4)


def learn_then_test(uncertainty: Tensor, loss: Tensor, grid: Tensor) -> float:
    return SelectiveGuarantee.fit(uncertainty, loss, grid, risk=RISK, delta=DELTA).threshold


def empirically_best(uncertainty: Tensor, loss: Tensor, grid: Tensor) -> float:
    """The mutant: the largest threshold that did well on the fold, untested."""
    kept = [loss[uncertainty <= threshold] for threshold in grid]
    return max((float(t) for t, part in zip(grid, kept, strict=True) if float(part.mean()) <= RISK), default=-math.inf)


@pytest.mark.parametrize("kind", ["zero or one", "a share of steps"])
def test_risk_is_violated_at_most_as_often_as_promised(kind: str) -> None:
    assert keeps_its_promise(learn_then_test, kind)
    assert not keeps_its_promise(empirically_best, kind)


@pytest.mark.parametrize("kind", ["zero or one", "a share of steps"])
def test_the_promise_is_not_kept_by_answering_nothing(kind: str) -> None:
    """Half of the repeats reach three fifths of the threshold that would just do, 0.5, and few answer nothing."""
    chosen = thresholds_chosen(learn_then_test, kind)
    assert float(np.median(chosen)) > 0.3
    assert float(np.isinf(chosen).mean()) < 0.2


@pytest.mark.parametrize("count", [22, 50, 200])
@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3])
def test_p_value_is_valid_for_every_level(count: int, risk: float) -> None:
    """P(p <= d) <= d exactly, over the binomial distribution of losses whose expectation is ``risk``."""
    mass = stats.binom.pmf(np.arange(count + 1), count, risk)
    values = np.array([hoeffding_bentkus(lost / count, count, risk) for lost in range(count + 1)])
    assert (np.diff(values) >= -1e-12).all()
    for level in np.unique(values[values < 1.0]):
        assert mass[values <= level].sum() <= level + 1e-12


def test_p_value_by_hand() -> None:
    """Without a loss Hoeffding's is (1 - r)^n; Bentkus' is e times that."""
    assert hoeffding_bentkus(0.0, 30, 0.1) == pytest.approx(0.9**30)
    divergence = 0.1 * math.log(0.1 / 0.2) + 0.9 * math.log(0.9 / 0.8)
    bentkus = math.e * stats.binom.cdf(10, 100, 0.2)
    assert hoeffding_bentkus(0.1, 100, 0.2) == pytest.approx(min(math.exp(-100 * divergence), bentkus))
    assert bentkus < math.exp(-100 * divergence)
    assert hoeffding_bentkus(0.2, 100, 0.2) == 1.0
    assert hoeffding_bentkus(0.0, 0, 0.2) == 1.0


def test_testing_stops_at_the_first_failure() -> None:
    """A bad stretch of uncertainty ends the sequence, though still larger thresholds do well again."""
    uncertainty = torch.arange(1000, dtype=torch.float64)
    loss = torch.zeros(1000)
    loss[200:260] = 1.0
    grid = torch.tensor([100.0, 150.0, 255.0, 999.0])
    guarantee = SelectiveGuarantee.fit(uncertainty, loss, grid, risk=0.1, delta=0.1)
    assert guarantee.threshold == 150.0
    assert SelectiveGuarantee.fit(uncertainty, loss, grid[[0, 1, 3]], risk=0.1, delta=0.1).threshold == 999.0


def test_what_cannot_be_certified_is_withheld_and_said() -> None:
    uncertainty, loss = torch.rand(300), torch.full((300,), 0.5)
    guarantee = SelectiveGuarantee.fit(uncertainty, loss, threshold_grid(torch.rand(300)), risk=0.1, delta=0.1)
    assert not guarantee.certified
    assert not guarantee.answer(torch.tensor([-math.inf, 0.0, 1.0])).any()
    assert guarantee.answered == 0.0
    assert "every forecast is withheld" in guarantee.statement()


def test_answers_up_to_the_threshold_and_nothing_unknown() -> None:
    guarantee = SelectiveGuarantee(0.5, 0.1, 0.05, 0.8, 0.02, 100)
    assert guarantee.answer(torch.tensor([0.4, 0.5, 0.6, math.nan])).tolist() == [True, True, False, False]
    assert "risk at most 0.1 with probability 0.95" in guarantee.statement()
    assert "80% of 100" in guarantee.statement()


def test_an_infinite_threshold_answers_all() -> None:
    uncertainty = torch.rand(400)
    guarantee = SelectiveGuarantee.fit(uncertainty, torch.zeros(400), threshold_grid(uncertainty), risk=0.1, delta=0.05)
    assert guarantee.threshold == math.inf
    assert guarantee.answer(torch.tensor([1e9])).all()
    assert guarantee.answered == 1.0


def test_state_survives_json_also_where_infinite() -> None:
    for threshold, mean in ((0.5, 0.02), (math.inf, 0.02), (-math.inf, math.nan)):
        guarantee = SelectiveGuarantee(threshold, 0.1, 0.05, 0.8, mean, 100)
        again = SelectiveGuarantee.from_state(json.loads(json.dumps(guarantee.state(), allow_nan=False)))
        np.testing.assert_equal(vars(again), vars(guarantee))


def test_fewest_windows_are_those_that_a_fold_without_loss_needs() -> None:
    needed = least_windows(0.1, 0.1)
    assert needed == 22
    assert hoeffding_bentkus(0.0, needed, 0.1) <= 0.1 < hoeffding_bentkus(0.0, needed - 1, 0.1)
    everything = torch.tensor([math.inf])
    guarantee = SelectiveGuarantee.fit(torch.rand(22), torch.zeros(22), everything, risk=0.1, delta=0.1)
    assert guarantee.certified
    with pytest.raises(ValueError, match=r"has 21 windows; .* takes at least 22"):
        SelectiveGuarantee.fit(torch.rand(21), torch.zeros(21), everything, risk=0.1, delta=0.1)


@pytest.mark.parametrize(
    ("uncertainty", "loss", "risk", "said"),
    [
        (torch.zeros(50), torch.full((50,), 1.1), 0.1, "must be in \\[0, 1\\]"),
        (torch.zeros(50), torch.full((50,), math.nan), 0.1, "must be in \\[0, 1\\]"),
        (torch.full((50,), math.nan), torch.zeros(50), 0.1, "some are missing"),
        (torch.zeros(49), torch.zeros(50), 0.1, "some are missing"),
        (torch.zeros(50), torch.zeros(50), 1.0, "must be in \\(0, 1\\), got 1.0"),
    ],
)
def test_bad_folds_are_named(uncertainty: Tensor, loss: Tensor, risk: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SelectiveGuarantee.fit(uncertainty, loss, torch.tensor([1.0]), risk=risk, delta=0.1)


def test_losses() -> None:
    lower, upper = torch.zeros(2, 4), torch.ones(2, 4)
    target = torch.tensor([[0.0, 1.0, 1.1, -0.1], [0.5, 0.5, 0.5, 0.5]])
    assert miscoverage_loss(lower, upper, target).tolist() == [0.5, 0.0]
    assert clipped_loss(torch.tensor([0.0, 1.0, 4.0, 9.0]), 4.0).tolist() == [0.0, 0.25, 1.0, 1.0]
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        clipped_loss(torch.zeros(3), 0.0)


def test_grid_answers_the_shares_it_says() -> None:
    uncertainty = torch.from_numpy(np.random.default_rng(0).permutation(1001).astype(float))
    grid = threshold_grid(uncertainty, count=9, smallest_share=0.2)
    shares = [float((uncertainty <= threshold).double().mean()) for threshold in grid]
    np.testing.assert_allclose(shares, np.linspace(0.2, 1.0, 9), atol=2e-3)
    assert math.isinf(grid[-1])
    assert threshold_grid(torch.zeros(10)).tolist() == [0.0, math.inf]


def test_kept_table_by_hand() -> None:
    """Ten windows whose loss is their rank of uncertainty."""
    loss = torch.arange(1.0, 11.0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    rows = kept_table((loss / 10)[order], loss[order])
    assert [(row.share, row.kept) for row in rows] == [(1.0, 10), (0.95, 10), (0.9, 9), (0.8, 8), (0.7, 7), (0.5, 5)]
    assert [row.loss for row in rows] == pytest.approx([5.5, 5.5, 5.0, 4.5, 4.0, 3.0])
    assert [row.ratio for row in rows] == pytest.approx([1.0, 1.0, 5 / 5.5, 4.5 / 5.5, 4 / 5.5, 3 / 5.5])
    assert [row.threshold for row in rows] == pytest.approx([1.0, 1.0, 0.9, 0.8, 0.7, 0.5])
    with pytest.raises(ValueError, match="shares in"):
        kept_table(loss, loss, (0.0,))
    assert kept_table(loss, torch.zeros(10))[2].ratio == 1.0


def test_aurc_ratio_is_one_for_the_oracle_and_rises_with_disorder() -> None:
    loss = torch.from_numpy(np.random.default_rng(0).exponential(size=500))
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=500))
    assert aurc_ratio(loss.log(), loss) == pytest.approx(1.0)
    ratios = [aurc_ratio(loss + scale * noise, loss) for scale in (0.0, 0.3, 3.0)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > aurc_ratio(loss, loss) + 0.5
    assert aurc_ratio(-loss, loss) > ratios[-1]
    assert aurc_ratio(noise, torch.zeros(500)) == 1.0
