"""The rows to forecast: the right times, with what is known of them and nothing else."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.encoding import Encoding
from tasks.errors import UserError
from tasks.future import _times_after, parse_cutoff, with_future_rows
from tasks.params import Params
from tasks.settings import Settings

HORIZON = 3


def encoding(frame: pd.DataFrame, frequency: str | int = "D", **data: Any) -> Encoding:
    fields = {"source": "file", "path": "x.csv", "horizon": HORIZON, "frequency": frequency} | data
    params = Params.model_validate({"data": fields})
    settings = Settings(HORIZON, 1, 4, (), False, 3, 3, 3, 3, 3, 3, HORIZON - 1)
    return Encoding.fit(frame, params, settings, frame["y"].notna().to_numpy())


def days(name: str, start: str, steps: int, future: int = 0) -> pd.DataFrame:
    ds = pd.date_range(start, periods=steps + future)
    y = np.arange(1.0, steps + future + 1)
    y[steps:] = np.nan
    frame = pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "plan": np.arange(len(ds)) * 10.0, "rain": y / 10})
    return frame.assign(kind=f"kind of {name}")


COLUMNS: dict[str, Any] = {"known_future": ["plan"], "past_only": ["rain"], "static": ["kind"]}


@pytest.mark.parametrize(
    ("frequency", "times", "expected"),
    [
        ("h", ["2024-02-28 22:00", "2024-02-28 23:00"], ["2024-02-29 00:00", "2024-02-29 01:00", "2024-02-29 02:00"]),
        ("ME", ["2023-12-31", "2024-01-31"], ["2024-02-29", "2024-03-31", "2024-04-30"]),
        ("W-MON", ["2024-01-01", "2024-01-08"], ["2024-01-15", "2024-01-22", "2024-01-29"]),
        (1, [4, 5], [6, 7, 8]),
    ],
)
def test_every_series_gets_a_horizon_of_empty_rows_at_its_frequency(frequency: str | int, times: list, expected: list) -> None:
    ds = times if isinstance(frequency, int) else pd.to_datetime(times)
    frame = pd.concat([pd.DataFrame({"unique_id": name, "ds": ds, "y": [1.0, 2.0]}) for name in "ab"], ignore_index=True)
    made = with_future_rows(frame, encoding(frame, frequency))
    assert list(made.columns) == list(frame.columns)
    assert made["ds"].dtype == frame["ds"].dtype
    for _, group in made.groupby("unique_id"):
        assert group["y"].tolist()[:2] == [1.0, 2.0]
        assert group["y"].isna().tolist() == [False] * 2 + [True] * HORIZON
        assert group["ds"].tolist()[2:] == (expected if isinstance(frequency, int) else list(pd.to_datetime(expected)))


@pytest.mark.parametrize("frequency", ["15min", "h", "D", "2D", "B", "W-MON", "MS", "QE"])
def test_times_are_those_of_pandas(frequency: str) -> None:
    ends = pd.Series(pd.date_range("2023-11-15", periods=60, freq=frequency).to_numpy()[[3, 59, 3, 17]])
    expected = [time for end in ends for time in pd.date_range(end, periods=6, freq=frequency)[1:]]
    assert list(pd.DatetimeIndex(_times_after(ends, frequency, 5))) == expected


def test_series_may_end_at_different_times_and_hold_too_many_future_rows() -> None:
    frame = pd.concat([days("a", "2024-01-01", 10, 3), days("b", "2024-01-05", 3, 5)], ignore_index=True)
    made = with_future_rows(frame, encoding(frame, **COLUMNS))
    ends = made[made["y"].notna()].groupby("unique_id")["ds"].max()
    assert ends.tolist() == [pd.Timestamp("2024-01-10"), pd.Timestamp("2024-01-07")]
    assert made.groupby("unique_id")["y"].apply(lambda y: int(y.isna().sum())).tolist() == [HORIZON, HORIZON]
    assert made.loc[made["unique_id"] == "b", "plan"].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert (made["kind"] == "kind of " + made["unique_id"]).all()


def test_a_cutoff_hides_what_came_later_but_keeps_what_was_planned() -> None:
    frame = pd.concat([days("a", "2024-01-01", 10), days("later", "2024-01-08", 3)], ignore_index=True)
    made = with_future_rows(frame, encoding(frame, **COLUMNS), "2024-01-06")
    assert made["unique_id"].unique().tolist() == ["a"], "a series that has not begun is left out"
    assert made["y"].tolist()[:6] == [1, 2, 3, 4, 5, 6]
    assert made["y"].isna().sum() == HORIZON == len(made) - 6
    assert made["plan"].tolist()[6:] == [60.0, 70.0, 80.0]
    assert made["rain"].isna().tolist() == [False] * 6 + [True] * 3
    assert frame["y"].notna().all(), "the caller's table is not changed"


@pytest.mark.parametrize(
    ("cutoff", "last"),
    [
        ("2024-01-02", "2024-01-02 23:00"),
        (dt.date(2024, 1, 2), "2024-01-02 23:00"),
        ("2024-01-02 05:00", "2024-01-02 05:00"),
        ("2024-01-02T05:59", "2024-01-02 05:00"),
        (dt.datetime(2024, 1, 2), "2024-01-02 00:00"),
        ("2030-01-01", "2024-01-03 23:00"),
    ],
)
def test_a_date_means_its_whole_day_and_a_time_itself(cutoff: Any, last: str) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=72, freq="h"), "y": np.arange(72.0)})
    made = with_future_rows(frame, encoding(frame, "h"), cutoff)
    assert made.loc[made["y"].notna(), "ds"].max() == pd.Timestamp(last)
    assert made["y"].isna().sum() == HORIZON


@pytest.mark.parametrize("cutoff", ["soon", "", "NaT", "2024-13-01", "2024-01-01T00:00+01:00", "99999-01-01"])
def test_what_is_not_a_date_is_one_sentence(cutoff: str) -> None:
    frame = days("a", "2024-01-01", 10)
    with pytest.raises(UserError, match=r"give a date such as 2024-01-10, without a time zone\.$") as caught:
        parse_cutoff(cutoff, frame)
    assert f"'{cutoff}'" in str(caught.value)


def test_whole_number_time_takes_a_whole_number() -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": [1, 2, 3], "y": 1.0})
    assert parse_cutoff("2", frame) == 2
    with pytest.raises(UserError, match="'2024-01-01'; this data counts time in whole numbers"):
        parse_cutoff("2024-01-01", frame)


def test_a_cutoff_before_all_data_and_a_missing_plan_are_told() -> None:
    frame = days("a", "2024-01-01", 10, 2)
    with pytest.raises(UserError, match="no series has a value up to 2023-01-01; the data begins at 2024-01-01"):
        with_future_rows(frame, encoding(frame, **COLUMNS), "2023-01-01")
    with pytest.raises(UserError, match="column 'plan' of series a has no value for 2024-01-13"):
        with_future_rows(frame, encoding(frame, **COLUMNS))


def slow_future_rows(frame: pd.DataFrame, made: Encoding, cutoff: Any = None) -> pd.DataFrame:
    """The same, a series at a time."""
    parts = []
    for name, part in frame.groupby("unique_id", sort=True):
        past = part if cutoff is None else part[part["ds"] <= parse_cutoff(cutoff, frame)]
        history = past[past["y"].notna()]
        if history.empty:
            continue
        end = history["ds"].iloc[-1]
        ahead = pd.date_range(end, periods=HORIZON + 1)[1:]
        rows = part.set_index("ds").reindex(ahead)[["plan"]].assign(unique_id=name, ds=ahead, kind=history["kind"].iloc[-1])
        parts += [history, rows.reset_index(drop=True).reindex(columns=frame.columns)]
    return pd.concat(parts, ignore_index=True).astype({"ds": frame["ds"].dtype})


@pytest.mark.parametrize("cutoff", [None, "2024-01-09"])
@pytest.mark.parametrize("order", ["by name", "names mixed"])
def test_many_series_at_once_are_each_as_by_itself(cutoff: str | None, order: str) -> None:
    random = np.random.default_rng(1)
    names = [f"{index:02d}" for index in range(30)] if order == "by name" else [f"{index * 7 % 30:02d}" for index in range(30)]
    parts = [days(name, f"2024-01-{1 + random.integers(12):02d}", int(random.integers(8, 20)), HORIZON) for name in names]
    for part in parts[::4]:
        part.loc[1, "y"] = np.nan  # a hole in the history is no future row
    frame = pd.concat(parts, ignore_index=True)
    made = encoding(frame, **COLUMNS)
    found, expected = with_future_rows(frame, made, cutoff), slow_future_rows(frame, made, cutoff)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    newest = with_future_rows(frame, made, cutoff, newest=4)
    known = expected["y"].notna()
    cut = pd.concat([part.iloc[-4 - HORIZON :] for _, part in expected.groupby("unique_id")], ignore_index=True)
    assert known.sum() > newest["y"].notna().sum() > 0
    pd.testing.assert_frame_equal(newest, cut, check_dtype=False)
