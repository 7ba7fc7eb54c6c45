"""From a validated long table to a panel of tensors, by statistics and vocabularies of the training fold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from models.calendar import Calendar
from models.panel import Panel, PanelSchema
from tasks.calendar import calendar_features, step_seconds
from tasks.params import Params
from tasks.settings import Settings
from tasks.time_axis import time_axis

if TYPE_CHECKING:
    from tasks.ingested import IngestedPanel


BLOCK = 2**20
"""Values whose mean and deviation are taken at a time."""


@dataclass(frozen=True)
class Encoding:
    """How columns become numbers; part of the bundle, so that new data is encoded as the training data was.

    ``moments`` maps each real covariate to its training mean and standard deviation; ``vocabularies`` maps each
    static categorical (the first is the series id) to its values, whose codes start at 1; 0 stands for unseen.
    """

    schema: PanelSchema
    frequency: str | int
    holidays: str | None
    calendar: bool
    known_future: tuple[str, ...]
    past_only: tuple[str, ...]
    static_reals: tuple[str, ...]
    moments: dict[str, tuple[float, float]]
    vocabularies: dict[str, list[str]]
    minimum: float | None

    @classmethod
    def fit(cls, frame: pd.DataFrame | IngestedPanel, params: Params, settings: Settings, train: np.ndarray) -> Encoding:
        """Fit on the rows of ``frame`` where ``train`` (bool ``(n_rows,)``) holds.

        An ingested panel is never held whole: it is asked for the training rows of a column at a time, and for the first row of
        each series, since a static column has one value a series.
        """
        data = params.data
        known, past = data.known_future, data.past_only
        static_reals = tuple(name for name in data.static if _is_number(frame, name))
        static = tuple(name for name in data.static if name not in static_reals)
        moments: dict[str, tuple[float, float]] = {}
        for name in (*known, *past, *static_reals):
            mean, deviation = mean_and_deviation(_chosen(frame, name, train))
            moments[name] = (mean, deviation if deviation > 1e-12 else 1.0)
        seen = frame[train] if isinstance(frame, pd.DataFrame) else frame.first[np.logical_or.reduceat(train, frame.starts)]
        vocabularies = {name: _values(seen[name]) for name in ("unique_id", *static)}
        reals, categories = _calendar_names(data.frequency, data.holidays) if settings.calendar else ((), ())
        schema = PanelSchema(
            known=(*known, *static_reals, *reals),
            past=past,
            static=tuple((name, len(values) + 1) for name, values in vocabularies.items()),
            categories=categories,
            lags=settings.lags,
            context=settings.context,
            horizon=settings.horizon,
            season_length=settings.season_length,
        )
        minimum = 0.0 if data.count else None
        return cls(
            schema, data.frequency, data.holidays, settings.calendar, known, past, static_reals, moments, vocabularies, minimum
        )

    def panel(self, frame: pd.DataFrame) -> Panel:
        """Encode a validated long table (sorted by ``unique_id``, ``ds``) whose future rows have an empty ``y``."""
        starts = series_starts(frame)
        offsets, first = np.append(starts, len(frame)).astype(np.int64), frame.iloc[starts]
        times, begin = time_axis(first["ds"], np.diff(offsets), self.frequency)
        rows = torch.from_numpy(self.values({name: frame[name].to_numpy() for name in self.row_columns}))
        observed = np.add.reduceat(frame["y"].notna().to_numpy().astype(np.int64), starts)
        calendar = Calendar(*self.time_features(times), torch.from_numpy(begin))
        static, ends, known = (torch.from_numpy(each) for each in (self.static_codes(first), offsets, observed))
        return Panel(self.schema, rows, calendar, static, ends, known)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns that `values` reads."""
        return ("y", *self.known_future, *self.static_reals, *self.past_only)

    def values(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """``Panel.rows`` of some rows, of which `row_columns` are given ``(n,)``; each row by itself."""
        rows = np.empty((len(columns["y"]), len(self.row_columns)), dtype=np.float32)
        rows[:, 0] = columns["y"]
        for position, name in enumerate(self.row_columns[1:], 1):
            column = self._standardised(columns, name)
            rows[:, position] = np.nan_to_num(column) if name in self.past_only else column
        return rows

    def time_features(self, times: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """``Calendar.reals`` and ``Calendar.codes`` of some times ``(n,)``; without columns where there is no calendar."""
        if not self.calendar:
            return torch.zeros(len(times), 0), torch.zeros(len(times), 0, dtype=torch.int64)
        features = calendar_features(pd.DatetimeIndex(times), step_seconds(self.frequency), self.holidays)
        codes = [values for values, _ in features.categories.values()]
        reals = np.stack(list(features.reals.values()), axis=1)
        return torch.from_numpy(reals), torch.from_numpy(np.stack(codes, axis=1))

    def static_codes(self, first: pd.DataFrame) -> np.ndarray:
        """``Panel.static`` of the series of which ``first`` has one row each."""
        return np.stack([self._codes(first, name) for name, _ in self.schema.static], axis=1)

    def _standardised(self, columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        mean, deviation = self.moments[name]
        column = np.asarray(columns[name], dtype=np.float64) - mean
        column /= deviation
        return column

    def _codes(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        lookup = {value: index + 1 for index, value in enumerate(self.vocabularies[name])}
        return frame[name].astype(str).map(lookup).fillna(0).to_numpy().astype(np.int64)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Encoding:
        schema = state["schema"]
        parts: dict[str, Any] = {key: tuple(schema[key]) for key in ("known", "past", "lags")}
        parts |= {key: tuple((name, int(count)) for name, count in schema[key]) for key in ("static", "categories")}
        parts |= {key: schema[key] for key in ("context", "horizon", "season_length")}
        tuples = {key: tuple(state[key]) for key in ("known_future", "past_only", "static_reals")}
        moments = {name: (mean, deviation) for name, (mean, deviation) in state["moments"].items()}
        return cls(**{**state, **tuples, "moments": moments, "schema": PanelSchema(**parts)})


PART = "part"
"""Column by which two series of one name are told apart, where a table has it."""


def _is_number(frame: pd.DataFrame | IngestedPanel, name: str) -> bool:
    return pd.api.types.is_numeric_dtype(frame[name]) if isinstance(frame, pd.DataFrame) else frame.is_number(name)


def _chosen(frame: pd.DataFrame | IngestedPanel, name: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """A column's values in ``rows`` (bool ``(n_rows,)``), float64, NaN where missing, in parts as they are read."""
    if isinstance(frame, pd.DataFrame):
        yield frame[name].to_numpy(np.float64)[rows]
    else:
        yield from frame.chosen(name, rows)


def mean_and_deviation(parts: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of values in parts ``(n,)``, missing ones left out, whatever the parts; 0 for none.

    Those of each `BLOCK` of values are joined in order (Chan, Golub and LeVeque, 1979), so that no column is held whole.
    """
    count, mean, variance = 0, 0.0, 0.0
    for block in _blocks(parts):
        own, its_variance, share = float(block.mean()), float(block.var()), len(block) / (count + len(block))
        if count:
            variance = (1 - share) * variance + share * its_variance + share * (1 - share) * (own - mean) ** 2
            mean += share * (own - mean)
        else:
            mean, variance = own, its_variance
        count += len(block)
    return mean, math.sqrt(variance)


def _blocks(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The values that are not missing, `BLOCK` at a time, but for the last."""
    block, filled = np.empty(BLOCK), 0
    for part in parts:
        known = part[~np.isnan(part)]
        while len(known):
            taken = known[: BLOCK - filled]
            block[filled : filled + len(taken)] = taken
            filled, known = filled + len(taken), known[len(taken) :]
            if filled == BLOCK:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def _values(column: pd.Series) -> list[str]:
    """Its distinct values as text, in order."""
    return sorted(set(pd.Series(column.unique()).astype(str)))


def series_starts(frame: pd.DataFrame | IngestedPanel) -> np.ndarray:
    """Row at which each series of a table sorted by ``unique_id`` (by `PART` first) begins, int64 ``(n_series,)``."""
    if not isinstance(frame, pd.DataFrame):
        return frame.starts
    ids = frame["unique_id"]
    starts = (ids != ids.shift()).to_numpy(bool, na_value=True)
    if PART in frame:
        starts = starts | (frame[PART] != frame[PART].shift()).to_numpy()
    return np.flatnonzero(starts)


def _calendar_names(frequency: str | int, holidays: str | None) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    features = calendar_features(pd.DatetimeIndex(["2001-01-01"]), step_seconds(frequency), holidays)
    return tuple(features.reals), tuple((name, count) for name, (_, count) in features.categories.items())
