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
    horizon = encoding.schema.horizon
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
    parts = []
    for _, group in kept.groupby("unique_id", sort=True):
        observed = int(group["y"].notna().sum())
        head, tail = group.iloc[:observed], group.iloc[observed : observed + horizon]
        parts.append(pd.concat([head, _tail(head, tail, encoding)]))
    return pd.concat(parts, ignore_index=True)


def _tail(head: pd.DataFrame, tail: pd.DataFrame, encoding: Encoding) -> pd.DataFrame:
    horizon, end = encoding.schema.horizon, head["ds"].iloc[-1]
    if isinstance(encoding.frequency, int):
        times: Any = end + encoding.frequency * np.arange(1, horizon + 1)
    else:
        times = pd.date_range(end, periods=horizon + 1, freq=encoding.frequency)[1:]
    made = pd.DataFrame({"ds": times}).merge(tail.drop(columns=["unique_id", "y"]), on="ds", how="left")
    made["unique_id"], made["y"] = head["unique_id"].iloc[-1], np.nan
    for name in encoding.known_future:
        if made[name].isna().any():
            when = made.loc[made[name].isna(), "ds"].iloc[0]
            raise UserError(
                f"column '{name}' of series {head['unique_id'].iloc[-1]} has no value for {when}; known-future columns must be "
                f"filled for the {horizon} steps after the last target: add rows with an empty target."
            )
    static = [name for name in head.columns if name in encoding.vocabularies or name in encoding.static_reals]
    for name in static:
        made[name] = head[name].iloc[-1]
    return made[head.columns].astype({"ds": head["ds"].dtype})


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
