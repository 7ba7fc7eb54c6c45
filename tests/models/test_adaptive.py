"""Live intervals: bounds that hold for every sequence, the exact radius, and a variance shift."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.adaptive import ACI, PID, LiveConformal
from models.uncertainty.conformal import conformal_rank

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
METHODS = ["aci", "pid"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(series: int, horizon: int) -> Predictive:
    return Predictive(NORMAL.expand(series, horizon, -1))


def live(method: str, names: list[str], horizon: int, score: str = "tail", fold: int = 200, **options: float) -> LiveConformal:
    """A tracker of Normal forecasts that were right on the conformal fold."""
    return LiveConformal.start(method, score, names, standard(fold, horizon), normal(fold, horizon, seed=99), **options)  # type: ignore[arg-type]


# --- bounds that hold for every sequence ---------------------------------------------------------------------------


class ClippedACI(ACI):
    """The mutant that keeps alpha within [0, 1]: a debt of misses is forgiven at each infinite set."""

    def update(self, miss: Tensor, scores: Tensor | None = None) -> None:
        super().update(miss, scores)
        self.alpha = self.alpha.clamp(0.0, 1.0)


class CappedACI(ACI):
    """The mutant that issues the largest score where no finite set can promise the level."""

    def radius(self) -> Tensor:
        return super().radius().clamp(max=float(self.scores.max()))


class IndifferentACI(ACI):
    """The mutant that counts a miss as a cover when the set was infinite or empty."""

    def update(self, miss: Tensor, scores: Tensor | None = None) -> None:
        super().update(torch.where(self.radius().isinf(), torch.nan, miss), scores)


def adversary(radius: Tensor, step: int) -> Tensor:
    """Misses ``(S, 1)`` that a spiteful nature brings about: a series that is missed wherever a set is not the whole line,
    one that is covered wherever it is not empty, one that changes sides every 40 steps, and one that tosses a coin."""
    can_miss, can_cover = radius[:, 0] < math.inf, radius[:, 0] > -math.inf
    coin = random.Random(step).random() < 0.5
    wants = torch.tensor([True, False, step // 40 % 2 == 0, coin])
    return torch.where(wants, can_miss, ~can_cover).to(torch.float64)[:, None]


def telescoping_slack(kind: type[ACI], delay: int = 0, steps: int = 1500, gamma: float = 0.02) -> float:
    """How far inside its bound the worst series' mean miss ends; negative where the bound is broken.

    Gibbs and Candes (2021), proposition 4.1. With truth that comes ``delay`` issues late, alpha can go on by ``delay``
    steps of gamma beyond [0, 1] before it turns, so gamma counts ``delay + 1`` times.
    """
    target = 0.1
    controller = kind.start(normal(300, 1).abs(), 4, target, gamma)
    misses: list[Tensor] = []
    for step in range(steps):
        misses.append(adversary(controller.radius(), step))
        if step >= delay:
            controller.update(misses[step - delay])
    learnt = torch.stack(misses[: steps - delay])
    bound = (max(target, 1 - target) + (delay + 1) * gamma) / (gamma * len(learnt))
    return bound - float((learnt.mean(0) - target).abs().max())


@pytest.mark.parametrize("delay", [0, 1, 24])
def test_aci_keeps_its_bound_against_an_adversary(delay: int) -> None:
    assert telescoping_slack(ACI, delay) >= 0


@pytest.mark.parametrize("mutant", [ClippedACI, CappedACI, IndifferentACI])
def test_the_bound_rejects_mutants(mutant: type[ACI]) -> None:
    assert telescoping_slack(mutant) < 0


def test_pid_without_integrator_keeps_its_bound() -> None:
    """Scores in an interval of length b: an adversary may be missed only where the radius is below the largest score."""
    scores, steps = normal(60, 1).abs(), 2000
    largest, least = float(scores.max()), float(scores.min())
    controller = PID.start(scores, 4, integral=0.0)
    misses = []
    for step in range(steps):
        radius = controller.radius()
        limits = torch.where(radius >= largest, math.inf, torch.where(radius < least, -math.inf, radius))
        misses.append(adversary(limits, step))
        controller.update(misses[-1])
    rate, mean = float(controller.rate), torch.stack(misses).mean(0)
    assert float((mean - 0.1).abs().max()) <= (largest - least + rate) / (rate * steps)


# --- the radius ---------------------------------------------------------------------------------------------------


def test_aci_radius_is_the_exact_order_statistic() -> None:
    """At every alpha, the conformal rank of 1 - alpha; the whole line above the last rank, empty below the first."""
    scores = normal(19, 2).abs()
    for alpha in (-0.2, 0.0, 0.02, 0.05, 0.1, 0.37, 0.95, 0.999, 1.0, 1.3):
        controller = ACI.start(scores, 3)
        controller.alpha = torch.full((3, 2), alpha, dtype=torch.float64)
        rank = conformal_rank(19, 1 - alpha)
        ends = {True: math.inf, False: -math.inf}
        expected = scores.sort(dim=0).values[rank - 1] if 1 <= rank <= 19 else torch.full((2,), ends[rank > 19])
        assert torch.equal(controller.radius(), expected.double().expand(3, 2)), alpha


def test_new_scores_replace_the_oldest() -> None:
    controller = ACI.start(torch.arange(4.0)[:, None].repeat(1, 2), 3)
    nan = torch.nan
    misses = torch.full((3, 2), nan)
    controller.update(misses, torch.tensor([[10.0, nan], [nan, nan], [11.0, 20.0]]))
    assert controller.scores[:, 0].tolist() == [10.0, 11.0, 2.0, 3.0]
    assert controller.scores[:, 1].tolist() == [20.0, 1.0, 2.0, 3.0]
    controller.update(misses, torch.tensor([[12.0, nan], [13.0, nan], [14.0, nan]]))
    assert controller.scores[:, 0].tolist() == [14.0, 11.0, 12.0, 13.0]
    assert torch.equal(controller.alpha, torch.full((3, 2), 0.1, dtype=torch.float64))
    small = ACI.start(torch.zeros(2, 1), 3)
    small.update(torch.full((3, 1), nan), torch.tensor([[1.0], [2.0], [3.0]]))
    assert sorted(small.scores[:, 0].tolist()) == [2.0, 3.0]


def test_pid_takes_its_step_size_from_usual_scores() -> None:
    """Wild or infinite scores leave it as it is, and ties at the bottom leave it above zero."""
    usual = normal(400, 1).abs()
    wild = usual.clone()
    wild[:4] = torch.tensor([1e9, math.inf, math.inf, 1e12])[:, None]
    steps = [float(PID.start(scores, 1).rate) for scores in (usual, wild)]
    assert steps[1] == pytest.approx(steps[0], rel=0.2)
    tied = torch.zeros(400, 1, dtype=torch.float64)
    tied[:5] = 3.0
    controller = PID.start(tied, 1, rate=0.1)
    assert float(controller.tracked) == 0.0
    assert float(controller.rate) == pytest.approx(0.3)


# --- drift --------------------------------------------------------------------------------------------------------


def coverage_after_shift(tracker: LiveConformal, known_scores: bool) -> float:
    """Share of 20 series x 1500 steps covered after the standard deviation has risen threefold, the rise itself included."""
    series, before, after = len(tracker.ledger.series), 100, 1500
    noise = normal(before + after, series, 1, seed=5)
    noise[before:] *= 3.0
    forecast = standard(series, 1)
    held = []
    for step, truth in enumerate(noise):
        tracker.issue(step, forecast)
        held.append(1 - tracker.observe(step, truth, forecast if known_scores else None))
    return float(torch.stack(held[before:]).mean())


@pytest.mark.parametrize(
    ("method", "score", "known_scores"),
    [
        ("aci", "scaled_residual", False),
        ("aci", "scaled_residual", True),
        ("aci", "tail", True),
        ("pid", "scaled_residual", False),
        ("pid", "tail", False),
        ("pid", "cqr", False),
    ],
)
def test_adaptive_intervals_survive_a_threefold_rise_of_the_spread(method: str, score: str, known_scores: bool) -> None:
    tracker = live(method, [f"s{index}" for index in range(20)], 1, score, fold=500)
    assert coverage_after_shift(tracker, known_scores) == pytest.approx(0.9, abs=0.02)
    counts = tracker.ledger.counts()
    assert counts["issued"] == counts["covered"] + counts["missed"] == 20 * 1600
    if method == "aci" and not known_scores:
        assert counts["infinite"] > 1000  # 500 old scores do not reach three times as far
    else:
        assert counts["infinite"] < 0.01 * counts["issued"]


def test_the_same_check_rejects_static_intervals() -> None:
    """With a step size of next to nothing they cover P(|z| < 1.645 / 3) = 41.6 %, as far as 500 scores know the 1.645."""
    tracker = live("aci", [f"s{index}" for index in range(20)], 1, "scaled_residual", fold=500, gamma=1e-9)
    assert coverage_after_shift(tracker, known_scores=False) == pytest.approx(0.416, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_coverage_holds_where_nothing_changes_and_differs_not_by_step(method: str) -> None:
    """Three steps, truth of step h known h issues later; each within four standard errors of 20 x 500 independent truths."""
    tracker = live(method, [f"s{index}" for index in range(20)], 3)
    noise, forecast, nan = normal(500, 20, 3, seed=6), standard(20, 3), torch.nan
    misses = torch.zeros(3, dtype=torch.float64)
    for cutoff in range(len(noise)):
        tracker.issue(cutoff, forecast)
        for step in range(min(3, cutoff + 1)):
            truth = torch.full((20, 3), nan, dtype=torch.float64)
            truth[:, step] = noise[cutoff - step, :, step]
            miss = tracker.observe(cutoff - step, truth, forecast)[:, step]
            misses[step] += miss.sum() / (20 * (len(noise) - step))
    torch.testing.assert_close(misses, torch.full((3,), 0.1, dtype=torch.float64), rtol=0, atol=4 * math.sqrt(0.09 / 10000))
