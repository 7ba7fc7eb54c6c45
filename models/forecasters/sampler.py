"""How an autoregressive forecaster on bins draws its paths: ancestral, speculative or Gumbel-coupled, planned and counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from models.decoding.planner import LEAST_GAIN, Plan, choose_length, make_plan
from models.decoding.speculative import Rule, Tally, ancestral_paths, speculative_paths
from models.decoding.streams import Streams
from models.decoding.truncation import AS_THEY_ARE, Truncation
from models.forecasters.autoregressive import ROWS_AT_A_TIME, Autoregressive
from models.forecasters.base import unscale
from models.forecasters.binned_paths import BinnedPaths, Stepper, can_compile, values_in_bins
from models.forecasters.drafts import check_draft
from models.panel import Batch

__all__ = ["SAMPLERS", "PathSampler", "SamplerName"]

SamplerName = Literal["ancestral", "speculative", "gumbel"]
SAMPLERS: tuple[SamplerName, ...] = ("ancestral", "speculative", "gumbel")


@dataclass
class Record:
    """What a sampler has done with so many paths at a time: seconds of its runs, their tally, and the plan, if it has one.

    ``own`` says that the forecaster's own `sample_paths` draws them, which is ancestral and was found the quickest.
    """

    plan: Plan | None
    own: bool = False
    seconds: float = 0.0
    steps: int = 0
    tally: Tally = field(default_factory=Tally)

    def count(self, begun: float, steps: int) -> None:
        """Count a run of ``steps`` steps that began at ``begun``, by `time.perf_counter`."""
        self.seconds += time.perf_counter() - begun
        self.steps += steps

    def figures(self) -> dict[str, float]:
        """The plan's figures, tokens per call of the target, and the gain that was measured over the plan's own step."""
        if self.plan is None:
            return {}
        found = self.plan.figures()
        if self.tally.turns:
            found["tokens_per_call"] = self.tally.tokens_per_call
        if self.steps:
            found["measured_gain"] = self.plan.costs.step * self.steps / self.seconds
        return found


class PathSampler:
    """Draws the paths of one forecaster.

    Path ``i`` of every window has the same random numbers, so a window's paths do not depend on the windows beside it. With
    `gumbel` they are the same for every draft and none. With `speculative` they are equal in distribution; which they are
    depends on how many tokens a round drafts, hence on the plan and what it measured.

    Parameters
    ----------
    target : Autoregressive
        With a categorical head.
    name : {"ancestral", "speculative", "gumbel"}
    draft : Autoregressive, optional
        Without one all tokens are the target's own, one step after another.
    truncation : Truncation
    compiled : bool
        Compile steps where `torch.compile` works: for many calls with the same number of paths.
    **plans
        ``lengths`` and ``least`` of `models.decoding.planner.make_plan`, which is asked once for each number of paths.

    Raises
    ------
    ValueError
        If the head is not categorical, the name does not exist, or a token does not mean the same to target and draft.
    """

    def __init__(
        self,
        target: Autoregressive,
        name: SamplerName,
        draft: Autoregressive | None = None,
        truncation: Truncation = AS_THEY_ARE,
        compiled: bool = False,
        **plans: Any,
    ) -> None:
        if name not in SAMPLERS:
            raise ValueError(f"'{name}' is not a sampler; there are {', '.join(SAMPLERS)}")
        self.name, self.rule, self.truncation = name, _rule(name), truncation
        self.plans = plans
        self.asked, compiled = compiled, compiled and can_compile()
        self.target, self.draft, self.compiled = Stepper(target, compiled), None, compiled
        if draft is not None and name != "ancestral":
            check_draft(target, draft)
            self.draft = Stepper(draft, compiled)
        self.batch_invariant = name != "speculative" or self.draft is None
        self.records: dict[int, Record] = {}

    @torch.no_grad()
    def paths(self, batch: Batch, copies: int, seed: int) -> tuple[Tensor, Tensor]:
        """Joint sample paths ``(B, copies, H)`` in the target's units, and features ``(B, width)`` at the last known step."""
        lengths, size = batch["encoder_lengths"], max(1, ROWS_AT_A_TIME // copies)
        forecaster, drawn, features = self.target.forecaster, [], []
        for number, start in enumerate(range(0, len(lengths), size)):
            part = {name: values[start : start + size] for name, values in batch.items()}
            count = len(part["encoder_lengths"])
            record = self.records.get(count * copies)
            if record is not None and record.own:
                begun = time.perf_counter()
                paths, seen = forecaster.sample_paths(part, copies, _generator(seed + number, lengths))
                record.count(begun, paths.shape[2])
            else:
                keys = torch.arange(copies, device=lengths.device).repeat(count)
                streams = Streams(seed, keys, part["decoder_cont"].shape[1])
                values = values_in_bins(forecaster, part, copies, streams)
                target = BinnedPaths(self.target, part, copies, values)
                paths = unscale(target.paths(self.tokens(target, part, copies, values, streams)), part)
                seen = target.features
            drawn.append(paths)
            features.append(seen)
        return torch.cat(drawn), torch.cat(features)

    def tokens(self, target: BinnedPaths, batch: Batch, copies: int, values: Tensor, streams: Streams) -> Tensor:
        """Tokens ``(R, H)`` of the paths of ``target``, planned at the first call for so many."""
        record = self.records.get(target.rows)
        if record is None:
            record = self.records[target.rows] = self._planned(target, batch, copies, values, streams)
        begun = time.perf_counter()
        if self.draft is None or record.plan is None or record.plan.length == 0:
            tokens = ancestral_paths(target, streams, self.truncation, self.rule)
        else:
            draft = BinnedPaths(self.draft, batch, copies, values)
            decoded = speculative_paths(target, draft, record.plan.length, streams, self.truncation, self.rule)
            tokens = decoded.tokens
            record.tally.merge(decoded.tally)
        record.count(begun, target.horizon)
        return tokens

    def _planned(self, target: BinnedPaths, batch: Batch, copies: int, values: Tensor, streams: Streams) -> Record:
        """A record with its plan; where the forecaster's own sampler is quicker than its steps, the plan is against that."""
        if self.draft is None:
            return Record(None)
        draft = BinnedPaths(self.draft, batch, copies, values)
        plan = make_plan(target, draft, streams, self.truncation, self.rule, **self.plans)
        forecaster = self.target.forecaster
        steps_alone = type(forecaster)._advancing is Autoregressive._advancing
        if steps_alone or self.rule == "gumbel" or self.truncation != AS_THEY_ARE:
            return Record(plan)
        times = []
        for turn in range(3):
            begun = time.perf_counter()
            forecaster.sample_paths(batch, copies, _generator(turn, streams.keys))
            times.append((time.perf_counter() - begun) / target.horizon)
        if min(times) >= plan.costs.step:
            return Record(plan)
        costs = replace(plan.costs, step=min(times))
        least = self.plans.get("least", LEAST_GAIN)
        length, gain = choose_length(plan.tally.acceptance_rate, costs, least)
        return Record(replace(plan, length=length, gain=gain, costs=costs), own=length == 0)


def _generator(seed: int, like: Tensor) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(seed % 2**63)


def _rule(name: SamplerName) -> Rule:
    return "gumbel" if name == "gumbel" else "speculative"
