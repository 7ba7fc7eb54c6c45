"""The registry: champion first, challenger with a comparison afterwards, and nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from tasks.errors import UserError
from tasks.files import file_md5, read_json, write_json
from tasks.forecast import check_output, forecast_table, write_forecast
from tasks.params import Params
from tasks.registry import load_challenger, load_champion, register, set_aside
from tasks.summary import receipt_text
from tasks.tracking import initialise, parent_run
from tasks.versions import RECEIPT

NAME = "weatherglass"


@pytest.fixture(scope="module")
def project(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The evaluated project with a store of its own, in which nothing is registered."""
    root = tmp_path_factory.mktemp("registry") / "project"
    shutil.copytree(evaluated_project, root)
    before = mlflow.get_tracking_uri()
    initialise(f"sqlite:///{root}/mlflow.db")
    yield root
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def receipts(project: Path) -> list[dict[str, Any]]:
    """Receipts of a first version, of the same again, of another one, and of the first once more."""
    params = Params.load(root=project)
    with pytest.raises(UserError, match="holds no model 'weatherglass' with alias 'champion'; run `weatherglass run` first"):
        load_champion(NAME)
    metrics = read_json(project / "metrics/test.json")
    found = []
    for wql in (metrics["ensemble/wql"], metrics["ensemble/wql"], 0.0123, metrics["ensemble/wql"]):
        write_json(project / "metrics/test.json", metrics | {"ensemble/wql": wql})
        run_id = parent_run(project, "registering", {"params": "same"})
        found.append(read_json(register(params, project, run_id)))
    return found


def test_the_first_version_is_champion_and_the_same_bundle_again_changes_nothing(receipts: list[dict[str, Any]]) -> None:
    first, again = receipts[:2]
    assert (first["version"], first["alias"]) == ("1", "champion")
    assert "champion" not in first
    assert again == first


def test_pages_of_the_registry_say_what_is_guaranteed(receipts: list[dict[str, Any]]) -> None:
    client = MlflowClient()
    assert "@previous_champion" in client.get_registered_model(NAME).description
    told = client.get_model_version(NAME, receipts[0]["version"]).description
    assert "Guarantee card" in told and f"| wql | {receipts[0]['metrics']['wql']:.4f} |" in told


def test_another_bundle_is_challenger_and_is_compared(receipts: list[dict[str, Any]], project: Path) -> None:
    first, challenger = receipts[0], receipts[2]
    assert (challenger["version"], challenger["alias"]) == ("2", "challenger")
    assert challenger["metrics"]["wql"] == 0.0123
    assert challenger["champion"]["version"] == "1"
    assert challenger["champion"]["metrics"] == pytest.approx(first["metrics"], rel=1e-5)
    client = MlflowClient()
    aliases = {str(key): str(value) for key, value in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"champion": "1", "challenger": "2"}
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2, "four registrations of two bundles"
    assert receipts[3] == first == read_json(project / RECEIPT)


def test_an_experiment_leaves_the_registry_alone(receipts: list[dict[str, Any]], project: Path) -> None:
    client = MlflowClient()
    before = dict(client.get_registered_model(NAME).aliases)
    kept = (project / RECEIPT).read_bytes()
    receipt = read_json(set_aside(Params.load(root=project), project, "wide"))
    assert (receipt["version"], receipt["alias"], receipt["bundle"]) == (None, None, receipts[0]["bundle"])
    assert "dvc exp apply wide" in receipt_text(receipt)
    assert dict(client.get_registered_model(NAME).aliases) == before
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    (project / RECEIPT).write_bytes(kept)


def test_the_champion_forecasts_and_no_pickle_is_needed(
    receipts: list[dict[str, Any]], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    table, bundle = forecast_table(project, NAME, "champion")
    assert bundle.name == "weatherglass version 1"
    history = pd.read_parquet(project / "data/ingested/panel.parquet")
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(history)
    columns = [column for column in table.columns if column != "model"]
    pd.testing.assert_frame_equal(served[columns], table[columns], rtol=1e-6, check_dtype=False)
    with pytest.raises(UserError, match="alias 'previous_champion'"):
        load_champion(NAME, "previous_champion")


def test_the_registered_model_says_what_it_takes_and_gives(receipts: list[dict[str, Any]]) -> None:
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    assert info.signature.inputs.input_names() == ["unique_id", "ds", "y"]
    assert {"median", "lo-90", "joint-hi-90", "is_ood"} <= set(info.signature.outputs.input_names())


def test_forecasting_needs_a_panel_or_a_file(receipts: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"panel\.parquet is not there; run `weatherglass run` first or give --data FILE\."):
        forecast_table(tmp_path, NAME, "champion")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_forecast_is_written_the_same_twice_and_read_back_whole(tmp_path: Path, ending: str) -> None:
    table = pd.DataFrame({"unique_id": ["a", "b"], "ds": pd.to_datetime(["2024-01-01"] * 2), "lo-80": [0.1, 1 / 3]})
    for name in ("one", "two"):
        write_forecast(table, tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    path = tmp_path / f"one.{ending}"
    back = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path, parse_dates=["ds"])
    pd.testing.assert_frame_equal(back, table, check_dtype=False)


def test_an_output_of_another_kind_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    old = tmp_path / "forecast.xlsx"
    old.write_text("old")
    with pytest.raises(UserError, match=r"its name must end in \.parquet or \.csv\.$"):
        write_forecast(pd.DataFrame({"a": [1]}), old)
    with pytest.raises(UserError, match="forecast'"):
        check_output(tmp_path / "forecast")
    assert old.read_text() == "old"


@pytest.mark.parametrize("damage", ["weights", "manifest", "both"])
def test_a_damaged_copy_is_refused_and_registering_again_makes_a_whole_one(
    receipts: list[dict[str, Any]], project: Path, damage: str
) -> None:
    stored = next(Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1")).rglob("manifest.json")).parent
    weights, manifest = stored / "members/tcn/member_0.safetensors", stored / "manifest.json"
    before = {path: path.read_bytes() for path in (weights, manifest)}
    if damage != "manifest":
        weights.write_bytes(before[weights][:-1] + b"!")
    if damage == "manifest":
        manifest.write_text("{")
    if damage == "both":
        name = str(weights.relative_to(stored))
        write_json(manifest, read_json(manifest) | {name: file_md5(weights)})
    try:
        with pytest.raises(UserError, match=r"^weatherglass version 1 is damaged: the bundle's file") as caught:
            load_champion(NAME)
        assert "dvc repro -s -f register" in str(caught.value)
        if damage == "both":
            again = read_json(
                register(Params.load(root=project), project, parent_run(project, "registering", {"params": "same"}))
            )
            assert (again["version"], again["bundle"]) == ("3", receipts[0]["bundle"])
            assert load_champion(NAME, "challenger").name == "weatherglass version 3"
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_a_challenger_whose_receipt_alone_came_back_gets_its_alias(receipts: list[dict[str, Any]]) -> None:
    client, other = MlflowClient(), receipts[2]
    client.delete_registered_model_alias(NAME, "challenger")
    bundle = load_challenger(NAME, other["version"], other["bundle"])
    assert bundle.name == f"{NAME} version {other['version']}"
    assert str(client.get_model_version_by_alias(NAME, "challenger").version) == other["version"]
