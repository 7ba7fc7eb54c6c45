"""The serving benchmark: its bodies hold the same rows, its verdict sees what goes wrong, and a short load finds nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlflow
import numpy as np
import orjson
import pandas as pd
import pytest

from benchmarks import serving
from benchmarks.serving_bodies import Windows, distinct
from benchmarks.serving_load import Sent, verdict
from tasks.encoding import Encoding
from tasks.errors import UserError
from tasks.params import Params
from tasks.prepare import PREPARED
from tasks.registry import register
from tasks.tracking import initialise, parent_run


@pytest.fixture(scope="module")
def windows(prepared_project: Path) -> Windows:
    frame = pd.read_parquet(prepared_project / "data/ingested/panel.parquet")
    encoding = Encoding.from_state(json.loads((prepared_project / PREPARED / "encoding.json").read_text()))
    return Windows.draw(frame, encoding, 20, seed=1, room=3)


@pytest.fixture
def project(evaluated_project: Path, tmp_path: Path) -> Iterator[Path]:
    """The evaluated project with a champion; environment and tracking URI are as before afterwards."""
    root, before = tmp_path / "project", mlflow.get_tracking_uri()
    shutil.copytree(evaluated_project, root)
    with patch.dict(os.environ, {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}):
        initialise()
        register(Params.load(root=root), root, parent_run(root, "serving", {"params": "same"}))
        yield root
    mlflow.set_tracking_uri(before)


def test_every_form_of_a_body_holds_the_same_rows(windows: Windows) -> None:
    names = ["first", "second"]
    ours, split, parquet = (windows.ask(form, "/", [3, 5], names).body for form in ("ours", "split", "parquet"))
    split_rows = orjson.loads(split)["dataframe_split"]
    tables = [
        pd.DataFrame(split_rows["data"], columns=split_rows["columns"]),
        pd.read_parquet(io.BytesIO(parquet)),
    ]
    for name, series, index in zip(names, orjson.loads(ours)["series"], (3, 5), strict=True):
        assert series["unique_id"] == name
        original = windows.frame.iloc[windows.ends[index] - windows.steps + 1 : windows.ends[index] + 1]
        assert series["y"][: windows.steps] == original["y"].tolist()
        assert series["y"][windows.steps :] == [None] * windows.encoding.schema.horizon
        for table in tables:
            rows = table[table["unique_id"] == name]
            np.testing.assert_array_equal(rows["y"].astype(float), np.array(series["y"], dtype=float))
            assert pd.to_datetime(rows["ds"]).tolist() == pd.to_datetime(pd.Series(series["ds"])).tolist()


def test_no_two_requests_are_alike_and_no_series_of_one_request_has_the_name_of_another(windows: Windows) -> None:
    bodies = [ask.body for ask in islice(distinct(windows, "ours", "/", 30, seed=2), 5)]
    names = [series["unique_id"] for body in bodies for series in orjson.loads(body)["series"]]
    assert len(set(bodies)) == 5 and len(set(names)) == 150


def test_a_panel_without_a_whole_history_is_told(windows: Windows) -> None:
    with pytest.raises(UserError, match="no series of the panel has"):
        Windows.draw(windows.frame, windows.encoding, 5, seed=1, room=100_000)


def test_ratios_are_ours_over_theirs_and_goals_are_judged() -> None:
    result: dict[str, Any] = {
        "requests_per_s_weatherglass_1_saturated": 90.0, "requests_per_s_mlflow_1_saturated": 20.0,
        "requests_per_s_neuralforecast_1_saturated": 45.0,
        "p50_ms_weatherglass_1_saturated": 10.0, "p99_ms_weatherglass_1_saturated": 60.0,
    }  # fmt: skip
    found = serving.ratios(result, ["1_saturated"])
    expected = {"requests_ratio_1_saturated_mlflow": 4.5, "requests_ratio_1_saturated_neuralforecast": 2.0}
    assert found == expected | {"p99_over_p50_1_saturated": 6.0}
    load = {"wrong": 0, "lost": 1, "errors_5xx": 0, "memory_growth": 0.05, "exit_code": 0}
    assert {name for name, reached in serving.met(found | {"load": load}).items() if not reached} == {
        "requests_ratio_1_saturated_neuralforecast", "p99_over_p50_1_saturated", "load_lost",
    }  # fmt: skip


RIGHT = {"ds": ["2024-01-01"], "cutoff": "2023-12-31", "is_ood": False, "abstain": False, "median": [2.0], "unique_id": "a"}


def sent(
    kind: str, status: int = 200, answer: Any = None, version: str = "1", ended: float = 5.0, refused: bool = False
) -> Sent:
    content = {"model": {"version": version}, "forecasts": [RIGHT | (answer or {})]} if status == 200 else {"detail": [answer]}
    return Sent(kind, ("a",), status, orjson.dumps(content) if status else b"reset", ended - 0.01, ended, refused)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (sent("series", answer={"median": [2.0 + 1e-6]}), {}),
        (sent("series", answer={"median": [2.001]}), {"wrong": 1}),
        (sent("series", answer={"abstain": True}), {"wrong": 1}),
        (sent("ids", version="2"), {"wrong": 1}),  # version 2 says 3.0
        (sent("ids", version="2", answer={"median": [3.0]}), {}),
        (sent("bad", status=422), {}),
        (sent("bad"), {"wrong": 1}),
        (sent("series", status=422), {"wrong": 1}),
        (sent("series", status=503), {"errors_5xx": 1}),
        (sent("series", status=0), {"lost": 1}),
        (sent("series", status=0, refused=True), {"lost": 1}),
        (sent("series", status=0, refused=True, ended=12.0), {}),  # after the stop at 10
        (sent("series", status=0, ended=12.0), {"lost": 1}),
    ],
)
def test_the_verdict_of_a_load(more: Sent, found: dict[str, int]) -> None:
    right = {"1": {"a": RIGHT}, "2": {"a": RIGHT | {"median": [3.0]}}}
    told = verdict([sent("series"), more], right, stopped=10.0)
    assert {name: told[name] for name in ("wrong", "lost", "errors_5xx") if told[name]} == found
    assert len(told["examples"]) == len(found)


def test_a_project_without_a_champion_is_told_and_left_alone(prepared_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_project, root)
    with patch.dict(os.environ), pytest.raises(UserError, match=r"has no champion: .*run `make run` there first"):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        serving.main(["--root", str(root), "--no-peers"])
    assert not (root / "mlflow.db").exists()


def test_peers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match=r"nowhere/python, which is not there; run `make peers`"):
        serving.main(["--peers", "nowhere/python"])


def test_a_short_load_loses_nothing_and_touches_no_registry(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "sv.json"
    serving.main(["--root", str(project), "--load-only", "--load", "3", "--load-clients", "3", "--json", str(path)])
    result = json.loads(path.read_text())
    load = result["load"]
    assert (load["wrong"], load["lost"], load["errors_5xx"], load["exit_code"]) == (0, 0, 0, 0), load["examples"]
    assert result["goals_met"]["load_lost"] and load["answered_after_stop"] > 0
    assert set(load["by_kind"]) == {"series", "ids", "observations", "bad"}
    store = f"sqlite:///{project}/mlflow.db"
    client = mlflow.MlflowClient(store, store)
    assert len(client.search_model_versions("name = 'weatherglass'")) == 1
    assert str(client.get_model_version_by_alias("weatherglass", "champion").version) == "1"
