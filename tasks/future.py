"""Rows for the steps to forecast: dates, and what is known of them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd

from tasks.encoding import Encoding
from tasks.errors import UserError


def with_future_rows(frame: pd.DataFrame, encoding: Encoding, cutoff: Any = None) -> pd.DataFrame:
    """Give every series exactly ``horizon`` rows with an empty target after its last one.

    Rows that the data holds are kept with their known-future values; others are made from the frequency. With
    ``cutoff`` (a date, or an integer for integer time) targets after it are ignored, as if it were today; a series
    that starts later is left out.

    Raises UserError where a known-future value is missing for a step, or no series has a target up to ``cutoff``.
    """
    if cutoff is not None:
        limit = parse_cutoff(cutoff, frame)
        later = frame["ds"] > limit
        frame = frame.copy()
        frame.loc[later, ["y", *encoding.past_only]] = np.nan
    known = frame["y"].notna()
    last = frame["ds"].where(known).groupby(frame["unique_id"], sort=False).transform("max")
    kept = frame[last.notna() & (known | (frame["ds"] > last))]
    if kept.empty:
        raise UserError(f"no series has a value up to {cutoff}; the data begins at {frame['ds'].min()}.")
    kept = kept.sort_values("unique_id", kind="stable")
    history = kept["y"].notna()
    made = _future(kept[history], kept.loc[~history, ["unique_id", "ds", *encoding.known_future]], encoding)
    whole = pd.concat([kept[history], made.reindex(columns=kept.columns)], ignore_index=True)
    return whole.sort_values("unique_id", kind="stable", ignore_index=True).astype({"ds": frame["ds"].dtype})


def _future(history: pd.DataFrame, planned: pd.DataFrame, encoding: Encoding) -> pd.DataFrame:
    """``horizon`` rows for each series of ``history``: times, static columns and what is ``planned`` of the known future."""
    horizon = encoding.schema.horizon
    ends = history.drop_duplicates("unique_id", keep="last")
    made = ends.loc[ends.index.repeat(horizon), ["unique_id", *encoding.static_reals, *_categories(history, encoding)]]
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
