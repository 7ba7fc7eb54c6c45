"""Issued intervals and their truths: late, out of order, twice, missing or never; exact restarts; wrong ledgers rejected."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.adaptive import ACI, LiveConformal
from models.uncertainty.conformal_scores import interval_score
from models.uncertainty.ledger import Ledger

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
METHODS = ["aci", "pid"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(series: int, horizon: int) -> Predictive:
    return Predictive(NORMAL.expand(series, horizon, -1))


def live(method: str, names: list[str], horizon: int, score: str = "tail", fold: int = 200, **options: float) -> LiveConformal:
    """A tracker of Normal forecasts that were right on the conformal fold."""
    return LiveConformal.start(method, score, names, standard(fold, horizon), normal(fold, horizon, seed=99), **options)  # type: ignore[arg-type]


def history(method: str, seed: int, cutoffs: int) -> list[tuple[str, Any]]:
    """Issues and rows of truth of 3 series and 4 steps: late by any time, out of order, twice, NaN or never."""
    rng = random.Random(seed)
    due: list[tuple[float, str, Any]] = []
    for cutoff in range(cutoffs):
        due.append((cutoff, "issue", cutoff))
        for series in "abc":
            for step in range(1, 5):
                value = rng.gauss(0, 2)
                for _ in range(rng.choice([0, 1, 1, 1, 2])):
                    known = math.nan if rng.random() < 0.1 else value
                    due.append((cutoff + step + rng.expovariate(0.3), "truth", (series, cutoff, step, known)))
    due.sort(key=lambda each: each[0])
    return [(kind, what) for _, kind, what in due]


def play(tracker: LiveConformal, events: list[tuple[str, Any]]) -> LiveConformal:
    for kind, what in events:
        if kind == "issue":
            location = normal(3, 4, 1, seed=what) * 0.1
            tracker.issue(what, Predictive(location + NORMAL))
        else:
            tracker.observe_rows(*([each] for each in what))
    return tracker


@pytest.mark.parametrize("method", METHODS)
def test_a_restart_at_any_moment_changes_no_bit(method: str) -> None:
    events = history(method, seed=1, cutoffs=60)[:500]
    assert len(events) == 500
    straight = play(live(method, list("abc"), 4), events)
    cut = random.Random(2).randrange(100, 400)
    first = play(live(method, list("abc"), 4), events[:cut])
    text = json.dumps(first.state(), allow_nan=False)
    second = play(LiveConformal.from_state(json.loads(text)), events[cut:])
    assert json.dumps(second.state()) == json.dumps(straight.state())
    assert torch.equal(second.controller.radius(), straight.controller.radius())
    counts = straight.ledger.counts()
    assert counts["open"] > 0
    assert counts["missed"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_restart_keeps_infinite_and_empty_sets(method: str) -> None:
    tracker = live(method, ["a", "b"], 2)
    if isinstance(tracker.controller, ACI):
        tracker.controller.alpha = torch.tensor([[-0.1, 1.1], [0.1, 0.2]], dtype=torch.float64)
        tracker.controller.scores[0, 0] = math.inf
    else:
        tracker.controller.tracked[0] = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    tracker.issue("2026-01-01", standard(2, 2), issued=torch.tensor([[True, True], [True, False]]))
    again = LiveConformal.from_state(json.loads(json.dumps(tracker.state(), allow_nan=False)))
    assert json.dumps(again.state()) == json.dumps(tracker.state())
    counts = again.ledger.counts()
    assert (counts["issued"], counts["infinite"], counts["empty"], counts["open"]) == (3, 1, 1, 3)
    miss = again.observe("2026-01-01", torch.tensor([[1e9, 0.0], [0.0, torch.nan]]))
    assert miss[0].tolist() == [0.0, 1.0]  # the whole line covers anything, the empty set nothing
    assert again.ledger.counts()["covered_infinite"] == 1


def ledger_of(settle: Callable[[LiveConformal, list[tuple[str, Any]]], LiveConformal]) -> tuple[float, dict[str, int]]:
    """Distance of alpha from the one that the issued intervals and their first truths imply, and the counts."""
    gamma, target = 0.02, 0.1
    events = history("aci", seed=3, cutoffs=80)
    tracker = settle(live("aci", list("abc"), 4, gamma=gamma), events)
    first: dict[tuple[str, int, int], float] = {}
    for kind, what in events:
        if kind == "truth" and not math.isnan(what[3]):
            first.setdefault(what[:3], what[3])
    alpha = torch.full((3, 4), target, dtype=torch.float64)
    for (series, cutoff, step), value in first.items():
        issue, row = tracker.ledger.issues[cutoff], "abc".index(series)
        miss = not float(issue.lower[row, step - 1]) <= value <= float(issue.upper[row, step - 1])
        alpha[row, step - 1] += gamma * (target - miss)
    return float((alpha - tracker.controller.alpha).abs().max()), tracker.ledger.counts() | {"evidence": len(first)}


def test_alpha_moves_once_by_the_miss_of_each_issued_interval() -> None:
    distance, counts = ledger_of(play)
    assert distance < 1e-12
    assert counts["covered"] + counts["missed"] == counts["evidence"]
    assert counts["open"] == 80 * 12 - counts["evidence"] > 0


def play_by_current_interval(tracker: LiveConformal, events: list[tuple[str, Any]]) -> LiveConformal:
    """The mutant that holds a late truth against the interval that would be issued now."""
    for kind, what in events:
        if kind == "truth" and what[1] in tracker.ledger.issues:
            radius = tracker.controller.radius()
            issue = tracker.ledger.issues[what[1]]
            location = normal(3, 4, 1, seed=what[1]) * 0.1
            now = interval_score("tail").interval(Predictive(location + NORMAL), radius[..., None], 0.9)
            kept = (issue.lower, issue.upper)
            issue.lower, issue.upper = now
            tracker.observe_rows(*([each] for each in what))
            issue.lower, issue.upper = kept
        else:
            play(tracker, [(kind, what)])
    return tracker


def play_counting_twice(tracker: LiveConformal, events: list[tuple[str, Any]]) -> LiveConformal:
    """The mutant that learns from each delivery of a truth."""
    for event in events:
        play(tracker, [event])
        if event[0] == "truth":
            for issue in tracker.ledger.issues.values():
                issue.outcome = torch.zeros_like(issue.outcome)
    return tracker


def play_nan_as_cover(tracker: LiveConformal, events: list[tuple[str, Any]]) -> LiveConformal:
    """The mutant that takes a missing truth for a covered one."""
    for kind, what in events:
        known = what if kind == "issue" or not math.isnan(what[3]) else (*what[:3], 0.0)
        play(tracker, [(kind, known)])
    return tracker


@pytest.mark.parametrize("mutant", [play_by_current_interval, play_counting_twice, play_nan_as_cover])
def test_the_same_check_rejects_wrong_ledgers(mutant: Callable[..., LiveConformal]) -> None:
    assert ledger_of(mutant)[0] > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_a_truth_given_twice_changes_nothing_and_nan_leaves_it_open(method: str) -> None:
    tracker = live(method, ["a"], 2)
    tracker.issue(1, standard(1, 2))
    assert tracker.observe(1, torch.tensor([[torch.nan, torch.nan]])).isnan().all()
    assert tracker.ledger.counts()["open"] == 2
    assert tracker.observe(1, torch.tensor([[50.0, torch.nan]])).nan_to_num(-1).tolist() == [[1.0, -1.0]]
    state = json.dumps(tracker.state())
    assert tracker.observe_rows(["a", "a"], [1, 1], [1, 1], [50.0, 0.0]) == 0  # once more, and revised
    assert tracker.observe(1, torch.tensor([[0.0, torch.nan]]), standard(1, 2)).isnan().all()
    assert json.dumps(tracker.state()) == state
    assert tracker.observe_rows(["a", "a"], [1, 1], [2, 2], [0.0, 50.0]) == 1
    assert tracker.ledger.counts()["covered"] == 1


def test_a_truth_never_issued_is_named_and_nothing_is_learnt() -> None:
    tracker = live("aci", ["north", "south"], 2)
    tracker.issue(7, standard(2, 2), issued=torch.tensor([[True, True], [True, False]]))
    state = json.dumps(tracker.state())
    for row, place in (
        (("south", 7, 2, 1.0), "series 'south', cutoff 7, step 2"),
        (("south", 8, 1, 1.0), "series 'south', cutoff 8, step 1"),
        (("west", 7, 1, 1.0), "series 'west', cutoff 7, step 1"),
        (("north", 7, 3, 1.0), "series 'north', cutoff 7, step 3"),
    ):
        with pytest.raises(ValueError, match=f"truth for {place}: no such interval was issued"):
            tracker.observe_rows(*([first, last] for first, last in zip(("north", 7, 1, 0.5), row, strict=True)))
        assert json.dumps(tracker.state()) == state
    with pytest.raises(ValueError, match="cutoff 9, step 1: no such interval"):
        tracker.observe(9, torch.zeros(2, 2), standard(2, 2))
    assert json.dumps(tracker.state()) == state


def test_forgetting_bounds_the_ledger_and_keeps_its_counts() -> None:
    tracker = live("aci", ["a", "b"], 2)
    for cutoff in range(10):
        tracker.issue(cutoff, standard(2, 2))
        if cutoff % 2:
            tracker.observe(cutoff, torch.zeros(2, 2))
    before = tracker.ledger.counts()
    assert tracker.ledger.forget(6) == 12
    assert list(tracker.ledger.issues) == [6, 7, 8, 9]
    assert tracker.ledger.counts() == before
    alpha = tracker.controller.alpha.clone()
    assert tracker.observe_rows(["a"], [2], [1], [0.0]) == 0  # too late: no evidence, and no error
    assert torch.equal(tracker.controller.alpha, alpha)
    with pytest.raises(ValueError, match="intervals of cutoff 3 were issued before"):
        tracker.issue(3, standard(2, 2))
    again = Ledger.from_state(json.loads(json.dumps(tracker.ledger.state(), allow_nan=False)))
    assert (again.counts(), again.forgotten_before) == (before, 6)


def test_bad_input_is_named() -> None:
    fold, target = standard(30, 2), normal(30, 2)
    start = LiveConformal.start
    with pytest.raises(ValueError, match="'agaci' is not an adaptive method; there are aci, pid"):
        start("agaci", "cqr", ["a"], fold, target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score 'cqr_asymmetric' has two radii a step"):
        start("aci", "cqr_asymmetric", ["a"], fold, target)
    with pytest.raises(ValueError, match="a series is named twice"):
        start("aci", "cqr", ["a", "a"], fold, target)
    with pytest.raises(ValueError, match="gamma is 0; it must be above 0"):
        start("aci", "cqr", ["a"], fold, target, gamma=0.0)
    with pytest.raises(ValueError, match="missing truth"):
        start("aci", "cqr", ["a"], fold, target * torch.nan)
    with pytest.raises(ValueError, match="the calibration scores of step 1 are all 1 or infinite"):
        start("pid", "scaled_residual", ["a"], fold, torch.full((30, 2), float(fold.variance[0, 0].sqrt())))
    with pytest.raises(ValueError, match="with n at least 1"):
        ACI.start(torch.zeros(0, 2), 1)
    tracker = start("aci", "cqr", ["a"], fold, target)
    tracker.issue(1, standard(1, 2))
    with pytest.raises(ValueError, match="intervals of cutoff 1 were issued before"):
        tracker.issue(1, standard(1, 2))
    with pytest.raises(ValueError, match="different types"):
        tracker.issue("2", standard(1, 2))
    with pytest.raises(ValueError, match="type float"):
        tracker.issue(1.5, standard(1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="series 'a', cutoff 2, step 1 has no value"):
        tracker.issue(2, Predictive(standard(1, 2).values * torch.nan))
    with pytest.raises(ValueError, match="lower has shape \\(3, 2\\)"):
        tracker.issue(3, standard(3, 2))
