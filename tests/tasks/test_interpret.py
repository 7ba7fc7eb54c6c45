"""What TFT looks at: the three interpretations as tables, for each forecast, and in the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from models.calendar import Calendar
from models.forecasters.config import TFTConfig
from models.forecasters.factory import build_forecaster
from models.forecasters.tft import TFT
from models.interpretation import lag_profile, pattern_distance
from models.panel import Panel, PanelSchema, WindowLoader, Windows
from tasks.calendar import holiday_codes
from tasks.files import read_json
from tasks.interpret import INTERPRETATION, Reading, Regime, importance_table, interpret, read_windows
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared
from tasks.report import Interpretation, ReportData, render_report
from tasks.report_interpretation import finding, season_ratio
from tasks.train import TRAINED

MEMBERS = 2
HALF_A_DIGIT = 5e-7  # the tables hold six decimals
REGIMES = {"familiarity": {"familiar", "unusual", "flagged"}, "spread": {"calm", "ordinary", "extreme"},
           "holiday": {"none ahead", "ahead"}}  # fmt: skip


def write_members(params: Params, root: Path) -> None:
    """Lay out ``artifacts/train/tft`` as training does, with networks as they are before it."""
    from safetensors.torch import save_model

    from tasks.predict import predict_windows
    from tasks.settings import FOLDS

    prepared, folder = load_prepared(root), root / TRAINED / "tft"
    panel, train = prepared.panel, prepared.windows["train"][::20]
    folder.mkdir(parents=True)
    quantiles: dict[str, list[np.ndarray]] = {fold: [] for fold in FOLDS}
    for index in range(MEMBERS):
        torch.manual_seed(index)
        member = build_forecaster("tft", panel.schema, params.forecasters.tft).eval()
        save_model(member, str(folder / f"member_{index}.safetensors"))
        for fold in FOLDS:
            values, features, _ = predict_windows(member, panel, prepared.windows[fold], index)
            quantiles[fold].append(values)
            if index == 0:
                np.save(folder / f"features_{fold}.npy", features)
        if index == 0:
            np.save(folder / "features_train.npy", predict_windows(member, panel, train, index)[1])
    for fold, parts in quantiles.items():
        np.save(folder / f"quantiles_{fold}.npy", np.stack(parts))
    np.save(folder / "windows_sample.npy", torch.stack([train.series, train.cutoff]).numpy())


@pytest.fixture(scope="module")
def project(
    new_project: Callable[[Path], Path], edit_params: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny project up to interpret, its time moved so that the Fourth of July lies in the test fold."""
    from tasks.calibrate import calibrate
    from tasks.ensemble import make_ensemble
    from tasks.ingest import ingest
    from tasks.prepare import prepare

    root = new_project(tmp_path_factory.mktemp("interpret") / "project")
    table = pd.read_csv(root / "data/raw/hourly.csv", parse_dates=["ds"])
    table["ds"] += pd.Timestamp("2024-07-05 23:00") - table["ds"].max()
    table.to_csv(root / "data/raw/hourly.csv", index=False)
    edit_params(root, {"families": ["tft"], "baselines.models": ["seasonal_naive"], "data.holidays": "US",
                       "train.members": MEMBERS})  # fmt: skip
    params = Params.load(root=root)
    for work in (ingest, prepare, write_members, make_ensemble, calibrate, interpret):
        work(params, root)
    return root


@pytest.fixture(scope="module")
def prepared(project: Path) -> Prepared:
    return load_prepared(project)


def table(project: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(project / INTERPRETATION / f"{name}.csv", keep_default_na=False)


def test_importances_add_to_one_over_each_kind_and_name_its_variables(project: Path, prepared: Prepared) -> None:
    rows = table(project, "variable_importance")
    schema = prepared.panel.schema
    variables = TFT(schema, Params.load(root=project).forecasters.tft).variables
    for kind, part in rows.groupby("kind"):
        assert sorted(part["variable"]) == sorted(variables[str(kind)])
        assert part["weight"].sum() == pytest.approx(1, abs=len(part) * HALF_A_DIGIT)
        assert part["weight"].is_monotonic_decreasing
    assert set(rows["kind"]) == {"static", "encoder", "decoder"}
    assert (rows["low"] <= rows["high"]).all()
    assert (rows["member_spread"] >= 0).all()


def test_attention_adds_to_one_over_lags_and_the_horizon_is_read_at_short_ones(project: Path, prepared: Prepared) -> None:
    rows, schema = table(project, "attention_by_lag"), prepared.panel.schema
    assert rows["lag"].tolist() == list(range(1, schema.context + schema.horizon))
    assert rows["attention"].sum() == pytest.approx(1, abs=len(rows) * HALF_A_DIGIT)
    np.testing.assert_allclose(rows["history"] + rows["horizon"], rows["attention"], atol=3 * HALF_A_DIGIT)
    assert (rows["horizon"][rows["lag"] >= schema.horizon] <= HALF_A_DIGIT).all()
    assert (rows["horizon"][rows["lag"] < schema.horizon] > 0).all()


def test_regimes_divide_the_windows_and_their_importances_average_to_the_whole(project: Path, prepared: Prepared) -> None:
    rows = table(project, "regimes")
    everything, n = rows.iloc[0], len(prepared.windows["test"])
    assert (everything["split"], everything["windows"], everything["pattern_distance"]) == ("all", n, 0)
    assert set(rows["split"][1:]) == set(REGIMES)
    names = ["distance", *(name for name in rows.columns if "." in name)]
    for split, part in rows[1:].groupby("split"):
        assert set(part["regime"]) <= REGIMES[str(split)]
        assert part["windows"].sum() == n
        mean = np.average(part[names].to_numpy(float), axis=0, weights=part["windows"])
        np.testing.assert_allclose(mean, everything[names].to_numpy(float), atol=2 * HALF_A_DIGIT)
    assert rows[["distance", "pattern_distance"]].to_numpy().min() >= 0
    assert rows[["distance", "pattern_distance"]].to_numpy().max() <= 1


def test_a_holiday_ahead_is_one_that_the_horizon_holds(project: Path, prepared: Prepared) -> None:
    rows = table(project, "regimes").set_index(["split", "regime"])
    times = prepared.target_time(prepared.windows["test"])
    codes, _ = holiday_codes(pd.DatetimeIndex(times.ravel()), "US")
    ahead = (codes.reshape(times.shape) > 0).any(axis=1)
    assert 0 < ahead.sum() < len(ahead)
    assert rows.loc[("holiday", "ahead"), "windows"] == ahead.sum()
    forecasts = pd.read_parquet(project / INTERPRETATION / "forecasts.parquet")
    assert ((forecasts["holiday"] == "ahead") == ahead).all()


def test_each_forecast_has_its_own_reading(project: Path, prepared: Prepared) -> None:
    rows, windows = pd.read_parquet(project / INTERPRETATION / "forecasts.parquet"), prepared.windows["test"]
    assert rows["unique_id"].tolist() == prepared.ids[windows.series.numpy()].tolist()
    assert (rows["cutoff"] == prepared.cutoff_time(windows)).all()
    for kind in ("static", "encoder", "decoder"):
        weights = rows[[name for name in rows.columns if name.startswith(f"{kind}.")]]
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)  # float32
        assert (weights.idxmax(axis=1).str.removeprefix(f"{kind}.") == rows[f"{kind}_1"]).all()
    attention = np.stack(rows["attention_by_lag"].to_list())
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)
    assert (attention.argmax(axis=1) + 1 == rows["strongest_lag"]).all()
    mean = table(project, "variable_importance").query("kind == 'encoder' and variable == 'target'")["weight"].item()
    assert rows["encoder.target"].mean() == pytest.approx(mean, abs=1e-5)


def test_the_picture_and_what_it_was_made_from(project: Path, prepared: Prepared) -> None:
    folder = project / INTERPRETATION
    assert (folder / "interpretation.png").read_bytes().startswith(b"\x89PNG")
    about = read_json(folder / "interpretation.json")
    assert (about["family"], about["members"], about["windows"]) == ("tft", MEMBERS, len(prepared.windows["test"]))


def test_without_tft_the_folder_says_so_and_holds_nothing_else(
    project: Path, tmp_path: Path, edit_params: Callable[..., None]
) -> None:
    from tasks.evidence import load_interpretation

    shutil.copytree(project / INTERPRETATION, tmp_path / INTERPRETATION)
    shutil.copyfile(project / "params.yaml", tmp_path / "params.yaml")
    assert load_interpretation(tmp_path) is not None
    edit_params(tmp_path, {"families": ["tcn", "mamba"]})
    folder = interpret(Params.load(root=tmp_path), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["interpretation.json"]
    assert read_json(folder / "interpretation.json")["reason"] == "tft is not in params.yaml: families, which holds tcn, mamba"
    assert load_interpretation(tmp_path) is None


def planted_panel(seed: int = 0) -> Panel:
    """Three series that follow a known covariate of today and nothing else, beside two covariates that say nothing."""
    length, n_series = 300, 3
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_series * length, 4, generator=generator)
    rows[:, 0] = 5 + 2 * rows[:, 2] + 0.1 * rows[:, 0]
    schema = PanelSchema(known=("idle", "signal", "noise"), past=(), static=(("unique_id", 4),), categories=(), lags=(4,),
                         context=12, horizon=4, season_length=4)  # fmt: skip
    offsets = length * torch.arange(n_series + 1)
    static, observed = torch.arange(1, n_series + 1)[:, None], torch.full((n_series,), length - 4)
    return Panel(schema, rows, Calendar.none(offsets), static, offsets, observed)


@pytest.fixture(scope="module")
def planted() -> tuple[list[TFT], Panel, Windows, Reading]:
    """Two members trained for a short while on the planted panel, and their reading of 120 windows."""
    panel = planted_panel()
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        member = TFT(panel.schema, TFTConfig(hidden_size=8, attention_heads=2, hidden_continuous_size=4, dropout=0.0))
        optimiser = torch.optim.Adam(member.parameters(), lr=1e-2)
        first = np.full(panel.n_series, 12)
        train = panel.window_grid(first, np.full(panel.n_series, 240), 1, 12)
        for batch in WindowLoader(panel, train, 64, 120, seed):
            optimiser.zero_grad()
            member.loss(batch).backward()
            optimiser.step()
        members.append(member.eval())
    windows = panel.window_grid(np.full(panel.n_series, 245), np.full(panel.n_series, 290), 1, 12)
    everything = Regime("all", "all", torch.ones(len(windows), dtype=torch.bool))
    return members, panel, windows, read_windows(members, panel, windows, [everything])


def test_the_variable_that_decides_the_target_comes_out_on_top(planted: tuple[list[TFT], Panel, Windows, Reading]) -> None:
    members, _, _, reading = planted
    rows = importance_table(reading, members[0].variables).query("kind == 'decoder'")
    assert rows["variable"].iloc[0] == "signal"
    assert rows["weight"].iloc[0] > 0.4, "four variables share the weight"


def test_the_ensembles_importance_is_the_mean_of_its_members(planted: tuple[list[TFT], Panel, Windows, Reading]) -> None:
    members, panel, windows, reading = planted
    alone = [importance_table(read_windows([member], panel, windows, []), member.variables) for member in members]
    both = importance_table(reading, members[0].variables).set_index(["kind", "variable"])
    first, second = (rows.set_index(["kind", "variable"])["weight"].reindex(both.index) for rows in alone)
    np.testing.assert_allclose(both["weight"], (first + second) / 2, atol=1e-6)
    np.testing.assert_allclose(both["member_spread"], (first - second).abs() / np.sqrt(2), atol=1e-6)
    assert (alone[0]["member_spread"] == 0).all()


def test_a_reading_does_not_depend_on_how_windows_are_batched(
    planted: tuple[list[TFT], Panel, Windows, Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    members, panel, windows, reading = planted
    monkeypatch.setattr("tasks.interpret.BATCH", 7)
    again = read_windows(members, panel, windows, [])
    for mine, other in ((again.lags, reading.lags), (again.history, reading.history), (again.distance, reading.distance)):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=0)  # a distance is a root: float32's 1e-7 becomes 3e-4
    assert float(reading.regime_distance.max()) == 0, "a regime of all windows has the usual pattern"


def test_lags_count_from_the_step_that_is_forecast() -> None:
    context, horizon = 5, 3
    attention = torch.rand(2, horizon, context + horizon, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attention *= torch.ones(horizon, context + horizon).tril(context - 1)  # not the step itself nor later ones
    attention /= attention.sum(-1, keepdim=True)
    expected = torch.zeros(2, context + horizon - 1, dtype=torch.float64)
    for step in range(horizon):
        for position in range(context + step):
            expected[:, context + step - position - 1] += attention[:, step, position] / horizon
    found = lag_profile(attention, context)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="attention has 8 columns; context 6 and horizon 3"):
        lag_profile(attention, 6)


def test_distance_of_patterns_is_nought_for_equal_ones_and_one_without_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(40, 9, generator=generator).pow(4) for _ in range(2))
    assert pattern_distance(first, first).tolist() == [0.0] * 40
    torch.testing.assert_close(pattern_distance(first, 3 * first), torch.zeros(40, dtype=torch.float64), atol=1e-7, rtol=0)
    apart: Tensor = pattern_distance(torch.eye(3)[0], torch.eye(3)[1])
    assert float(apart) == pytest.approx(1)
    p, q = (side.double() / side.double().sum(-1, keepdim=True) for side in (first, second))
    torch.testing.assert_close(pattern_distance(first, second), (1 - (p * q).sqrt().sum(-1)).sqrt())
    torch.testing.assert_close(pattern_distance(first, second), pattern_distance(second, first))
    assert bool(((pattern_distance(first, second) > 0) & (pattern_distance(first, second) < 1)).all())


@pytest.fixture(scope="module")
def shown(project: Path) -> ReportData:
    """What the report of the project shows."""
    from tasks.evaluate import evaluate, run_baselines
    from tasks.evidence import report_data

    params = Params.load(root=project)
    run_baselines(params, project)
    metrics, evidence, prepared = evaluate(params, project)
    return report_data(params, project, metrics, evidence, prepared, {})


def test_the_report_shows_the_three_interpretations_and_how_to_read_them(shown: ReportData, project: Path) -> None:
    page = render_report(shown)
    section = page[page.index('aria-labelledby="interpretation"') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 3
    assert section.count("<figcaption>How to read: ") == 3
    for heading in ("Variables", "Attention by lag", "Regimes"):
        assert f"<h3>{heading}</h3>" in section
    top = table(project, "variable_importance").query("kind == 'encoder'").iloc[0]
    assert f"most weight to {top['variable']} ({100 * top['weight']:.1f}" in section
    assert page.count('href="#interpretation"') == 1


def test_the_section_is_absent_without_a_reading_and_one_sentence_without_tft(shown: ReportData) -> None:
    unread = render_report(replace(shown, interpretation=None))
    assert "What TFT looks at" not in unread
    without = render_report(replace(shown, interpretation=None, families=("tcn", "mamba")))
    section = without[without.index('aria-labelledby="interpretation"') :]
    section = section[: section.index("</section>")]
    assert "TFT is not among the families of this run (tcn, mamba)" in section
    assert "<svg" not in section


def test_the_season_is_found_where_attention_peaks_at_it(shown: ReportData) -> None:
    assert shown.interpretation is not None
    lags = np.arange(1, 41)
    level = np.full(40, 1 / 40)

    def look(attention: np.ndarray, season: int = 7) -> Interpretation:
        assert shown.interpretation is not None
        return replace(shown.interpretation, attention=attention, context=35, season_length=season)

    assert season_ratio(look(level)) == pytest.approx(1)
    assert "does not single out the season" in finding(look(level))
    peaks = np.where(lags % 7 == 0, 0.05, 0.02)
    assert season_ratio(look(peaks)) == pytest.approx(2.5)
    assert "finds the season: lags that are multiples of the season (7 steps) get 2.50 times" in finding(look(peaks))
    assert season_ratio(look(level, season=1)) is None
    assert season_ratio(look(level, season=52)) is None
    assert "season" not in finding(look(level, season=1))
