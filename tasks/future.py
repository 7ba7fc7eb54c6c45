"""Rows for the steps to forecast: dates, and what is known of them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd

from tasks.encoding import Encoding
from tasks.errors import UserError


class NothingYet(UserError):
    """No series has a target up to a cutoff; the data ``begins`` later."""

    def __init__(self, cutoff: Any, begins: Any) -> None:
        super().__init__(f"no series has a value up to {cutoff}; the data begins at {begins}.")
        self.begins = begins


def with_future_rows(frame: pd.DataFrame, encoding: Encoding, cutoff: Any = None, newest: int | None = None) -> pd.DataFrame:
    """Give every series exactly ``horizon`` rows with an empty target after its last one.

    Rows that the data holds are kept with their known-future values; others are made from the frequency. With
    ``cutoff`` (a date, or an integer for integer time) targets after it are ignored, as if it were today; a series
    that starts later is left out. Of each series' history the ``newest`` rows are kept, all where None.

    Raises UserError where a known-future value is missing for a step, NothingYet where no series has a target up to ``cutoff``.
    """
    if cutoff is not None:
        limit = parse_cutoff(cutoff, frame)
        later = frame["ds"] > limit
        frame = frame.copy()
        frame.loc[later, ["y", *encoding.past_only]] = np.nan
    place = _places(frame["unique_id"])
    if (np.diff(place) < 0).any():
        order = np.argsort(place, kind="stable")
        frame, place = frame.iloc[order], place[order]
    history, planned = _divided(frame, place)
    if not len(history):
        raise NothingYet(cutoff, frame["ds"].min())
    last = np.flatnonzero(np.append(np.diff(place[history]) != 0, True))  # of each series, in its history
    ends = history[last]
    made = _future(frame.iloc[ends], frame.iloc[planned][["unique_id", "ds", *encoding.known_future]], encoding)
    if newest is not None:
        history = history[np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(history)) < newest]
    whole = pd.concat([frame.iloc[history], made.reindex(columns=frame.columns)], ignore_index=True)
    order = np.argsort(np.concatenate([place[history], np.repeat(place[ends], encoding.schema.horizon)]), kind="stable")
    return whole.iloc[order].reset_index(drop=True).astype({"ds": frame["ds"].dtype})


def _places(ids: pd.Series) -> np.ndarray:
    """Place of each row's series among their names in order, int64 ``(n,)``; quick where rows lie in that order."""
    start = (ids != ids.shift()).to_numpy(bool, na_value=True)
    names = ids[start].to_numpy()
    return np.cumsum(start) - 1 if (names[1:] > names[:-1]).all() else pd.factorize(ids, sort=True)[0].astype(np.int64)


def _divided(frame: pd.DataFrame, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a target, and those after the last such of a series that has any; of rows sorted by ``place``."""
    known, ds = frame["y"].notna().to_numpy(), frame["ds"].to_numpy().astype(np.int64)
    never = np.iinfo(np.int64).min
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    last = np.repeat(np.maximum.reduceat(np.where(known, ds, never), starts), np.diff(starts, append=len(place)))
    return np.flatnonzero(known), np.flatnonzero(~known & (last > never) & (ds > last))


def _future(ends: pd.DataFrame, planned: pd.DataFrame, encoding: Encoding) -> pd.DataFrame:
    """``horizon`` rows after each of ``ends``, a series' last: times, static columns and what is ``planned`` of the future."""
    horizon = encoding.schema.horizon
    columns = ["unique_id", *encoding.static_reals, *_categories(ends, encoding)]
    made = ends[columns].iloc[np.repeat(np.arange(len(ends)), horizon)]
    made = made.assign(ds=_times_after(ends["ds"], encoding.frequency, horizon))
    made = made.merge(planned, on=["unique_id", "ds"], how="left")
    for name in encoding.known_future:
        if made[name].isna().any():
            row = made[made[name].isna()].iloc[0]
            raise UserError(
                f"column '{name}' of series {row['unique_id']} has no value for {row['ds']}; known-future columns must be "
                f"filled for the {horizon} steps after the last target: add rows with an empty target."
            )
    return made.assign(y=np.nan)


def _categories(history: pd.DataFrame, encoding: Encoding) -> list[str]:
    return [name for name in encoding.vocabularies if name != "unique_id" and name in history]


def _times_after(ends: pd.Series, frequency: str | int, horizon: int) -> np.ndarray:
    """The ``horizon`` times that follow each of ``ends``, one end after the other ``(len(ends) * horizon,)``."""
    unique, place = np.unique(ends.to_numpy(), return_inverse=True)
    step = _width(frequency)
    if step is not None:
        times = unique[:, None] + step * np.arange(1, horizon + 1)
    else:
        times = np.stack([pd.date_range(end, periods=horizon + 1, freq=str(frequency))[1:].to_numpy() for end in unique])
    return times.astype(ends.to_numpy().dtype)[place].ravel()


def _width(frequency: str | int) -> Any:
    """What is between two times, where it is always the same; None for months and the like."""
    if isinstance(frequency, int):
        return frequency
    offset = pd.tseries.frequencies.to_offset(frequency)
    if isinstance(offset, pd.offsets.Day):
        return np.timedelta64(offset.n, "D")
    return pd.Timedelta(offset).to_timedelta64() if isinstance(offset, pd.offsets.Tick) else None


def parse_cutoff(cutoff: Any, frame: pd.DataFrame) -> Any:
    """The cutoff in the type of the data's time column; raises UserError where it is not one."""
    if pd.api.types.is_integer_dtype(frame["ds"]):
        try:
            return int(cutoff)
        except ValueError:
            raise UserError(f"the cutoff is '{cutoff}'; this data counts time in whole numbers, so give one.") from None
    try:
        stamp: Any = pd.Timestamp(cutoff)
    except ValueError:
        stamp = pd.NaT
    if stamp is pd.NaT or stamp.tzinfo is not None:
        right = f"give a date such as {str(frame['ds'].max())[:10]}, without a time zone"
        raise UserError(f"the cutoff is '{cutoff}'; {right}.")
    whole_day = not isinstance(cutoff, dt.datetime) and len(str(cutoff)) == 10
    return stamp + pd.Timedelta(days=1) - pd.Timedelta(nanoseconds=1) if whole_day else stamp
