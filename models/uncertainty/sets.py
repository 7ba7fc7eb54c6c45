"""Conformal prediction sets for categorical heads: LAC, APS and contiguous runs of ordered bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.uncertainty.conformal import conformal_quantile, conformal_rank
from models.uncertainty.conformal_scores import from_plain, to_plain

Kind = Literal["lac", "aps", "ordinal"]


def checked_probabilities(probabilities: Tensor) -> Tensor:
    """``probabilities`` ``(..., K)`` in float64 with rows that sum to 1.

    Raises
    ------
    ValueError
        If one is missing or negative or a row's sum is further than 1e-3 from 1, as those of logits are.
    """
    mass = probabilities.to(torch.float64)
    total = mass.sum(-1, keepdim=True)
    if not bool((mass >= 0).all()) or not bool(((total - 1).abs() <= 1e-3).all()):
        raise ValueError("probabilities must be at least 0 and sum to 1 over the classes; logits go through a softmax first")
    return mass / total


def mass_before_by_rank(mass: Tensor) -> Tensor:
    """Probability of all classes more likely than each, ``(..., K)``; equal ones in order of index."""
    order = mass.argsort(dim=-1, descending=True, stable=True)
    ranked = mass.gather(-1, order)
    before = torch.nn.functional.pad(ranked.cumsum(-1)[..., :-1], (1, 0))
    return torch.zeros_like(mass).scatter(-1, order, before)


def mass_before_by_run(mass: Tensor) -> Tensor:
    """Probability of the contiguous run about the mode just before it takes in each class, ``(..., K)``.

    The run grows by the likelier of its two neighbours, so runs are nested, and each is the shortest that holds its mass
    where the distribution has one mode (Lu et al., 2022).
    """
    classes = mass.shape[-1]
    flat = mass.reshape(-1, classes)
    walled = torch.nn.functional.pad(flat, (1, 1), value=-1.0)  # a wall is less likely than any class
    rows = torch.arange(len(flat), device=mass.device)
    first = flat.argmax(-1)
    last = first.clone()
    held = flat[rows, first]
    before = torch.zeros_like(flat)
    for _ in range(classes - 1):
        left, right = walled[rows, first], walled[rows, last + 2]
        goes_right = right > left
        taken = torch.where(goes_right, last + 1, first - 1)
        before[rows, taken] = held
        held = held + torch.where(goes_right, right, left)
        first, last = torch.where(goes_right, first, taken), torch.where(goes_right, taken, last)
    return before.reshape(mass.shape)


@dataclass(frozen=True)
class SetConformal:
    """Sets of classes that hold the truth with probability ``level``; ``threshold`` ``(...)`` by exact rank, infinite
    where n scores cannot promise the level (the set is then every class).

    ==========  ===========================================  =====================================================
    kind        score of class k                             the set
    ==========  ===========================================  =====================================================
    lac         ``1 - p_k`` (Sadinle et al., 2019)           smallest on average; **may be empty**
    aps         mass of likelier classes ``+ p_k``           adapts to the row; never empty
                (Romano et al., 2020), ``+ u p_k`` with u    randomised: exact coverage; **may be empty**
                uniform where ``randomised``
    ordinal     mass of the run about the mode just before   the shortest run that reaches the calibrated mass, never
                it takes in k (Lu et al., 2022),             empty; randomised: exact coverage, **may be empty**
                ``+ u p_k`` where ``randomised``
    ==========  ===========================================  =====================================================
    """

    kind: Kind
    level: float
    randomised: bool
    n: int
    threshold: Tensor

    @classmethod
    def fit(
        cls, kind: Kind, probabilities: Tensor, labels: Tensor, level: float, generator: torch.Generator | None = None
    ) -> SetConformal:
        """Fit on the conformal fold.

        Parameters
        ----------
        probabilities : Tensor
            (n, ..., K); each place of the middle axes, such as steps, has its own threshold.
        labels : Tensor
            Index of the true class, integer, (n, ...).
        generator : torch.Generator, optional
            Makes ``aps`` and ``ordinal`` randomised. Sets drawn later need draws of their own: go on with this one or
            give another seed.

        Raises
        ------
        ValueError
            If a probability or label is not valid, or ``kind`` does not exist or cannot be randomised.
        """
        if kind not in ("lac", "aps", "ordinal"):
            raise ValueError(f"'{kind}' is not a kind of set; there are lac, aps and ordinal")
        if kind == "lac" and generator is not None:
            raise ValueError("lac sets are not randomised; leave the generator out")
        classes = probabilities.shape[-1]
        if labels.is_floating_point() or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"labels must be integers from 0 to {classes - 1}, one for each row of probabilities")
        scores = _class_scores(kind, probabilities, generator)[0].gather(-1, labels.long()[..., None])[..., 0]
        return cls(kind, level, generator is not None, len(scores), conformal_quantile(scores, level))

    def sets(self, probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Which classes are in each row's set, bool ``(m, ..., K)``; a generator is needed where ``randomised``."""
        if self.randomised != (generator is not None):
            raise ValueError(f"these sets are {'' if self.randomised else 'not '}randomised: generator must say the same")
        scores, kept = _class_scores(self.kind, probabilities, generator)
        return kept | (scores <= self.threshold[..., None])

    def record(self) -> dict[str, Any]:
        """What the guarantee card says: n, rank, whether the sets leave classes out, and whether they may be empty."""
        finite = bool(self.threshold.isfinite().all())
        rank = conformal_rank(self.n, self.level)
        return {"n": self.n, "rank": rank, "finite": finite, "may_be_empty": self.kind == "lac" or self.randomised}

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        own = {"kind": self.kind, "level": self.level, "randomised": self.randomised, "n": self.n}
        return {**own, "threshold": to_plain(self.threshold)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SetConformal:
        return cls(state["kind"], state["level"], state["randomised"], state["n"], from_plain(state["threshold"]))


def _class_scores(kind: Kind, probabilities: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Score of every class, and whether it is in the set whatever its score, ``(n, ..., K)`` each.

    One uniform draw a row where a generator is given; without one the likeliest class is always kept.
    """
    mass = checked_probabilities(probabilities)
    if kind == "lac":
        return 1 - mass, torch.zeros_like(mass, dtype=torch.bool)
    before = mass_before_by_rank(mass) if kind == "aps" else mass_before_by_run(mass)
    if generator is None:  # a sure and right forecast scores 1 with its own mass and 0 without
        return (before + mass if kind == "aps" else before), before == 0
    share = torch.rand((*mass.shape[:-1], 1), dtype=torch.float64, generator=generator)
    return before + mass * share, torch.zeros_like(mass, dtype=torch.bool)


def set_summary(sets: Tensor) -> dict[str, float]:
    """Mean size of sets ``(..., K)``, and the share of them that is empty, one class alone, or every class."""
    size = sets.sum(-1).to(torch.float64)
    shares = {"empty": size == 0, "single": size == 1, "whole": size == sets.shape[-1]}
    return {"size": float(size.mean()), **{name: float(is_so.double().mean()) for name, is_so in shares.items()}}


def run_bounds(sets: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Interval ``(...)`` of values that a contiguous run of bins ``(..., K)`` covers.

    ``edges`` between bins are ``(K - 1,)``, or ``(..., K - 1)`` where each run has its own. The outer bins are open, so a
    run that reaches one has an infinite bound; an empty run has lower = inf, upper = -inf.
    """
    wall = torch.full((*edges.shape[:-1], 1), math.inf, dtype=torch.float64)
    walls = torch.cat([-wall, edges.to(torch.float64), wall], dim=-1).expand(*sets.shape[:-1], -1)
    first, last = run_ends(sets)
    lower, upper = (walls.gather(-1, place[..., None])[..., 0] for place in (first, last + 1))
    empty = ~sets.any(-1)
    return torch.where(empty, math.inf, lower), torch.where(empty, -math.inf, upper)


def run_ends(sets: Tensor) -> tuple[Tensor, Tensor]:
    """First and last bin ``(...)`` of contiguous runs ``(..., K)``, counted from 0; of an empty run, all of them."""
    return sets.int().argmax(-1), sets.shape[-1] - 1 - sets.flip(-1).int().argmax(-1)
