"""The time axis that a panel's series share: what depends on time alone is kept once for each of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def time_axis(begins: pd.Series, counts: np.ndarray, frequency: str | int) -> tuple[np.ndarray, np.ndarray]:
    """Times that hold every series' own one after the other, and where each series begins.

    ``begins`` (n_series,) is each series' first time and ``counts`` (n_series,) its rows, ``frequency`` apart. Series need not
    lie on one grid (every 15 minutes from :00, and from :05): there is a stretch of the axis for each grid, in the order of
    the first series on it. Returns the times ``(n_steps,)`` and the first step of each series, int64 ``(n_series,)``.
    """
    begin = begins.to_numpy()
    first, stretches, length = np.full(len(begin), -1, dtype=np.int64), list[np.ndarray](), 0
    while (left := first < 0).any():
        place = _place(begin, begin[left].min(), begin[left].max(), frequency)
        found = left & (place >= 0)
        if not found.any():
            raise ValueError(f"{begin[left].min()} is off the grid of frequency {frequency}")
        stretches.append(_stretch(begin[left].min(), int((place + counts)[found].max()), frequency).astype(begin.dtype))
        first[found] = length + place[found]
        length += len(stretches[-1])
    return np.concatenate(stretches), first


def _place(times: np.ndarray, start: Any, end: Any, frequency: str | int) -> np.ndarray:
    """Steps from ``start`` to each of ``times``, -1 for one off the grid or outside ``start`` to ``end``."""
    grid: Any = (
        pd.RangeIndex(start, end + 1, frequency) if isinstance(frequency, int) else pd.date_range(start, end, freq=frequency)
    )
    return np.asarray(grid.get_indexer(pd.Index(times)), dtype=np.int64)


def _stretch(start: Any, steps: int, frequency: str | int) -> np.ndarray:
    if isinstance(frequency, int):
        return np.asarray(start + frequency * np.arange(steps, dtype=np.int64))
    return pd.date_range(start, periods=steps, freq=frequency).to_numpy()


def time_step(ds: pd.Series, frequency: str | int) -> np.ndarray:
    """Position of each time on the grid from the earliest one, int64; of one between two steps that of the earlier."""
    if isinstance(frequency, int):
        return (ds - ds.min()).to_numpy().astype(np.int64)
    grid = pd.date_range(ds.min(), ds.max(), freq=frequency)
    return grid.get_indexer(pd.DatetimeIndex(ds), method="ffill").astype(np.int64)
