"""Sampling paths: ancestral, the oracle, and speculative, which has the same distribution in fewer calls of the target.

A round of speculative decoding: the draft proposes K tokens of each path, the target says in one pass how likely it holds
them (K + 1 steps), `models.decoding.rules` keeps the first few and adds one of the target's. Each path goes on from where
its own round ended, target and draft rolled back to there; a batch is never cut at its shortest path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.decoding.path_model import PathModel
from models.decoding.rules import Verdict, accept, accept_coupled, choose, choose_coupled
from models.decoding.streaming import Recorded, State, Trail, gather, roll_back
from models.decoding.streams import ACCEPT, CHOOSE, DRAFT, Streams
from models.decoding.truncation import AS_THEY_ARE, Truncation

__all__ = [
    "Decoded",
    "Drawing",
    "Front",
    "Proposal",
    "Rule",
    "Tally",
    "ancestral_paths",
    "judge",
    "next_token",
    "propose",
    "speculative_paths",
    "start",
]

Rule = Literal["speculative", "gumbel"]
"""Accept and correct, or the Gumbel coupling, whose output is the same for every draft."""


class Drawing(NamedTuple):
    """How tokens are drawn: from which random numbers, from what of the logits, and by which rule."""

    streams: Streams
    truncation: Truncation = AS_THEY_ARE
    rule: Rule = "speculative"


class Front(NamedTuple):
    """Where r of the R paths stand, all int64 ``(r,)``: which paths, the step each draws next, and its token before that."""

    rows: Tensor
    position: Tensor
    previous: Tensor


def start(model: PathModel, device: torch.device) -> Front:
    """All paths of a model before step 0."""
    rows = torch.arange(model.rows, device=device)
    return Front(rows, torch.zeros_like(rows), torch.full_like(rows, model.bins))


@dataclass
class Tally:
    """What a run of speculative decoding did.

    Attributes
    ----------
    calls : int
        Passes of the target.
    turns : int
        Paths that were in those passes, added up.
    tokens : int
        Tokens that came of them.
    tried, accepted : list of int
        By step of the draft: how often its token came to be judged, and how often it was kept.
    """

    calls: int = 0
    turns: int = 0
    tokens: int = 0
    tried: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def tokens_per_call(self) -> float:
        """Tokens of a path for each pass of the target that it was in."""
        return self.tokens / max(1, self.turns)

    @property
    def acceptance(self) -> list[float]:
        """Share of judged tokens that were kept, by step of the draft; nan where none was judged."""
        return [kept / tried if tried else float("nan") for kept, tried in zip(self.accepted, self.tried, strict=True)]

    @property
    def acceptance_rate(self) -> float:
        """Share of all judged tokens that were kept."""
        return sum(self.accepted) / max(1, sum(self.tried))

    def merge(self, other: Tally) -> None:
        """Add what another run did."""
        self.calls += other.calls
        self.turns += other.turns
        self.tokens += other.tokens
        for mine, theirs in ((self.tried, other.tried), (self.accepted, other.accepted)):
            mine += [0] * (len(theirs) - len(mine))
            for step, count in enumerate(theirs):
                mine[step] += count

    def add(self, kept: Tensor, limit: Tensor, drafted: int) -> None:
        """Count a round in which rows might keep ``limit`` (r,) of ``drafted`` tokens and kept ``kept`` (r,)."""
        going = limit >= 0
        turns = int(going.sum())
        step = torch.arange(drafted, device=kept.device)
        accepted = (kept[:, None] > step) & going[:, None]
        tried = (kept[:, None] >= step) & (limit[:, None] > step)
        counts = torch.stack([tried.sum(0), accepted.sum(0)]).tolist()
        tokens = turns + sum(counts[1])
        self.merge(Tally(1, turns, tokens, *counts))


@dataclass(frozen=True)
class Decoded:
    """``tokens`` int64 ``(R, H)`` and how they came about."""

    tokens: Tensor
    tally: Tally


@torch.no_grad()
def ancestral_paths(
    model: PathModel, streams: Streams, truncation: Truncation = AS_THEY_ARE, rule: Rule = "speculative"
) -> Tensor:
    """Tokens int64 ``(R, H)`` of all paths, one step of the model after another.

    With ``rule`` gumbel, the very tokens that `speculative_paths` gives by it.
    """
    state, drawn = model.begin(), []
    drawing, (rows, _, previous) = Drawing(streams, truncation, rule), start(model, state[0].device)
    for step in range(model.horizon):
        front = Front(rows, torch.full_like(rows, step), previous)
        previous, _, state = next_token(model, front, state, CHOOSE, drawing)
        drawn.append(previous)
    return torch.stack(drawn, dim=1)


@torch.no_grad()
def speculative_paths(
    target: PathModel,
    draft: PathModel,
    length: int,
    streams: Streams,
    truncation: Truncation = AS_THEY_ARE,
    rule: Rule = "speculative",
) -> Decoded:
    """Tokens int64 ``(R, H)`` distributed as `ancestral_paths` of the target, with ``length`` tokens drafted a round.

    Raises
    ------
    ValueError
        If ``length`` is below 1, or target and draft differ in rows, horizon or bins.
    """
    if length < 1:
        raise ValueError(f"a round of speculative decoding drafts at least 1 token, got {length}")
    sizes = [(model.rows, model.horizon, model.bins) for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"target and draft must agree in rows, horizon and bins, got {sizes[0]} and {sizes[1]}")
    drawing, resizable = Drawing(streams, truncation, rule), target.resizable and draft.resizable
    states, drafts, tally = target.begin(), draft.begin(), Tally()
    rows, position, previous = start(target, states[0].device)
    paths = rows.new_full((target.rows, target.horizon), -1)
    while len(rows):
        left, front = target.horizon - position, Front(rows, position, previous)
        proposal = propose(draft, min(length, int(left.max()) - 1), front, drafts, drawing)
        verdict, trail = judge(target, proposal, length, front, states, drawing)
        tally.add(verdict.kept, left - 1, proposal.drafted.shape[1])
        count = torch.minimum(verdict.kept + 1, left)
        _write(paths, verdict.tokens, rows, position, count)
        position = position + count
        going = position < target.horizon
        if not bool(going.any()):
            break
        states, drafts = roll_back(trail, count), _after(draft, proposal, position, count, rows)
        previous = torch.where(count > 0, verdict.tokens.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0], previous)
        if resizable and 2 * int(going.sum()) <= len(rows):
            index = going.nonzero()[:, 0]
            rows, position, previous = rows[index], position[index], previous[index]
            states, drafts = gather(states, index), gather(drafts, index)
    return Decoded(paths, tally)


@dataclass(frozen=True)
class Proposal:
    """``drafted`` (r, k), the distributions (r, k, V) they were drawn from, and the draft's states before each and after."""

    drafted: Tensor
    mass: Tensor
    states: list[State]


def next_token(model: PathModel, front: Front, state: State, purpose: int, drawing: Drawing) -> tuple[Tensor, Tensor, State]:
    """A token (r,) of each path, the probabilities (r, V) that it was drawn from, and the state after ``front.previous``.

    A model that can draw by itself does, in one compiled piece with its step. ``purpose`` is one of
    `models.decoding.streams`: whose random numbers are used.
    """
    (rows, position, previous), (streams, truncation, rule) = front, drawing
    draw = getattr(model, "draw", None)
    if draw is not None and rule == "speculative":
        token, mass, state = draw(previous, position, rows, state, streams.uniform(purpose, rows, position), truncation)
        return token, mass, state
    logits, state = model.step(previous, position, rows, state)
    mass = truncation.probabilities(logits)
    if rule == "gumbel":
        return choose_coupled(mass, streams.gumbel(mass.shape[-1], rows, position)), mass, state
    return choose(mass, streams.uniform(purpose, rows, position)), mass, state


def propose(draft: PathModel, length: int, front: Front, state: State, drawing: Drawing) -> Proposal:
    """Draft ``length`` tokens of each path, one after another; ``state`` is the draft's at the front."""
    rows, position, previous = front
    states, masses, drafted = [state], [], []
    for step in range(length):
        previous, mass, state = next_token(draft, Front(rows, position + step, previous), state, DRAFT, drawing)
        states.append(state)
        masses.append(mass)
        drafted.append(previous)
    if not drafted:
        nothing = drawing.streams.all(DRAFT).new_empty((len(rows), 0, draft.bins))
        return Proposal(previous.new_empty((len(rows), 0)), nothing, states)
    return Proposal(torch.stack(drafted, dim=1), torch.stack(masses, dim=1), states)


def judge(
    target: PathModel, proposal: Proposal, length: int, front: Front, state: State, drawing: Drawing
) -> tuple[Verdict, Trail]:
    """The verdict on a proposal, and the target's trail; a compiled target reads ``length`` + 1 tokens each time."""
    (rows, position, previous), (streams, truncation, rule) = front, drawing
    drafted, count = proposal.drafted, proposal.drafted.shape[1]
    read = torch.cat([previous[:, None], drafted], dim=1)
    if count < length and not target.resizable:
        read = torch.cat([read, read[:, -1:].expand(-1, length - count)], dim=1)
    logits, trail = target.verify(read, position, rows, state)
    mass = truncation.probabilities(logits[:, : count + 1])
    step = position[:, None] + torch.arange(count + 1, device=rows.device)
    limit = target.horizon - 1 - position
    if rule == "gumbel":
        return accept_coupled(mass, drafted, limit, streams.gumbel(target.bins, rows[:, None], step)), trail
    accepting = streams.uniform(ACCEPT, rows[:, None], step[:, :-1])
    return accept(mass, proposal.mass, drafted, limit, accepting, streams.uniform(CHOOSE, rows[:, None], step)), trail


def _write(paths: Tensor, tokens: Tensor, rows: Tensor, position: Tensor, count: Tensor) -> None:
    """Put the first ``count`` (r,) of ``tokens`` (r, T) at ``position`` (r,) of their paths."""
    if len(rows) == 1:
        first, kept = int(position), int(count)
        paths[rows, first : first + kept] = tokens[:, :kept]
        return
    step = torch.arange(tokens.shape[1], device=rows.device)
    place = (step < count[:, None]).nonzero(as_tuple=True)
    paths[rows[place[0]], position[place[0]] + place[1]] = tokens[place]


def _after(draft: PathModel, proposal: Proposal, position: Tensor, count: Tensor, rows: Tensor) -> State:
    """The draft's state after each row's first ``count`` inputs; where all were kept it has one more to read."""
    states, drafted = proposal.states, proposal.drafted
    most = int(count.max())
    if most == len(states):
        last = (position - count) + drafted.shape[1]
        states = [*states, draft.step(drafted[:, -1], last, rows, states[-1])[1]]
    if bool((count == most).all()):
        return states[most]
    return tuple(Recorded(torch.stack(parts, dim=1)).at(count) for parts in zip(*states, strict=True))
