"""The live intervals of a champion from one run of the monitor to the next: what was issued, and what became of it.

``<root>/.weatherglass/monitor/<model>-<version>`` holds ``state.json`` and one file a cutoff with the forecasts that were
issued at it. ``state.json`` is written last, and alone says what was issued: a run that is killed goes on from the cutoff
before, to the same end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.adaptive import LiveConformal, Method
from models.uncertainty.conformal_scores import Bounds
from models.uncertainty.ledger import NOT_ISSUED, OPEN, Cutoff
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.files import atomic_path, digest_of, read_json, write_text
from tasks.live_panel import LivePanel
from tasks.reference import LEVEL, Reference

MONITOR = Path(".weatherglass/monitor")
FORMAT = 1
PATIENCE = 4  # horizons for which an interval waits for a truth that is late


@dataclass(frozen=True)
class Issued:
    """What n series were told at a cutoff: calibrated quantiles (n, H, Q), whether the gate found them strange (n,), and
    the bounds of the live interval (n, H), NaN for a series that was not known in training."""

    cutoff: Cutoff
    series: tuple[str, ...]
    values: Tensor
    flagged: Tensor
    lower: Tensor
    upper: Tensor

    def write(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).contiguous() for name in ("values", "flagged", "lower", "upper")}
        about = json.dumps({"cutoff": self.cutoff, "series": self.series})  # one key: of several the order is left to chance
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"about": about})

    @classmethod
    def read(cls, path: Path) -> Issued:
        """Raises UserError where the file is not whole."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as stored:
                about = json.loads(stored.metadata()["about"])
                tensors = {name: stored.get_tensor(name) for name in ("values", "flagged", "lower", "upper")}
            return cls(about["cutoff"], tuple(about["series"]), **tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(_broken(path, error)) from None


@dataclass
class Tracker:
    """The state of one champion's live intervals, in ``folder``; ``identity`` says which champion and which method."""

    folder: Path
    identity: dict[str, Any]
    live: LiveConformal

    @classmethod
    def open(cls, root: Path, name: str, digest: str, bundle: Bundle, reference: Reference, method: Method) -> Tracker:
        """Read the state of the champion called ``name``, or start one from its conformal fold.

        It starts anew where the state is that of another bundle (``digest``) or another ``method``. Raises UserError where
        the file is corrupt, or the fold does not do for the method.
        """
        folder = root / MONITOR / name
        identity = {"format": FORMAT, "bundle": digest, "method": method}
        path = folder / "state.json"
        stored = _read(path) if path.exists() else None
        if stored is not None and stored["identity"] == identity:
            return cls(folder, identity, _restored(path, stored))
        try:
            live = LiveConformal.from_scores(
                method,
                bundle.calibration.step.name,
                reference.series,
                reference.scores,
                LEVEL / 100,
            )
        except ValueError as error:
            raise UserError(f"monitor.adaptive is {method}, which cannot start: {error}.") from None
        return cls(folder, identity, live)

    def save(self) -> None:
        """Write ``state.json``, atomically."""
        state = self.live.state()
        content = {"identity": self.identity, "digest": digest_of(state), "live": state}
        write_text(self.folder / "state.json", json.dumps(content, sort_keys=True, allow_nan=False) + "\n")

    def advance(self, panel: LivePanel, bundle: Bundle) -> list[str]:
        """Issue at each cutoff that is due, each after the truths known by then; returns what it could not do, in words.

        Settles what has come since, and forgets intervals whose truth is overdue by ``PATIENCE`` horizons.
        """
        notes = []
        known = panel.newest
        for cutoff, step in panel.cutoffs.items():
            if self.live.ledger.knows(cutoff):
                continue
            if panel.unknown is not None and panel.lacks_room(step):
                notes.append(f"nothing could be forecast at {cutoff}: {panel.unknown}")
                known = step
                break
            self._settle(panel, step)
            self._issue(panel, bundle, cutoff, step)
            self._forget(panel, step)
            self.save()
        if self._settle(panel, known):
            self._forget(panel, known)
            self.save()
        return notes

    def issued(self, cutoff: Cutoff) -> Issued | None:
        """What was issued at ``cutoff``; None where nothing was or it is no longer kept."""
        path = self._path(cutoff)
        return Issued.read(path) if self.live.ledger.knows(cutoff) and path.exists() else None

    def interval(self, predictive: Predictive, names: Sequence[str]) -> Bounds:
        """Live bounds ``(n, H)`` around forecasts of n series as of now; NaN for a series that was not known in training."""
        rows, known = self._rows(names)
        return _gathered(self.live.interval(self._spread(rows, known, predictive.values)[0]), rows, known)

    def prune(self, kept: set[Cutoff]) -> None:
        """Delete the forecasts of cutoffs that are neither in ``kept`` nor waiting for a truth."""
        names = {self._path(cutoff).name for cutoff in {*kept, *self.live.ledger.issues}}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in names:
                path.unlink()

    def _path(self, cutoff: Cutoff) -> Path:
        return self.folder / f"{str(cutoff).replace(':', '')}.safetensors"

    def _issue(self, panel: LivePanel, bundle: Bundle, cutoff: Cutoff, step: int) -> None:
        windows = panel.windows(step)
        names = tuple(panel.ids[index] for index in windows.series.tolist())
        seen = bundle.examine(panel.panel, windows) if len(windows) else None
        values = torch.empty(0, panel.horizon, len(LEVELS)) if seen is None else seen.predictive.values
        flagged = torch.empty(0, dtype=torch.bool) if seen is None else seen.is_ood
        rows, known = self._rows(names)
        bounds = self.live.issue(cutoff, *self._spread(rows, known, values))
        Issued(cutoff, names, values, flagged, *_gathered(bounds, rows, known)).write(self._path(cutoff))

    def _settle(self, panel: LivePanel, known: int) -> bool:
        """Learn from the truths known by step ``known``; whether any counted."""
        ledger, learnt = self.live.ledger, False
        for cutoff, issue in ledger.issues.items():
            still_open = issue.outcome == OPEN
            truth = panel.truths(ledger.series, panel.cutoffs[cutoff], known) if cutoff in panel.cutoffs else None
            if truth is None or not bool((still_open & ~truth.isnan()).any()):
                continue
            told = self.issued(cutoff)
            predictive = None if told is None else self._spread(*self._rows(told.series), told.values)[0]
            self.live.observe(cutoff, torch.where(issue.outcome == NOT_ISSUED, torch.nan, truth), predictive)
            learnt = True
        return learnt

    def _forget(self, panel: LivePanel, known: int) -> None:
        issues = self.live.ledger.issues
        oldest = known - (1 + PATIENCE) * panel.horizon
        kept = [cutoff for cutoff in issues if panel.cutoffs.get(cutoff, oldest - 1) >= oldest]
        if kept and len(kept) < len(issues):
            self.live.ledger.forget(min(kept))  # type: ignore[type-var]

    def _rows(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Rows in the ledger of those of ``names`` (n) that it knows, ``(k,)``, and which these are, bool ``(n,)``."""
        index = {name: row for row, name in enumerate(self.live.ledger.series)}
        rows = [index.get(name, -1) for name in names]
        known = torch.tensor([row >= 0 for row in rows], dtype=torch.bool)
        return torch.tensor([row for row in rows if row >= 0], dtype=torch.long), known

    def _spread(self, rows: Tensor, known: Tensor, values: Tensor) -> tuple[Predictive, Tensor]:
        """Quantiles ``(n, H, Q)`` in the ledger's rows ``(S, H, Q)``, zero where there are none, and where there are (S, H)."""
        series, horizon = self.live.ledger.shape
        spread = torch.zeros(series, horizon, values.shape[-1], dtype=torch.float64)
        spread[rows] = values[known].to(torch.float64)
        there = torch.zeros(series, horizon, dtype=torch.bool)
        there[rows] = True
        return Predictive(spread), there


def _gathered(bounds: Bounds, rows: Tensor, known: Tensor) -> Bounds:
    """The ledger's ``rows`` (k,) of bounds (S, H) for the n series of which k are ``known``, NaN for the others."""
    lower, upper = (torch.full((len(known), bound.shape[1]), torch.nan, dtype=torch.float64) for bound in bounds)
    lower[known], upper[known] = (bound[rows] for bound in bounds)
    return lower, upper


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = dict(read_json(path))
        if digest_of(stored["live"]) != stored["digest"]:
            raise ValueError("its digest is another one")
        return {"identity": stored["identity"], "live": stored["live"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(_broken(path, error)) from None


def _restored(path: Path, stored: dict[str, Any]) -> LiveConformal:
    try:
        return LiveConformal.from_state(stored["live"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_broken(path, error)) from None


def _broken(path: Path, error: Exception) -> str:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"the monitor's file {path} is not what was written ({why}); delete the folder {path.parent.name} around it, and live "
        "intervals start anew from the champion's conformal fold."
    )
