"""Calendar features: what a date alone tells, known for any future."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

YEAR_HARMONICS = 3


@dataclass(frozen=True)
class CalendarFeatures:
    """``reals`` name -> float32 ``(n,)`` and ``categories`` name -> (int64 ``(n,)``, number of categories)."""

    reals: dict[str, np.ndarray]
    categories: dict[str, tuple[np.ndarray, int]]


def calendar_features(ds: pd.DatetimeIndex, step_seconds: float, holidays: str | None) -> CalendarFeatures:
    """Features of each timestamp that vary at the panel's step.

    Hour of day below a day, day of week up to a day, month from a week on, the year as harmonics, and holidays of
    ``holidays`` (``US`` or ``US-IL``) with the days beside them.
    """
    reals: dict[str, np.ndarray] = {}
    categories: dict[str, tuple[np.ndarray, int]] = {}
    day = 86_400.0
    if step_seconds < day:
        categories["hour"] = (ds.hour.to_numpy().astype(np.int64), 24)
    if step_seconds <= day:
        categories["day_of_week"] = (ds.dayofweek.to_numpy().astype(np.int64), 7)
    if step_seconds >= 7 * day:
        categories["month"] = (ds.month.to_numpy().astype(np.int64) - 1, 12)
    phase = 2 * np.pi * (ds.dayofyear.to_numpy() - 1 + ds.hour.to_numpy() / 24) / 365.25
    for harmonic in range(1, YEAR_HARMONICS + 1):
        reals[f"year_sin_{harmonic}"] = np.sin(harmonic * phase).astype(np.float32)
        reals[f"year_cos_{harmonic}"] = np.cos(harmonic * phase).astype(np.float32)
    if holidays is not None:
        codes, count = holiday_codes(ds, holidays)
        categories["holiday"] = (codes, count)
        before, _ = holiday_codes(ds + pd.Timedelta(days=1), holidays)
        after, _ = holiday_codes(ds - pd.Timedelta(days=1), holidays)
        categories["holiday_eve"] = (before, count)
        categories["holiday_after"] = (after, count)
    return CalendarFeatures(reals, categories)


def holiday_codes(ds: pd.DatetimeIndex, region: str) -> tuple[np.ndarray, int]:
    """Number of the holiday on each day, 0 for none, int64 ``(n,)``, and the number of categories.

    Names are numbered alphabetically over 1990 to 2040, so a code means the same for any data.
    """
    holidays, numbers, count = _numbered_holidays(region)
    days = ds.to_numpy().astype("datetime64[D]")
    place = np.searchsorted(holidays, days).clip(max=len(holidays) - 1)
    return np.where(holidays[place] == days, numbers[place], 0), count


@functools.cache
def _numbered_holidays(region: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Holidays from 1990 to 2040 in order, the number of each, and how many numbers there are, 0 for no holiday included."""
    import holidays

    country, _, subdivision = region.partition("-")
    table = holidays.country_holidays(country, subdiv=subdivision or None, years=range(1990, 2041), observed=True)
    plain = {day: table[day].replace(" (observed)", "") for day in sorted(table)}
    numbers = {name: index + 1 for index, name in enumerate(sorted(set(plain.values())))}
    codes = np.array([numbers[name] for name in plain.values()], dtype=np.int64)
    return np.array(list(plain), dtype="datetime64[D]"), codes, len(numbers) + 1


def step_seconds(frequency: str | int) -> float:
    """Length of one step of a pandas offset alias in seconds; of an average one for months, quarters and years."""
    if isinstance(frequency, int):
        return 1.0
    start = pd.Timestamp("2001-01-01")
    stamps = pd.date_range(start, periods=3, freq=frequency)
    return float((stamps[2] - stamps[1]).total_seconds())
