"""The record of intervals that were issued to a live series, against which late truths are held."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.uncertainty.conformal_scores import from_plain, to_plain

Cutoff = int | str
NOT_ISSUED, OPEN, COVERED, MISSED = -1, 0, 1, 2


@dataclass
class Issue:
    """What was issued at one cutoff, ``(S, H)`` each: bounds, the miss rate ``alpha`` used, and the outcome so far."""

    alpha: Tensor
    lower: Tensor
    upper: Tensor
    outcome: Tensor

    def counts(self) -> dict[str, int]:
        issued = self.outcome != NOT_ISSUED
        empty = issued & (self.lower > self.upper)
        infinite = issued & ~empty & (self.lower.isinf() | self.upper.isinf())
        covered, missed, still_open = self.outcome == COVERED, self.outcome == MISSED, self.outcome == OPEN
        found = {
            "issued": issued,
            "covered": covered,
            "missed": missed,
            "open": still_open,
            "infinite": infinite,
            "empty": empty,
            "covered_infinite": covered & infinite,
        }
        return {name: int(which.sum()) for name, which in found.items()}


@dataclass
class Ledger:
    """Intervals issued for ``series`` (S) and steps 1 to ``horizon`` (H) after each cutoff, and what became of them.

    A cutoff is an integer or a string that sorts by time, such as an ISO date. Truth may come late, in any order, twice
    or never; each interval is settled at most once, by its first truth, with the bounds that were issued.
    """

    series: tuple[str, ...]
    horizon: int
    issues: dict[Cutoff, Issue] = field(default_factory=dict)
    forgotten_before: Cutoff | None = None
    forgotten: dict[str, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.series), self.horizon

    def issue(self, cutoff: Cutoff, alpha: Tensor, lower: Tensor, upper: Tensor, issued: Tensor | None = None) -> None:
        """Record bounds and miss rates ``(S, H)``; ``issued`` (S, H) bool, all by default, says which users received.

        Raises
        ------
        ValueError
            If the cutoff was issued or forgotten before or is of another type than the others, a shape is not (S, H), or a
            bound that was issued is missing.
        """
        if isinstance(cutoff, bool) or not isinstance(cutoff, (int, str)):
            raise ValueError(f"cutoff {cutoff!r} is of type {type(cutoff).__name__}; it must be an integer or a string")
        if self.issues and type(cutoff) is not type(next(iter(self.issues))):
            raise ValueError(f"cutoff {cutoff!r} and those before are of different types; all must sort by time")
        if self.knows(cutoff):
            raise ValueError(f"intervals of cutoff {cutoff} were issued before; an issued interval does not change")
        issued = torch.ones(self.shape, dtype=torch.bool) if issued is None else issued
        for name, values in (("alpha", alpha), ("lower", lower), ("upper", upper), ("issued", issued)):
            if tuple(values.shape) != self.shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; {self.shape} is (series, steps)")
        missing = issued & (lower.isnan() | upper.isnan() | alpha.isnan())
        if missing.any():
            raise ValueError(f"the interval of {self._where(cutoff, missing)} has no value; leave it out of issued")
        outcome = torch.where(issued, OPEN, NOT_ISSUED).to(torch.int8)
        alpha, lower, upper = (each.to(torch.float64).clone() for each in (alpha, lower, upper))
        self.issues[cutoff] = Issue(alpha, lower, upper, outcome)

    def knows(self, cutoff: Cutoff) -> bool:
        """Whether intervals of ``cutoff`` were issued, forgotten ones included."""
        return cutoff in self.issues or self._is_forgotten(cutoff)

    def check(self, cutoff: Cutoff, truth: Tensor) -> None:
        """``ValueError`` that names the first truth of ``truth`` ``(S, H)`` whose interval was never issued."""
        if tuple(truth.shape) != self.shape:
            raise ValueError(f"truth has shape {tuple(truth.shape)}; {self.shape} is (series, steps)")
        if self._is_forgotten(cutoff):
            return
        known = ~truth.isnan()
        stray = known if cutoff not in self.issues else known & (self.issues[cutoff].outcome == NOT_ISSUED)
        if stray.any():
            raise ValueError(f"truth for {self._where(cutoff, stray)}: no such interval was issued")

    def settle(self, cutoff: Cutoff, truth: Tensor) -> Tensor:
        """Whether the truths ``(S, H)`` missed the intervals issued at ``cutoff``: 1 or 0 ``(S, H)``, NaN for no evidence.

        NaN in ``truth`` is no evidence and leaves its interval open; a truth for a settled or a forgotten interval
        changes nothing. Raises as :meth:`check` does, and then changes nothing either.
        """
        self.check(cutoff, truth)
        miss = torch.full(self.shape, torch.nan, dtype=torch.float64)
        issue = self.issues.get(cutoff)
        if issue is None:
            return miss
        fresh = ~truth.isnan() & (issue.outcome == OPEN)
        outside = (truth < issue.lower) | (truth > issue.upper)
        issue.outcome = torch.where(fresh, torch.where(outside, MISSED, COVERED).to(torch.int8), issue.outcome)
        return torch.where(fresh, outside.to(torch.float64), miss)

    def forget(self, before: Cutoff) -> int:
        """Drop issues of cutoffs earlier than ``before``, to bound the ledger's size; how many intervals were open.

        Their counts are kept. Truth that still comes for them is ignored.
        """
        still_open = 0
        for cutoff in [each for each in self.issues if each < before]:  # type: ignore[operator]
            found = self.issues.pop(cutoff).counts()
            still_open += found["open"]
            self.forgotten = {name: self.forgotten.get(name, 0) + count for name, count in found.items()}
        if self.forgotten_before is None or self.forgotten_before < before:  # type: ignore[operator]
            self.forgotten_before = before
        return still_open

    def counts(self) -> dict[str, int]:
        """Numbers of intervals issued, covered, missed, open (no truth yet), infinite, empty, and infinite and covered."""
        total = dict.fromkeys(("issued", "covered", "missed", "open", "infinite", "empty", "covered_infinite"), 0) | dict(
            self.forgotten
        )
        for issue in self.issues.values():
            for name, count in issue.counts().items():
                total[name] += count
        return total

    def state(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON; :meth:`from_state` restores it bit by bit."""
        issues = [
            {
                "cutoff": cutoff,
                **{name: to_plain(getattr(issue, name)) for name in ("alpha", "lower", "upper")},
                "outcome": issue.outcome.tolist(),
            }
            for cutoff, issue in self.issues.items()
        ]
        own = {"series": list(self.series), "horizon": self.horizon, "issues": issues}
        return {**own, "forgotten_before": self.forgotten_before, "forgotten": dict(self.forgotten)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Ledger:
        issues: dict[Cutoff, Issue] = {
            each["cutoff"]: Issue(
                alpha=from_plain(each["alpha"]),
                lower=from_plain(each["lower"]),
                upper=from_plain(each["upper"]),
                outcome=torch.tensor(each["outcome"], dtype=torch.int8),
            )
            for each in state["issues"]
        }
        forgotten = dict(state["forgotten"])
        return cls(tuple(state["series"]), int(state["horizon"]), issues, state["forgotten_before"], forgotten)

    def _is_forgotten(self, cutoff: Cutoff) -> bool:
        before = self.forgotten_before
        return isinstance(cutoff, str) == isinstance(before, str) and before is not None and cutoff < before  # type: ignore

    def _where(self, cutoff: Cutoff, which: Tensor) -> str:
        row, step = which.nonzero()[0].tolist()
        return f"series '{self.series[row]}', cutoff {cutoff}, step {step + 1}"
