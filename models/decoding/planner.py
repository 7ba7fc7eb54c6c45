"""Whether to speculate, and how far: measured costs and acceptance, and what they predict.

A round that drafts k tokens costs k c + v of the target's steps, c the draft's step and v the pass that verifies k + 1 tokens,
each over the target's step. With a the probability that a drafted token is kept it brings (1 - a^(k+1)) / (1 - a) tokens
(Leviathan, Kalman and Matias, 2023, equation 1 and theorem 3.8). Where no k promises enough, ancestral sampling stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.decoding.path_model import PathModel
from models.decoding.speculative import Drawing, Rule, Tally, judge, next_token, propose, speculative_paths, start
from models.decoding.streaming import roll_back
from models.decoding.streams import CHOOSE, Streams
from models.decoding.truncation import AS_THEY_ARE, Truncation

__all__ = ["LEAST_GAIN", "LENGTHS", "Costs", "Plan", "choose_length", "make_plan", "predicted_gain", "tokens_of_a_round"]

LENGTHS = (1, 2, 3, 4, 6, 8)
"""Numbers of drafted tokens that a plan chooses from."""

LEAST_GAIN = 1.1
"""Predicted gain below which speculation stays off: less would be lost in what the prediction does not know."""

JUDGED, TRIALS = 200, 5
"""Drafted tokens that a plan wants to see judged, and the most trials that it makes for it."""


@dataclass(frozen=True)
class Costs:
    """Seconds of one step of the target and of the draft, and of a pass that verifies k + 1 tokens, by k; choosing included."""

    step: float
    draft: float
    verify: Mapping[int, float]


@dataclass(frozen=True)
class Plan:
    """What was measured and decided.

    Attributes
    ----------
    length : int
        Tokens that a round drafts; 0 where speculation is off.
    gain : float
        Predicted speed over ancestral sampling of the best length, also where that is too little.
    costs : Costs
    tally : Tally
        Of the trial that acceptance was measured on.
    """

    length: int
    gain: float
    costs: Costs
    tally: Tally

    def figures(self) -> dict[str, float]:
        """Flat figures for a log: length, cost ratio, verify cost, acceptance in all and by step, predicted gain."""
        best = self.length or max(self.costs.verify)
        by_step = {f"acceptance_step_{step + 1}": share for step, share in enumerate(self.tally.acceptance) if share == share}
        return {
            "length": float(self.length),
            "cost_ratio": self.costs.draft / self.costs.step,
            "verify_cost": self.costs.verify[best] / self.costs.step,
            "acceptance": self.tally.acceptance_rate,
            "predicted_gain": self.gain,
            **by_step,
        }


def tokens_of_a_round(acceptance: float, length: int) -> float:
    """Expected tokens of a round, (1 - a^(k+1)) / (1 - a)."""
    return sum(acceptance**kept for kept in range(length + 1))


def predicted_gain(acceptance: float, length: int, costs: Costs) -> float:
    """Speed of rounds of ``length`` over the target's single steps; after a round kept whole the draft reads one token more."""
    round_ = length * costs.draft + acceptance**length * costs.draft + costs.verify[length]
    return tokens_of_a_round(acceptance, length) * costs.step / round_


def choose_length(acceptance: float, costs: Costs, least: float = LEAST_GAIN) -> tuple[int, float]:
    """The length of the highest predicted gain, or 0 where that is below ``least``; and the gain."""
    gain, length = max((predicted_gain(acceptance, length, costs), length) for length in costs.verify)
    return (length if gain >= least else 0), gain


def measure_costs(
    target: PathModel,
    draft: PathModel,
    lengths: Sequence[int],
    streams: Streams,
    truncation: Truncation = AS_THEY_ARE,
    rule: Rule = "speculative",
    repeats: int = 7,
) -> Costs:
    """Time what rounds are made of, on the paths themselves: the lower quartile of ``repeats`` after one for warmth."""
    states, drafts = target.begin(), draft.begin()
    front, drawing = start(target, states[0].device), Drawing(streams, truncation, rule)

    def single(model: PathModel, state: tuple[torch.Tensor, ...]) -> Callable[[], object]:
        def run() -> object:
            return next_token(model, front, state, CHOOSE, drawing)

        return run

    def verified(length: int) -> Callable[[], object]:
        proposal = propose(draft, length, front, drafts, drawing)

        def run() -> object:
            verdict, trail = judge(target, proposal, length, front, states, drawing)
            return roll_back(trail, verdict.kept + 1)

        return run

    works = [single(target, states), single(draft, drafts), *(verified(length) for length in lengths)]
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):  # by turns, so that a busy moment of the machine falls on all alike
        for work, kept in zip(works, times, strict=True):
            begun = time.perf_counter()
            work()
            if target.begin()[0].is_cuda:
                torch.cuda.synchronize()
            if turn:
                kept.append(time.perf_counter() - begun)
    step, own, *verify = (sorted(kept)[len(kept) // 4] for kept in times)
    return Costs(step, own, dict(zip(lengths, verify, strict=True)))


@torch.no_grad()
def make_plan(
    target: PathModel,
    draft: PathModel,
    streams: Streams,
    truncation: Truncation = AS_THEY_ARE,
    rule: Rule = "speculative",
    lengths: Sequence[int] = LENGTHS,
    least: float = LEAST_GAIN,
) -> Plan:
    """Measure acceptance by trials over the horizon, and costs, on the paths that are to be sampled; choose a length.

    Where paths are few there are several trials, of other random numbers, so that ``JUDGED`` tokens are judged or nearly so.

    Lengths of the horizon and above are left out: a round never brings more than the horizon's tokens. Where a single step is
    to be sampled there is nothing to draft.
    """
    lengths = [length for length in lengths if length < target.horizon]
    if not lengths:
        return Plan(0, 1.0, Costs(1.0, 1.0, {1: 1.0}), Tally())
    costs = measure_costs(target, draft, lengths, streams, truncation, rule)
    tally = Tally()
    for trial in range(TRIALS):
        tally.merge(speculative_paths(target, draft, max(lengths), streams.others(trial), truncation, rule).tally)
        if sum(tally.tried) >= JUDGED:
            break
    return Plan(*choose_length(tally.acceptance_rate, costs, least), costs, tally)
