"""Gradient boosting sees no future, learns from its own folds, and is better and as calibrated as it can be shown to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.panel import Panel, PanelSchema, Windows
from models.predictive import LEVELS, Predictive
from models.uncertainty import scores
from tasks.baselines.boosting import PHASES, feature_names, forecast_boosting, window_features
from tasks.baselines.run import forecast_fold
from tasks.baselines.statistical import BaselineForecast
from tasks.errors import UserError
from tasks.folds import PURPOSES, FoldLeak, claim
from tasks.params import Baselines
from tasks.prepare import Prepared, load_prepared

SEASON, HORIZON = 4, 6
SCHEMA = PanelSchema(
    known=("price",),
    past=("weather",),
    static=(("unique_id", 3),),
    categories=(("holiday", 3),),
    lags=(8, 40),
    context=12,
    horizon=HORIZON,
    season_length=SEASON,
)


def small_panel(lengths: tuple[int, ...] = (80, 20)) -> Panel:
    rng = np.random.default_rng(0)
    total = sum(lengths)
    rows = rng.normal(10, 2, (total, 3)).astype(np.float32)
    codes = rng.integers(0, 3, (total, 1))
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return Panel(
        SCHEMA, torch.from_numpy(rows), torch.from_numpy(codes), torch.tensor([[1], [2]]), offsets, torch.tensor(lengths)
    )


@pytest.fixture(scope="module")
def prepared(prepared_project: Path) -> Prepared:
    return load_prepared(prepared_project)


@pytest.fixture(scope="module")
def forecast(prepared: Prepared) -> BaselineForecast:
    return forecast_fold("gradient_boosting", prepared, Baselines())


def test_features_hold_nothing_of_the_target_or_past_only_covariates_after_the_cutoff() -> None:
    panel, cutoff = small_panel(), 60
    windows = Windows(torch.tensor([0]), torch.tensor([cutoff]))
    rows = panel.rows.clone()
    rows[cutoff:80, 0] = 1e6
    rows[:, 2] = 1e6
    changed = replace(panel, rows=rows)
    for before, after in zip(window_features(panel, windows), window_features(changed, windows), strict=True):
        np.testing.assert_array_equal(before, after)


def test_features_are_the_lags_covariates_and_base_that_their_names_say() -> None:
    panel, cutoff = small_panel(), 60
    y = panel.rows[:80, 0].numpy()
    features, base, scale = window_features(panel, Windows(torch.tensor([0]), torch.tensor([cutoff])))
    names = feature_names(panel)
    assert features.shape == (1, HORIZON, len(names))
    column = {name: features[0, :, index] for index, name in enumerate(names)}
    for step in range(HORIZON):
        phase = SEASON if step < SEASON else 2 * SEASON  # step 5 of 6 has its phase two seasons of 4 back
        same = [y[cutoff + step - phase - SEASON * number] for number in range(PHASES)]
        assert base[0, step] == pytest.approx(np.mean(same), rel=1e-6)
        assert column["season_2_back"][step] == pytest.approx((same[1] - np.mean(same)) / scale[0], abs=1e-5)
        assert column["lag_40"][step] == pytest.approx((y[cutoff + step - 40] - np.mean(same)) / scale[0], abs=1e-5)
    assert scale[0] == pytest.approx(y[cutoff - 12 : cutoff].std(), rel=1e-5)
    np.testing.assert_array_equal(column["step"], np.arange(1, HORIZON + 1))
    np.testing.assert_array_equal(column["price"], panel.rows[cutoff : cutoff + HORIZON, 1])
    np.testing.assert_array_equal(column["holiday"], panel.codes[cutoff : cutoff + HORIZON, 0])
    assert column["holiday_1_back"][0] == (panel.codes[cutoff - SEASON, 0] > 0)
    assert set(column["unique_id"]) == {1.0}


def test_a_short_series_has_gaps_in_its_lags_and_none_of_another_series() -> None:
    panel = small_panel()
    features, base, scale = window_features(panel, Windows(torch.tensor([1]), torch.tensor([2])))
    assert np.isnan(features[0, :, feature_names(panel).index("lag_8")]).all()
    history = panel.rows[80:82, 0].numpy()
    assert base[0, 0] == history[-1], "no value of the same phase is known, so the last one stands in"
    assert scale[0] == pytest.approx(history.std(), rel=1e-5)


def test_it_beats_the_seasonal_naive_and_its_intervals_cover(prepared: Prepared, forecast: BaselineForecast) -> None:
    windows = prepared.fold("test", "evaluate")
    target = prepared.panel.targets(windows)
    own = Predictive(torch.from_numpy(forecast.quantiles))
    naive = Predictive(torch.from_numpy(forecast_fold("seasonal_naive", prepared, Baselines()).quantiles))
    assert forecast.quantiles.shape == (*target.shape, len(LEVELS))
    assert forecast.notes == []
    # the noise is independent, so the naive error has sqrt(2) times its deviation; the mean of four seasons sqrt(5 / 4)
    assert scores.wql(own, target) < 0.95 * scores.wql(naive, target)
    # coverage of quantiles that come from n_fit residuals, on n_test targets: binomial of both (Vovk, 2012)
    inside = scores.coverage(*(own.quantile(torch.tensor(level)) for level in (0.1, 0.9)), target).double().mean()
    check = prepared.windows["early_stopping"]
    steps = torch.stack([check.series.repeat_interleave(6), (check.cutoff[:, None] + torch.arange(6)).flatten()])
    n_fit = torch.unique(steps, dim=1).shape[1]
    deviation = np.sqrt(0.8 * 0.2 * (1 / target.numel() + 1 / n_fit))
    assert abs(float(inside) - 0.8) < 4 * deviation


def test_a_second_run_gives_the_same_numbers(prepared: Prepared, forecast: BaselineForecast) -> None:
    np.testing.assert_array_equal(forecast_fold("gradient_boosting", prepared, Baselines()).quantiles, forecast.quantiles)


def test_only_the_training_and_early_stopping_folds_teach_it() -> None:
    for own, purpose in (("train", "fit baselines"), ("early_stopping", "fit baseline quantiles")):
        for fold in PURPOSES:
            if fold == own:
                assert claim(fold, purpose) == fold
            else:
                with pytest.raises(FoldLeak):
                    claim(fold, purpose)


def test_values_after_its_folds_do_not_change_what_it_learnt(prepared: Prepared, forecast: BaselineForecast) -> None:
    windows = prepared.fold("test", "evaluate")
    rows, opening = prepared.panel.rows.clone(), []
    for index in windows.series.unique().tolist():
        opening.append(int((windows.series == index).nonzero()[0]))
        start, stop = int(prepared.panel.offsets[index]), int(prepared.panel.offsets[index + 1])
        rows[start + int(windows.cutoff[opening[-1]]) : stop, 0] = 1e4  # all that the test fold holds
    changed = replace(prepared, panel=replace(prepared.panel, rows=rows))
    after = forecast_fold("gradient_boosting", changed, Baselines()).quantiles
    np.testing.assert_array_equal(after[opening], forecast.quantiles[opening])


def test_an_empty_fold_and_an_unknown_name_are_told_in_one_sentence(prepared: Prepared) -> None:
    none = Windows(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    with pytest.raises(UserError, match=r"early_stopping fold holds no window.*baselines\.models"):
        forecast_boosting(replace(prepared, windows=prepared.windows | {"early_stopping": none}), np.array(LEVELS))
    with pytest.raises(UserError, match=r"baselines\.models.*'arima'.*seasonal_naive, auto_ets, gradient_boosting, prophet"):
        forecast_fold("arima", prepared, Baselines())
