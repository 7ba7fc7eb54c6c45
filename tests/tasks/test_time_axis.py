"""The time axis that series share: each series finds its own times on it, whatever grid they lie on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks.time_axis import time_axis, time_step

Times = list[str] | list[int]


@pytest.mark.parametrize(
    ("frequency", "times", "expected"),
    [
        (1, [7, 5, 9], [2, 0, 4]),
        ("MS", ["2020-03-01", "2020-01-01", "2021-01-01"], [2, 0, 12]),
        ("W-MON", ["2024-01-01", "2024-01-15"], [0, 2]),
        ("15min", ["2024-01-01 00:45", "2024-01-01 00:00"], [3, 0]),
        ("15min", ["2024-01-01 00:45", "2024-01-01 00:00", "2024-01-01 00:50"], [3, 0, 3]),
    ],
)
def test_a_time_has_its_place_on_the_common_grid(frequency: str | int, times: Times, expected: list[int]) -> None:
    ds = pd.Series(times if isinstance(frequency, int) else pd.to_datetime(pd.Series(times)))
    assert time_step(ds, frequency).tolist() == expected


@pytest.mark.parametrize(
    ("frequency", "begins", "steps"),
    [
        (1, [7, 5, 9], 7),
        ("D", ["2024-02-28", "2024-01-01", "2024-02-28"], 61),
        ("MS", ["2020-03-01", "2020-01-01", "2021-01-01"], 15),
        ("QE", ["2020-03-31", "2021-03-31"], 8),
        ("W-MON", ["2024-01-01", "2024-01-15"], 6),
        ("15min", ["2024-01-01 00:45", "2024-01-01 00:00"], 6),
        ("15min", ["2024-01-01 00:45", "2024-01-01 00:05", "2024-01-01 00:00", "2024-01-01 02:05"], 6 + 12),
        ("2D", ["2024-01-01", "2024-01-02"], 7),
    ],
)
def test_every_series_finds_its_own_times(frequency: str | int, begins: Times, steps: int) -> None:
    first = pd.Series(begins if isinstance(frequency, int) else pd.to_datetime(pd.Series(begins)).astype("datetime64[ns]"))
    counts = np.arange(len(begins)) % 2 + 3
    times, places = time_axis(first, counts, frequency)
    assert len(times) == steps and times.dtype == first.dtype and places.dtype == np.int64
    for begin, count, place in zip(first, counts, places, strict=True):
        whole = isinstance(frequency, int)
        own = begin + np.arange(count) if whole else pd.date_range(begin, periods=count, freq=frequency).to_numpy()
        np.testing.assert_array_equal(times[place : place + count], own)


def test_a_time_off_the_grid_is_told() -> None:
    with pytest.raises(ValueError, match="off the grid of frequency W-MON"):
        time_axis(pd.Series(pd.to_datetime(["2024-01-02"])), np.array([3]), "W-MON")
