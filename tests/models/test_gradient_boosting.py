"""Gradient boosting sees no future, its trees are scikit-learn's, and it is better and as calibrated as can be shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model

from models.calendar import Calendar
from models.forecasters.config import GradientBoostingConfig
from models.forecasters.factory import build_forecaster
from models.forecasters.gradient_boosting import PHASES, GradientBoosting, boosting_rows, feature_names, fit_boosting
from models.layers.trees import TreeEnsemble
from models.panel import Panel, PanelSchema, SequentialLoader, Windows
from models.predictive import Predictive
from models.uncertainty import scores

SEASON, HORIZON, CONTEXT = 4, 6, 24
SCHEMA = PanelSchema(
    known=("price",),
    past=("weather",),
    static=(("unique_id", 3),),
    categories=(("holiday", 3),),
    lags=(8, 40),
    context=CONTEXT,
    horizon=HORIZON,
    season_length=SEASON,
)
CONFIG = GradientBoostingConfig(rows=6000, trees=60, least_rows=20)
NONE = Windows(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def make(lengths: tuple[int, ...] = (100, 20), noise: float = 2.0) -> Panel:
    """Series of a season of 4 and independent normal noise."""
    rng = np.random.default_rng(0)
    total = sum(lengths)
    rows = rng.normal(0, 1, (total, 3)).astype(np.float32)
    rows[:, 0] = 50 + 5 * np.sin(2 * np.pi * np.arange(total) / SEASON) + noise * rows[:, 0]
    codes = torch.from_numpy(rng.integers(0, 3, (total, 1)))
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    static = torch.arange(1, len(lengths) + 1)[:, None]
    calendar = Calendar.of_rows(torch.zeros(total, 0), codes, offsets)
    return Panel(SCHEMA, torch.from_numpy(rows), calendar, static, offsets, torch.tensor(lengths))


def one(series: int, cutoff: int) -> Windows:
    return Windows(torch.tensor([series]), torch.tensor([cutoff]))


@pytest.fixture(scope="module")
def long() -> Panel:
    return make((1500, 1500))


def cutoffs(first: int, last: int, stride: int) -> Windows:
    steps = torch.arange(first, last, stride)
    return Windows(torch.cat([torch.zeros_like(steps), torch.ones_like(steps)]), steps.repeat(2))


@pytest.fixture(scope="module")
def fitted(long: Panel) -> GradientBoosting:
    return fit_boosting(long, cutoffs(50, 1000, 1), cutoffs(1010, 1250, 1), CONFIG, seed=1)[0]


def answer(model: GradientBoosting, panel: Panel, windows: Windows) -> torch.Tensor:
    return torch.cat([model.predict(batch).quantiles for batch in SequentialLoader(panel, windows, 256)])


def test_rows_hold_nothing_of_the_target_or_past_only_covariates_after_the_cutoff() -> None:
    panel, cutoff = make(), 60
    rows = panel.rows.clone()
    rows[cutoff:100, 0] = 1e6
    rows[cutoff:, 2] = 1e6
    before = boosting_rows(panel.gather(one(0, cutoff)), SCHEMA)
    after = boosting_rows(replace(panel, rows=rows).gather(one(0, cutoff)), SCHEMA)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def test_rows_are_the_lags_covariates_and_base_that_their_names_say() -> None:
    panel, cutoff = make(), 70
    batch = panel.gather(one(0, cutoff))
    loc, scale = batch["target_scale"][0].tolist()
    y = (panel.rows[:100, 0].numpy() - loc) / scale
    features, base = boosting_rows(batch, SCHEMA)
    names = feature_names(SCHEMA)
    assert features.shape == (1, HORIZON, len(names))
    column = {name: features[0, :, index].numpy() for index, name in enumerate(names)}
    for step in range(HORIZON):
        phase = SEASON if step < SEASON else 2 * SEASON  # step 5 of 6 has its phase two seasons of 4 back
        same = [y[cutoff + step - phase - SEASON * number] for number in range(PHASES)]
        own = np.mean([y[cutoff + step - 40 - phase - SEASON * number] for number in range(PHASES)])
        assert base[0, step] == pytest.approx(np.mean(same), abs=1e-5)
        assert column["season_2_back"][step] == pytest.approx(same[1] - np.mean(same), abs=1e-5)
        assert column["lag_40"][step] == pytest.approx(y[cutoff + step - 40] - np.mean(same), abs=1e-5)
        assert column["lag_40_less_its_base"][step] == pytest.approx(y[cutoff + step - 40] - own, abs=1e-5)
    np.testing.assert_array_equal(column["step"], np.arange(1, HORIZON + 1))
    np.testing.assert_array_equal(column["price"], panel.rows[cutoff : cutoff + HORIZON, 1])
    np.testing.assert_array_equal(column["holiday"], panel.calendar.codes[cutoff : cutoff + HORIZON, 0])
    assert column["holiday_1_back"][0] == (panel.calendar.codes[cutoff - SEASON, 0] > 0)
    assert set(column["unique_id"]) == {1.0}
    assert column["level"][0] == pytest.approx(loc / scale, rel=1e-5)


def test_a_short_series_has_gaps_and_nothing_of_another_series() -> None:
    panel = make()
    batch = panel.gather(one(1, 2))
    features, base = boosting_rows(batch, SCHEMA)
    assert torch.isnan(features[0, 0, feature_names(SCHEMA).index("season_1_back")])
    assert base[0, 0] == batch["encoder_cont"][0, 1, 0], "no value of the same phase is known, so the last one stands in"
    other = panel.rows.clone()
    other[:100] = 1e6
    again = boosting_rows(replace(panel, rows=other).gather(one(1, 2)), SCHEMA)[0]
    torch.testing.assert_close(features, again, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("loss", ["squared_error", "gamma"])
def test_trees_as_tensors_answer_as_scikit_learn_does(loss: str) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 5)).astype(np.float32)
    y = np.exp(x[:, 0] * (x[:, 1] > 0) + 0.1 * rng.normal(size=3000))
    x[rng.random(x.shape) < 0.1] = np.nan
    model = HistGradientBoostingRegressor(loss=loss, max_iter=30, random_state=0).fit(x[:2000], y[:2000])
    np.testing.assert_allclose(TreeEnsemble.from_sklearn(model)(torch.from_numpy(x)).numpy(), model.predict(x), rtol=1e-12)


def test_a_tree_that_splits_on_a_category_is_refused() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    codes = np.arange(600)[:, None] % 6
    model = HistGradientBoostingRegressor(max_iter=2, categorical_features=[0]).fit(codes, (codes[:, 0] % 2) * 1.0)
    with pytest.raises(ValueError, match="splits on a category"):
        TreeEnsemble.from_sklearn(model)


def test_its_weights_come_back_from_a_file(fitted: GradientBoosting, long: Panel, tmp_path: Path) -> None:
    save_model(fitted, str(tmp_path / "w.safetensors"))
    empty = build_forecaster("gradient_boosting", SCHEMA, CONFIG)
    load_model(empty, str(tmp_path / "w.safetensors"), strict=True)
    windows = cutoffs(1300, 1400, 20)
    torch.testing.assert_close(answer(empty, long, windows), answer(fitted, long, windows), rtol=0, atol=0)


def test_it_beats_the_seasonal_naive_and_its_intervals_cover(fitted: GradientBoosting, long: Panel) -> None:
    windows = cutoffs(1260, 1494, HORIZON)
    target = long.targets(windows)
    own = Predictive(answer(fitted, long, windows))
    rows = long.offsets[windows.series][:, None] + windows.cutoff[:, None] + torch.arange(HORIZON)
    naive = long.rows[:, 0][rows - 2 * SEASON]
    # the noise is independent, so the naive error has sqrt(2) times its deviation; the mean of four seasons sqrt(5 / 4)
    assert scores.wape(own.median, target) < 0.95 * scores.wape(naive, target)
    # coverage of quantiles that come from n_fit residuals, on n_test targets: binomial of both (Vovk, 2012)
    inside = scores.coverage(*(own.quantile(torch.tensor(level)) for level in (0.1, 0.9)), target).double().mean()
    deviation = np.sqrt(0.8 * 0.2 * (1 / target.numel() + 1 / 480))
    assert abs(float(inside) - 0.8) < 4 * deviation


def test_a_seed_gives_the_same_model_and_another_seed_another(long: Panel, fitted: GradientBoosting) -> None:
    windows = cutoffs(1300, 1400, 20)
    for seed, same in ((1, True), (2, False)):
        model, losses = fit_boosting(long, cutoffs(50, 1000, 1), cutoffs(1010, 1250, 1), CONFIG, seed)
        assert torch.equal(answer(model, long, windows), answer(fitted, long, windows)) == same
        assert 0 < losses["train_loss"] < losses["early_stopping_loss"] * 1.2


def test_values_after_its_folds_do_not_change_what_it_learnt(long: Panel, fitted: GradientBoosting) -> None:
    rows = long.rows.clone()
    for start in long.offsets[:-1].tolist():
        rows[start + 1260 : start + 1500, 0] = 1e4
    model, _ = fit_boosting(replace(long, rows=rows), cutoffs(50, 1000, 1), cutoffs(1010, 1250, 1), CONFIG, seed=1)
    windows = cutoffs(900, 1000, 20)
    torch.testing.assert_close(answer(model, long, windows), answer(fitted, long, windows), rtol=0, atol=0)


def test_an_empty_fold_is_named_and_an_empty_column_does_no_harm() -> None:
    panel = make((60, 60))
    early = cutoffs(26, 34, 1)  # before lag_40 reaches any value at its first steps
    with pytest.raises(ValueError, match="early_stopping fold holds no window"):
        fit_boosting(panel, early, NONE, CONFIG, seed=1)
    config = GradientBoostingConfig(rows=100, trees=2, least_rows=5)
    model, _ = fit_boosting(panel, cutoffs(2, 5, 1), cutoffs(20, 26, 1), config, seed=1)
    assert bool(torch.isfinite(answer(model, panel, cutoffs(30, 40, 5))).all())
