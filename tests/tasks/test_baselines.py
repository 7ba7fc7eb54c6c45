"""Baselines equal statsforecast's own forecasts, see no future, and say when they had to fall back."""

from __future__ import annotations

import numpy as np
import pytest
from statsforecast.models import AutoETS, SeasonalNaive

from tasks.baselines.statistical import forecast_baseline
from tasks.errors import UserError

LEVELS = np.array([0.05, 0.1, 0.5, 0.9, 0.95])
SEASON = 7


def weekly(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pattern = np.array([5.0, 6.0, 6.2, 6.1, 6.0, 2.0, 1.5])
    return 3.0 + pattern[np.arange(n) % SEASON] * (1 + 0.1 * rng.standard_normal(n))


def test_seasonal_naive_equals_statsforecast_at_every_cutoff_and_level() -> None:
    series = [weekly(120, 0), weekly(90, 1) - 8.0]
    cutoffs = [np.array([60, 81]), np.array([90])]
    forecast = forecast_baseline("seasonal_naive", series, cutoffs, 16, SEASON, LEVELS, max_history=50)
    assert forecast.quantiles.shape == (3, 16, 5)
    assert forecast.quantiles.dtype == np.float32
    assert forecast.notes == []
    windows = [(series[0], 60), (series[0], 81), (series[1], 90)]
    for quantiles, (y, cutoff) in zip(forecast.quantiles, windows, strict=True):
        direct = SeasonalNaive(SEASON).forecast(y[cutoff - 50 : cutoff], 16, level=[80, 90])
        expected = np.stack([direct[key] for key in ("lo-90", "lo-80", "mean", "hi-80", "hi-90")], axis=-1)
        np.testing.assert_allclose(quantiles, expected, rtol=1e-6, atol=1e-6)


def test_auto_ets_equals_a_direct_fit_at_a_refit_and_a_direct_forward_between() -> None:
    y = weekly(160, 2)
    cutoffs = np.array([120, 134, 148])
    got = forecast_baseline("auto_ets", [y], [cutoffs], SEASON, SEASON, LEVELS, max_history=100, refit_every=2)
    first, last = AutoETS(SEASON).fit(y[20:120]), AutoETS(SEASON).fit(y[48:148])
    direct = [
        first.predict(SEASON, level=[80, 90]),
        first.forward(y[20:134], SEASON, level=[80, 90]),
        last.predict(SEASON, level=[80, 90]),
    ]
    for quantiles, one in zip(got.quantiles, direct, strict=True):
        expected = np.stack([one[key] for key in ("lo-90", "lo-80", "mean", "hi-80", "hi-90")], axis=-1)
        np.testing.assert_allclose(quantiles, expected, rtol=1e-5)


def test_auto_ets_takes_the_variance_of_a_step_from_that_step_whatever_the_horizon() -> None:
    y = weekly(100, 3) - 9.0  # values below zero leave the additive forms, whose variance counts whole seasons
    short, long = (
        forecast_baseline("auto_ets", [y], [np.array([100])], horizon, SEASON, LEVELS).quantiles
        for horizon in (SEASON, 3 * SEASON)
    )
    np.testing.assert_array_equal(short[0], long[0, :SEASON])
    width = long[0, :, 4] - long[0, :, 0]
    assert np.all(np.diff(width) >= -1e-5), "the further ahead, the less certain"


def test_processes_give_what_one_process_gives() -> None:
    series = [weekly(60, seed) for seed in (4, 5)]
    cutoffs = [np.array([50, 55])] * 2
    one, two = (forecast_baseline("auto_ets", series, cutoffs, 5, SEASON, LEVELS, n_jobs=n).quantiles for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["seasonal_naive", "auto_ets"])
def test_the_future_does_not_reach_a_forecast_and_the_order_of_cutoffs_is_kept(name: str) -> None:
    y = weekly(80, 6)
    changed = y.copy()
    changed[70:] = 1e6
    cutoffs = np.array([70, 60])
    before, after = (forecast_baseline(name, [s], [cutoffs], 4, SEASON, LEVELS).quantiles for s in (y, changed))
    np.testing.assert_array_equal(before, after)
    swapped = forecast_baseline(name, [y], [cutoffs[::-1]], 4, SEASON, LEVELS).quantiles
    np.testing.assert_array_equal(before, swapped[::-1])


def test_short_and_constant_series_get_a_forecast_and_a_stated_reason() -> None:
    short, constant = np.array([3.0, 4.0, 6.0]), np.full(40, 2.5)
    forecast = forecast_baseline(
        "auto_ets", [short, constant], [np.array([3]), np.array([40])], 4, SEASON, LEVELS, series_names=["a", "b"]
    )
    np.testing.assert_allclose(forecast.quantiles[0, :, 2], 6.0)
    rms = np.sqrt((1.0 + 4.0) / 2)
    np.testing.assert_allclose(forecast.quantiles[0, :, 3], 6.0 + 1.2815516 * rms * np.sqrt([1, 2, 3, 4]), rtol=1e-5)
    np.testing.assert_allclose(forecast.quantiles[1], 2.5, atol=1e-3)
    assert len(forecast.notes) == 1
    assert forecast.notes[0].startswith("Series a, 1 of 1 cutoffs: naive of the last value (3 observations")


def test_a_gap_is_read_from_the_season_before() -> None:
    y = weekly(60, 7)
    gapped, filled = y.copy(), y.copy()
    gapped[55], filled[55] = np.nan, y[48]
    got, expected = (
        forecast_baseline("seasonal_naive", [s], [np.array([60])], 7, SEASON, LEVELS).quantiles for s in (gapped, filled)
    )
    np.testing.assert_array_equal(got, expected)


def test_mistakes_are_told_in_one_sentence() -> None:
    y = weekly(30, 8)
    with pytest.raises(ValueError, match="statistical baselines are seasonal_naive, auto_ets, not 'prophet'"):
        forecast_baseline("prophet", [y], [np.array([20])], 4, SEASON, LEVELS)
    with pytest.raises(UserError, match="series shop has no value before its cutoff at row 0"):
        forecast_baseline("seasonal_naive", [y], [np.array([0])], 4, SEASON, LEVELS, series_names=["shop"])
