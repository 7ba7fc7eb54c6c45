"""How an autoregressive forecaster on bins draws its paths: ancestral, speculative or Gumbel-coupled, planned and counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from models.decoding.planner import Plan, make_plan
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
    """What a sampler has done with so many paths at a time: seconds of its runs, their tally, and the plan, if it has one."""

    plan: Plan | None
    seconds: float = 0.0
    steps: int = 0
    tally: Tally = field(default_factory=Tally)

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
        compiled = compiled and can_compile()
        self.target, self.draft, self.compiled = Stepper(target, compiled), None, compiled
        if draft is not None and name != "ancestral":
            check_draft(target, draft)
            self.draft = Stepper(draft, compiled)
        self.batch_invariant = name != "speculative" or self.draft is None
        self.records: dict[int, Record] = {}

    @torch.no_grad()
    def paths(self, batch: Batch, copies: int, seed: int) -> tuple[Tensor, Tensor]:
        """Joint sample paths ``(B, copies, H)`` in the target's units, and features ``(B, width)`` at the last known step."""
        windows = torch.arange(len(batch["encoder_lengths"]), device=batch["encoder_lengths"].device)
        drawn, features = [], []
        for piece in windows.split(max(1, ROWS_AT_A_TIME // copies)):
            part = {name: values[piece] for name, values in batch.items()}
            streams = Streams(
                seed, torch.arange(copies, device=windows.device).repeat(len(piece)), part["decoder_cont"].shape[1]
            )
            values = values_in_bins(self.target.forecaster, part, copies, streams)
            target = BinnedPaths(self.target, part, copies, values)
            tokens = self._tokens(target, part, copies, values, streams)
            drawn.append(unscale(target.paths(tokens), part))
            features.append(target.features)
        return torch.cat(drawn), torch.cat(features)

    def _tokens(self, target: BinnedPaths, batch: Batch, copies: int, values: Tensor, streams: Streams) -> Tensor:
        draft = None if self.draft is None else BinnedPaths(self.draft, batch, copies, values)
        record = self.records.get(target.rows)
        if record is None:
            plan = None
            if draft is not None:
                plan = make_plan(target, draft, streams, self.truncation, self.rule, **self.plans)
            record = self.records[target.rows] = Record(plan)
        begun = time.perf_counter()
        if draft is None or record.plan is None or record.plan.length == 0:
            tokens = ancestral_paths(target, streams, self.truncation, self.rule)
        else:
            decoded = speculative_paths(target, draft, record.plan.length, streams, self.truncation, self.rule)
            tokens = decoded.tokens
            record.tally.merge(decoded.tally)
        record.seconds += time.perf_counter() - begun
        record.steps += target.horizon
        return tokens


def _rule(name: SamplerName) -> Rule:
    return "gumbel" if name == "gumbel" else "speculative"
