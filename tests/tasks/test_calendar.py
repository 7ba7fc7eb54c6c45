"""Calendar features: right for the date, and the same for any data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks.calendar import calendar_features, holiday_codes, step_seconds


@pytest.mark.parametrize(
    ("frequency", "seconds", "names"),
    [
        ("15min", 900.0, ["hour", "day_of_week"]),
        ("h", 3600.0, ["hour", "day_of_week"]),
        ("D", 86_400.0, ["day_of_week"]),
        ("W-MON", 604_800.0, ["month"]),
        ("MS", 28 * 86_400.0, ["month"]),
    ],
)
def test_only_what_varies_at_the_step_becomes_a_category(frequency: str, seconds: float, names: list[str]) -> None:
    assert step_seconds(frequency) == seconds
    ds = pd.date_range("2016-01-01", periods=50, freq=frequency)
    features = calendar_features(ds, seconds, None)
    assert list(features.categories) == names
    for values, count in features.categories.values():
        assert values.min() >= 0
        assert values.max() < count


def test_whole_number_time_counts_by_one() -> None:
    assert step_seconds(1) == 1.0


def test_hour_and_weekday_are_those_of_the_clock() -> None:
    ds = pd.date_range("2024-02-26", periods=24 * 7, freq="h")  # a Monday
    categories = calendar_features(ds, 3600.0, None).categories
    np.testing.assert_array_equal(categories["hour"][0], np.tile(np.arange(24), 7))
    np.testing.assert_array_equal(categories["day_of_week"][0], np.repeat(np.arange(7), 24))


def test_the_year_turns_once_a_year() -> None:
    reals = calendar_features(pd.date_range("2015-01-01", "2016-01-01"), 86_400.0, None).reals
    for harmonic in (1, 2, 3):
        sine, cosine = reals[f"year_sin_{harmonic}"], reals[f"year_cos_{harmonic}"]
        assert (sine.dtype, sine[0], cosine[0]) == (np.float32, 0.0, 1.0)
        np.testing.assert_allclose(sine**2 + cosine**2, 1.0, atol=1e-6)
        turned = np.unwrap(np.arctan2(sine, cosine))[-2] / (2 * np.pi)
        assert turned == pytest.approx(harmonic * 364 / 365.25, abs=1e-5)
        assert (sine[-1], cosine[-1]) == (0.0, 1.0), "1 January is where the year begins"


def test_a_holiday_has_one_number_wherever_it_falls() -> None:
    ds = pd.DatetimeIndex(["2016-07-03", "2016-07-04", "2016-07-05", "2015-07-03", "2016-07-04 17:00", "2016-12-25"])
    codes, count = holiday_codes(ds, "US-IL")
    assert codes[1] > 0
    assert codes[1] == codes[4], "every hour of the day"
    assert codes[1] == codes[3], "observed on Friday where the fourth is a Saturday"
    assert (codes[0], codes[2]) == (0, 0)
    assert 0 < codes[5] != codes[1]
    assert codes.max() < count
    np.testing.assert_array_equal(holiday_codes(ds[1:2], "US-IL")[0], codes[1:2])


def test_the_days_beside_a_holiday_know_it() -> None:
    ds = pd.date_range("2016-07-02", "2016-07-06")
    categories = calendar_features(ds, 86_400.0, "US").categories
    fourth = categories["holiday"][0][2]
    assert fourth > 0
    assert categories["holiday_eve"][0].tolist() == [0, fourth, 0, 0, 0]
    assert categories["holiday_after"][0].tolist() == [0, 0, 0, fourth, 0]
