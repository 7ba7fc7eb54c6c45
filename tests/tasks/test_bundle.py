"""The bundle forecasts exactly what was evaluated, from a folder without pickles that cannot be changed unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.bundle import FORECAST_COLUMNS, Bundle, bundle_digest, write_bundle
from tasks.calibrate import load_calibration
from tasks.ensemble import pooled
from tasks.errors import UserError
from tasks.files import file_md5, read_json, write_json
from tasks.future import with_future_rows
from tasks.params import Params
from tasks.prepare import load_prepared


@pytest.fixture(scope="module")
def folder(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle") / "project"
    shutil.copytree(evaluated_project, root)
    return write_bundle(Params.load(root=root), root)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(folder, "tiny version 1")


@pytest.fixture(scope="module")
def history(evaluated_project: Path) -> pd.DataFrame:
    return pd.read_parquet(evaluated_project / "data/ingested/panel.parquet")


@pytest.fixture(scope="module")
def forecast(bundle: Bundle, history: pd.DataFrame) -> pd.DataFrame:
    return bundle.forecast(with_future_rows(history, bundle.encoding))


def test_it_holds_weights_and_json_alone_and_is_written_the_same_again(folder: Path, tmp_path: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert len(list((folder / "members").rglob("*.safetensors"))) == 4
    digest, root = bundle_digest(folder), tmp_path / "again"
    shutil.copytree(folder.parents[1], root)
    assert bundle_digest(write_bundle(Params.load(root=root), root)) == digest


@pytest.mark.parametrize("damage", ["changed", "missing"])
@pytest.mark.parametrize("name", ["gate.safetensors", "bundle.json", "members/tcn/member_1.safetensors"])
def test_a_damaged_file_is_named_and_nothing_is_loaded(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=f"file '{name}' is not the one that was registered"):
        Bundle.load(copy)


def test_a_manifest_that_points_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    write_json(copy / "manifest.json", read_json(copy / "manifest.json") | {"../outside": "0" * 32})
    with pytest.raises(UserError, match="lies outside of it"):
        Bundle.load(copy)


def test_params_of_another_version_are_told_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    content = read_json(copy / "bundle.json")
    content["params"]["calibration"]["score"] = "yesterdays"
    write_json(copy / "bundle.json", content)
    write_json(copy / "manifest.json", read_json(copy / "manifest.json") | {"bundle.json": file_md5(copy / "bundle.json")})
    with pytest.raises(
        UserError, match=r"tiny version 1 was registered with .*: calibration\.score is 'yesterdays'; it must be one"
    ):
        Bundle.load(copy, "tiny version 1")


def test_the_table_has_the_columns_of_the_contract_and_ordered_bands(forecast: pd.DataFrame, history: pd.DataFrame) -> None:
    assert tuple(forecast.columns) == FORECAST_COLUMNS == (
        "unique_id", "ds", "cutoff", "mean", "median", "lo-80", "hi-80", "lo-90", "hi-90", "lo-95", "hi-95",
        "joint-lo-90", "joint-hi-90", "aleatoric", "epistemic", "ood_score", "ood_pvalue", "is_ood", "abstain", "model",
    )  # fmt: skip
    assert not forecast.isna().any().any()
    assert forecast.groupby("unique_id").size().tolist() == [6] * 7
    ends = history.groupby("unique_id")["ds"].max()
    assert (forecast["cutoff"] == forecast["unique_id"].map(ends)).all()
    assert ((forecast["ds"] - forecast["cutoff"]).dt.total_seconds() / 3600).tolist() == [1, 2, 3, 4, 5, 6] * 7
    outer = forecast["median"]
    for level in (80, 90, 95):
        assert (forecast[f"lo-{level}"] <= outer).all()
        outer = forecast[f"lo-{level}"]
    outer = forecast["median"]
    for level in (80, 90, 95):
        assert (forecast[f"hi-{level}"] >= outer).all()
        outer = forecast[f"hi-{level}"]
    assert (forecast["joint-lo-90"] <= forecast["median"]).all()
    assert (forecast["joint-hi-90"] >= forecast["median"]).all()
    assert (forecast[["aleatoric", "epistemic"]] >= 0).all().all()
    assert forecast["ood_pvalue"].between(0, 1).all()
    assert (forecast["is_ood"] == (forecast["ood_pvalue"] <= 0.05)).all()
    assert (forecast["abstain"] | ~forecast["is_ood"]).all(), "strange input is withheld"
    assert set(forecast["model"]) == {"tiny version 1"}


def test_it_forecasts_from_a_test_cutoff_what_was_evaluated_there(
    bundle: Bundle, history: pd.DataFrame, evaluated_project: Path
) -> None:
    prepared = load_prepared(evaluated_project)
    calibration = load_calibration(evaluated_project)[0]["ensemble"]
    windows = prepared.windows["test"]
    chosen = torch.from_numpy(prepared.cutoff_time(windows) == prepared.cutoff_time(windows).max())
    predictive = calibration.apply(pooled(evaluated_project, "ensemble", "test", "evaluate"))
    lower, upper = calibration.interval(predictive, 90, [])
    cutoff = pd.Timestamp(prepared.cutoff_time(windows).max()).to_pydatetime()
    table = bundle.forecast(with_future_rows(history, bundle.encoding, cutoff))
    assert sorted(table["unique_id"].unique()) == prepared.ids[windows.series[chosen].numpy()].tolist()
    for column, values in (("median", predictive.median), ("lo-90", lower), ("hi-90", upper)):
        np.testing.assert_allclose(table[column].to_numpy(), values[chosen].numpy().ravel(), rtol=1e-4, err_msg=column)


def test_a_series_is_forecast_the_same_alone_or_among_others(
    bundle: Bundle, history: pd.DataFrame, forecast: pd.DataFrame
) -> None:
    alone = history[history["unique_id"] == "f"].reset_index(drop=True)
    table = bundle.forecast(with_future_rows(alone, bundle.encoding))
    among = forecast[forecast["unique_id"] == "f"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, among, rtol=1e-4, check_dtype=False)


def test_a_forecast_follows_the_units_of_its_series(bundle: Bundle, history: pd.DataFrame, forecast: pd.DataFrame) -> None:
    """Windows are scaled by their own history, so a series in other units has the same forecast in those units."""
    scaled = history.assign(y=history["y"] * 8)  # a power of two: no rounding in the scaling itself
    table = bundle.forecast(with_future_rows(scaled, bundle.encoding))
    for column in ("mean", "median", "lo-95", "hi-95", "joint-hi-90"):
        np.testing.assert_allclose(table[column], forecast[column] * 8, rtol=1e-4, err_msg=column)
    np.testing.assert_allclose(table["aleatoric"], forecast["aleatoric"] * 64, rtol=1e-3)


def test_a_new_series_and_a_very_short_one_are_forecast_and_one_value_is_told(bundle: Bundle) -> None:
    def rows(name: str, steps: int) -> pd.DataFrame:
        ds = pd.date_range("2024-03-05", periods=steps, freq="h")
        return pd.DataFrame({"unique_id": name, "ds": ds, "y": 50 + np.sin(np.arange(steps) / 4)})

    frame = pd.concat([rows("five", 5), rows("never seen", 200)], ignore_index=True)
    table = bundle.forecast(with_future_rows(frame, bundle.encoding))
    assert not table.isna().any().any()
    assert table.groupby("unique_id")["median"].mean().between(40, 60).all()
    with pytest.raises(UserError, match="series one has 1 value; a forecast needs at least 2"):
        bundle.forecast(with_future_rows(rows("one", 1), bundle.encoding))


@pytest.mark.parametrize(
    "disturb", [lambda y: y + 400.0, lambda y: y * np.where(np.arange(len(y)) % 2, 20.0, -20.0)], ids=["level", "variance"]
)
def test_input_unlike_any_other_raises_the_alarm(
    bundle: Bundle, history: pd.DataFrame, disturb: Callable[[np.ndarray], np.ndarray]
) -> None:
    strange = history[history["unique_id"] == "a"].reset_index(drop=True)
    recent = strange.index[-24:]
    strange.loc[recent, "y"] = disturb(strange.loc[recent, "y"].to_numpy())
    table = bundle.forecast(with_future_rows(strange, bundle.encoding))
    assert table["is_ood"].all()
    assert table["abstain"].all()


def test_counts_are_not_forecast_below_zero(bundle: Bundle, history: pd.DataFrame) -> None:
    low = history.assign(y=history["y"] - history.groupby("unique_id")["y"].transform("mean"))
    plain = bundle.forecast(with_future_rows(low, bundle.encoding))
    assert (plain["lo-95"] < 0).any()
    counted = replace(bundle, encoding=replace(bundle.encoding, minimum=0.0))
    table = counted.forecast(with_future_rows(low, counted.encoding))
    bands = [column for column in FORECAST_COLUMNS if column in ("mean", "median") or column[-2:] in ("80", "90", "95")]
    assert (table[bands] >= 0).all().all()
    np.testing.assert_allclose(table["hi-95"], plain["hi-95"].clip(lower=0))
