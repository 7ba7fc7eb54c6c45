"""The panel as it is now, as a champion reads it: where its cutoffs since its own data lie, and which truths have come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.panel import Panel, Windows
from models.uncertainty.ledger import Cutoff
from tasks.bundle import MINIMUM_HISTORY, Bundle
from tasks.encoding import series_starts
from tasks.errors import UserError
from tasks.future import with_future_rows
from tasks.params import Params
from tasks.prepare import INGESTED
from tasks.reference import Reference, as_cutoff, observed_rows, row_steps
from tasks.time_axis import time_step


@dataclass(frozen=True)
class LivePanel:
    """An encoded panel with its time axis.

    ``first`` (n_series,) is each series' first step and ``newest`` the last step with a truth. ``cutoffs`` maps the times
    at which the champion would have forecast since its own data ended to their steps, in order. ``unknown`` says, where a
    covariate of the steps to come is missing, which; the newest cutoffs cannot be forecast from then.
    """

    panel: Panel
    ids: tuple[str, ...]
    ds: np.ndarray
    first: np.ndarray
    newest: int
    trained_until: int
    until: int
    cutoffs: dict[Cutoff, int]
    unknown: str | None

    @classmethod
    def read(cls, params: Params, root: Path, bundle: Bundle, reference: Reference) -> LivePanel:
        """Encode ``data/ingested`` as the bundle does.

        Raises UserError where there is no panel, its schema no longer fits the bundle, or it does not lie on the time grid
        of the bundle's own data.
        """
        path = root / INGESTED / "panel.parquet"
        if not path.exists():
            raise UserError(f"{INGESTED}/panel.parquet is not there; run `weatherglass ingest` first.")
        frame, unknown = pd.read_parquet(path), None
        if problem := bundle.misfit(frame, params):
            raise UserError(f"{problem}; `weatherglass run` trains a version that fits, to be promoted by hand.")
        try:
            frame = with_future_rows(frame, bundle.encoding)
        except UserError as error:
            unknown = str(error)
        panel = bundle.encoding.panel(frame)
        step = time_step(frame["ds"], bundle.encoding.frequency)
        starts, ds = series_starts(frame), frame["ds"].to_numpy()
        ids = tuple(str(name) for name in frame["unique_id"].to_numpy()[starts])
        seen = observed_rows(panel)
        newest = int(step[seen].max())
        place = {as_cutoff(time): int(where) for time, where in zip(*_axis(ds, step), strict=True)}
        ends = reference.trained_until, reference.until
        if place.get(ends[1]) is None and _before(ends[1], as_cutoff(ds[seen].max())):
            raise UserError(
                f"the data has no row at {ends[1]}, where that of {bundle.name} ended; it was rewritten on another time grid, "
                "so run `weatherglass retrain`."
            )
        until = place.get(ends[1], newest + 1)
        trained = place.get(ends[0], int(step.min()) - 1)
        times = {where: time for time, where in place.items()}
        cutoffs = {times[where]: where for where in range(until, newest + 1, reference.stride) if where in times}
        return cls(panel, ids, ds, step[starts], newest, trained, until, cutoffs, unknown)

    @property
    def horizon(self) -> int:
        return self.panel.schema.horizon

    @property
    def newest_time(self) -> Cutoff:
        """Time of the newest truth."""
        return as_cutoff(self.ds[self.steps() == self.newest].max())

    def steps(self) -> np.ndarray:
        """Step of each row, ``(n_rows,)``."""
        return row_steps(self.panel, self.first)

    def windows(self, step: int) -> Windows:
        """Windows of all series whose history reaches the cutoff at ``step`` and that have rows for the steps after it."""
        cutoff, able, room = self._able(step)
        series = (able & room).nonzero()[:, 0]
        return Windows(series, cutoff[series])

    def lacks_room(self, step: int) -> bool:
        """Whether a series whose history reaches the cutoff at ``step`` has no rows for the steps after it."""
        _, able, room = self._able(step)
        return bool((able & ~room).any())

    def _able(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each series (n_series,): rows up to the cutoff at ``step``, whether all have a target, and a horizon follows."""
        cutoff = torch.from_numpy(step - self.first + 1)
        able = (cutoff >= MINIMUM_HISTORY) & (cutoff <= self.panel.observed)
        return cutoff, able, cutoff + self.horizon <= self.panel.offsets.diff()

    def truths(self, names: tuple[str, ...], step: int, known: int) -> Tensor:
        """Truths of the steps after ``step`` that had come by step ``known``, float64 ``(len(names), H)``, NaN where none."""
        index = {name: row for row, name in enumerate(self.ids)}
        rows = torch.tensor([index.get(name, -1) for name in names])
        start = torch.from_numpy(step - self.first + 1)[rows]
        position = start[:, None] + torch.arange(self.horizon)
        last = torch.minimum(self.panel.observed[rows], torch.from_numpy(known - self.first + 1)[rows])
        have = (rows >= 0)[:, None] & (position >= 0) & (position < last[:, None])
        place = torch.where(have, position + self.panel.offsets[rows][:, None], 0)
        return torch.where(have, self.panel.rows[:, 0].to(torch.float64)[place], torch.nan)


def _axis(ds: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each time once, with its step."""
    times, first = np.unique(ds, return_index=True)
    return times, step[first]


def _before(time: Cutoff, other: Cutoff) -> bool:
    """Whether a time lies before another of the same kind."""
    return isinstance(time, str) == isinstance(other, str) and time < other  # type: ignore[operator]
