"""The planner: what it predicts is the formula, it chooses the best length and stays off where that gains too little."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from models.decoding import planner
from models.decoding.planner import Costs, choose_length, make_plan, measure_costs, predicted_gain, tokens_of_a_round
from models.decoding.speculative import Tally
from models.decoding.streams import Streams
from tests.models.decoding.path_models import HORIZON, Tabular


def costs(ratio: float, verify: float) -> Costs:
    return Costs(2.0, 2.0 * ratio, dict.fromkeys((1, 2, 4, 8), 2.0 * verify))


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
def test_tokens_of_a_round_are_the_geometric_sum(acceptance: float) -> None:
    for length in (1, 4):
        closed = length + 1 if acceptance == 1.0 else (1 - acceptance ** (length + 1)) / (1 - acceptance)
        assert tokens_of_a_round(acceptance, length) == pytest.approx(closed)
        round_ = (length + acceptance**length) * 0.1 + 1.5
        assert predicted_gain(acceptance, length, costs(0.1, 1.5)) == pytest.approx(closed / round_)


@pytest.mark.parametrize(
    ("acceptance", "ratio", "verify", "length"),
    [
        (0.95, 0.05, 1.2, 8),  # a cheap draft that is right: far ahead
        (0.5, 0.1, 1.2, 2),
        (0.3, 0.1, 1.2, 0),  # a draft that is wrong
        (0.9, 1.0, 1.2, 0),  # one that costs as much as the target
        (0.8, 0.1, 5.0, 0),  # a target that gains nothing by reading tokens together
    ],
)
def test_the_length_suits_what_was_measured(acceptance: float, ratio: float, verify: float, length: int) -> None:
    chosen, gain = choose_length(acceptance, costs(ratio, verify))
    assert chosen == length
    assert (gain >= planner.LEAST_GAIN) == (length > 0)


class Slow(Tabular):
    """A table that takes its time: `seconds` a step or a verified piece."""

    def __init__(self, seed: int, rows: int, seconds: float) -> None:
        super().__init__(seed, rows)
        self.seconds = seconds

    def step(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        return super().step(*arguments)

    def verify(self, *arguments: Any) -> Any:
        seconds, self.seconds = self.seconds, 0.0
        time.sleep(seconds)
        result = super().verify(*arguments)
        self.seconds = seconds
        return result


def streams(rows: int) -> Streams:
    return Streams(0, torch.arange(rows), HORIZON)


def test_costs_are_those_of_the_models() -> None:
    found = measure_costs(Slow(1, 4, 0.03), Slow(2, 4, 0.003), (1, 3), streams(4), repeats=3)
    assert 0.03 < found.step < 0.06
    assert 0.003 < found.draft < 0.02
    assert found.verify.keys() == {1, 3} and all(0.03 < seconds < 0.08 for seconds in found.verify.values())


def test_a_plan_speculates_where_it_pays_and_not_where_it_does_not() -> None:
    paid = make_plan(Slow(1, 4, 0.03), Slow(1, 4, 0.0), streams(4))  # the draft is the target's equal, and free
    assert paid.length == 3 and paid.gain > 1.5
    assert paid.tally.acceptance_rate == 1.0
    figures = paid.figures()
    assert figures["length"] == 3 and figures["acceptance_step_1"] == 1.0 and figures["cost_ratio"] < 0.5
    unpaid = make_plan(Slow(1, 4, 0.002), Slow(1, 4, 0.03), streams(4))
    assert unpaid.length == 0 and unpaid.gain < 1.1 and unpaid.figures()["length"] == 0


def test_a_single_step_leaves_nothing_to_draft() -> None:
    target, draft = Tabular(1, 2), Tabular(2, 2)
    target.horizon = draft.horizon = 1
    plan = make_plan(target, draft, Streams(0, torch.arange(2), 1))
    assert (plan.length, plan.gain) == (0, 1.0)


def test_tallies_add_up() -> None:
    total = Tally(1, 2, 5, [2], [1])
    total.merge(Tally(2, 3, 7, [3, 1], [2, 1]))
    assert total == Tally(3, 5, 12, [5, 1], [3, 1])
