"""What Prophet is given, and what stands in for it: the package itself is played by a recorder of the same interface."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from models.predictive import LEVELS
from tasks.baselines.additive import REFIT_EVERY, SeriesJob, forecast_prophet, forecast_series, holiday_table
from tasks.baselines.run import histories
from tasks.prepare import Prepared, load_prepared


class Recorder:
    """Prophet's interface: keeps what it is given, and forecasts the last value of its history plus noise."""

    made: ClassVar[list[Recorder]] = []
    failing: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.regressors: list[str] = []
        self.seasons: list[tuple[str, float]] = []
        self.futures: list[pd.DataFrame] = []
        Recorder.made.append(self)

    def add_regressor(self, name: str) -> None:
        self.regressors.append(name)

    def add_seasonality(self, name: str, period: float, fourier_order: int) -> None:
        self.seasons.append((name, period))

    def fit(self, history: pd.DataFrame) -> None:
        if Recorder.failing:
            raise RuntimeError("Optimization terminated abnormally.\nSee the log.")
        self.history = history

    def predictive_samples(self, future: pd.DataFrame) -> dict[str, np.ndarray]:
        self.futures.append(future)
        return {"yhat": self.history["y"].iloc[-1] + np.random.standard_normal((len(future), 4000))}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    module = ModuleType("prophet")
    module.__spec__ = ModuleSpec("prophet", None)
    module.Prophet = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prophet", module)
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "failing", False)
    return Recorder


@pytest.fixture(scope="module")
def prepared(prepared_project: Path) -> Prepared:
    return load_prepared(prepared_project)


def forecast(prepared: Prepared, max_history: int = 200) -> Any:
    series, cutoffs = histories(prepared.panel, prepared.fold("test", "evaluate"))
    names = [str(name) for name in prepared.ids]
    return forecast_prophet(prepared, series, cutoffs, np.array(LEVELS), max_history, n_jobs=1, series_names=names)


def test_each_fit_sees_only_the_history_before_its_cutoff_and_each_forecast_no_target(
    prepared: Prepared, recorder: type[Recorder]
) -> None:
    result = forecast(prepared)
    windows = prepared.fold("test", "evaluate")
    assert result.quantiles.shape == (len(windows), prepared.panel.schema.horizon, len(LEVELS))
    assert result.notes == []
    times = prepared.target_time(windows)
    asked = [(model, future) for model in recorder.made for future in model.futures]
    assert len(asked) == len(windows)
    for (model, future), expected in zip(asked, times, strict=True):
        assert model.history["ds"].max() < future["ds"].min()
        assert len(model.history) <= 200
        assert "y" not in future
        np.testing.assert_array_equal(future["ds"].to_numpy(), expected)
    assert max(len(model.futures) for model in recorder.made) == REFIT_EVERY


def test_quantiles_are_those_of_the_sampled_paths_and_repeat(prepared: Prepared, recorder: type[Recorder]) -> None:
    first, second = forecast(prepared).quantiles, forecast(prepared).quantiles
    np.testing.assert_array_equal(first, second)
    # the recorder's paths are Normal(last value, 1): a sample quantile has deviation sqrt(p (1 - p) / n) / density
    width = first[..., LEVELS.index(0.9)] - first[..., LEVELS.index(0.1)]
    assert np.abs(width - 2 * 1.2815516).max() < 6 * np.sqrt(2 * 0.09 / 4000) / 0.1755


def test_the_global_random_state_is_left_as_it_was(prepared: Prepared, recorder: type[Recorder]) -> None:
    np.random.seed(5)
    expected = np.random.standard_normal(3)
    np.random.seed(5)
    forecast(prepared)
    np.testing.assert_array_equal(np.random.standard_normal(3), expected)


def test_seasons_multiply_where_the_history_is_positive(prepared: Prepared, recorder: type[Recorder]) -> None:
    forecast(prepared)
    modes = {model.options["seasonality_mode"]: model.history["y"].min() > 0 for model in recorder.made}
    assert modes == {"multiplicative": True}
    prepared.panel.rows[:, 0] -= 1000.0  # a private copy of the mapped file
    recorder.made.clear()
    try:
        forecast(prepared)
    finally:
        prepared.panel.rows[:, 0] += 1000.0
    assert {model.options["seasonality_mode"] for model in recorder.made} == {"additive"}


def test_a_failed_fit_is_replaced_by_the_seasonal_naive_and_said(prepared: Prepared, recorder: type[Recorder]) -> None:
    recorder.failing = True
    result = forecast(prepared)
    assert np.isfinite(result.quantiles).all()
    windows = prepared.fold("test", "evaluate")
    first = int(windows.cutoff[0]) + int(prepared.panel.offsets[int(windows.series[0])])
    season = prepared.panel.schema.season_length
    np.testing.assert_allclose(result.quantiles[0, 0, LEVELS.index(0.5)], prepared.panel.rows[first - season, 0], rtol=1e-6)
    assert len(result.notes) == len(windows.series.unique())
    assert "seasonal naive in place of prophet (Optimization terminated abnormally.)" in result.notes[0]


def test_holidays_are_those_of_the_subdivision_with_the_days_beside_them() -> None:
    ds = pd.date_range("2015-01-01", "2015-12-31", freq="D").to_numpy()
    table = holiday_table(ds, "US-IL")
    assert table is not None
    assert "Lincoln's Birthday" in set(table["holiday"])
    assert table.loc[table["holiday"] == "Independence Day", "ds"].dt.strftime("%m-%d").tolist() == ["07-03", "07-04"]
    assert set(table["lower_window"]) == {-1}
    assert set(table["upper_window"]) == {1}
    assert holiday_table(ds, None) is None


def test_prophet_itself_follows_a_trend_and_a_season_within_its_noise() -> None:
    """The package for once, on a line times a weekly pattern, with noise of deviation 1."""
    rng, ds = np.random.default_rng(2), pd.date_range("2021-01-04", periods=414, freq="D")
    signal = (50 + 0.05 * np.arange(414)) * np.tile([1, 1, 1, 1, 1, 1.2, 1.2], 60)[:414]
    y = signal + rng.normal(0, 1, 414)
    frame = pd.DataFrame({"ds": ds, "y": np.where(np.arange(414) < 400, y, np.nan)})
    job = SeriesJob(frame, np.array([400]), 14, 7, 0, 400, np.array([0.05, 0.5, 0.95]), None, seed=1)
    quantiles, failures = forecast_series(job)
    assert set(failures) == {""}
    low, median, high = quantiles[0].T
    assert np.abs(median - signal[400:]).max() < 1.0, "one deviation of the noise, which four hundred days average out"
    np.testing.assert_allclose(high - low, 2 * 1.645, rtol=0.3)
