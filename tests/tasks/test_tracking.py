"""One parent run a pipeline, one child a stage, whichever process asks and however the one before it ended."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from tasks.mlflow_view import KIND_TAG, VIEW_TAG, view_address
from tasks.model_page import NOTE_TAG, describe_experiment
from tasks.tracking import (
    TrackingError,
    finish_parent,
    initialise,
    log_alone,
    log_dataset,
    log_stage,
    parent_run,
    stage_run,
)

PROJECT = Path(__file__).resolve().parents[2]
PROCESS = """
import sys
from tasks.tracking import initialise, log_stage, parent_run
root, uri, name = sys.argv[1:]
initialise(uri)
parent = parent_run(root, "parallel", {"params": "same"})
for i in range(5):
    log_stage(parent, f"{name}/{i}", params={"i": i}, metrics={f"{name}/wql": i / 10})
print(parent)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database for the file, since creating its tables is what costs time."""
    before = mlflow.get_tracking_uri()
    yield initialise(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    mlflow.set_tracking_uri(before)


@pytest.fixture(autouse=True)
def no_given_parent(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.delenv("WEATHERGLASS_PARENT_RUN", raising=False)


def test_a_pipeline_has_one_parent_until_it_is_finished(tmp_path: Path) -> None:
    client = MlflowClient()
    identity = {"params": "a", "git_commit": "abc123"}
    parent = parent_run(tmp_path, "pipelines", identity)
    assert parent_run(tmp_path, "pipelines", {**identity, "git_commit": "other", "data_md5": "d41d"}) == parent
    run = client.get_run(parent)
    assert run.info.run_name.startswith("pipeline ")
    assert run.info.status == "RUNNING"
    assert run.data.tags["weatherglass.git_commit"] == "abc123", "the first process decides a tag"
    assert run.data.tags["weatherglass.data_md5"] == "d41d"
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())

    assert finish_parent(tmp_path, {"ensemble/wql": 0.05}, {"dvc_lock": "9e8f"}) == parent
    run = client.get_run(parent)
    assert (run.info.status, run.data.metrics["ensemble/wql"]) == ("FINISHED", 0.05)
    assert run.data.tags["weatherglass.dvc_lock"] == "9e8f"
    assert finish_parent(tmp_path) is None
    assert parent_run(tmp_path, "pipelines", identity) != parent


def test_changed_parameters_open_a_new_parent_and_mark_the_abandoned_one(tmp_path: Path) -> None:
    first = parent_run(tmp_path, "pipelines", {"params": "a"})
    second = parent_run(tmp_path, "pipelines", {"params": "b"})
    assert first != second
    assert MlflowClient().get_run(first).info.status == "KILLED"


def test_an_experiment_is_named_after_what_it_changes_and_is_one_run_however_often_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    identity = {"params": "a", "dvc_exp": "wide", "changed": "tcn.width=96"}
    parent = parent_run(tmp_path / "copy", "experiments", identity, {"train.seed": 1})
    assert finish_parent(tmp_path / "copy", {"ensemble/wql": 0.04}) == parent
    assert parent_run(tmp_path / "copy", "experiments", identity, {"train.seed": 1}) == parent, "its next stage"
    run = client.get_run(parent)
    assert (run.info.run_name, run.info.status) == ("wide: tcn.width=96", "RUNNING")
    assert run.data.params == {"train.seed": "1"}
    tags = {key: run.data.tags[f"weatherglass.{key}"] for key in ("kind", "dvc_exp", "changed")}
    assert tags == {"kind": "experiment", "dvc_exp": "wide", "changed": "tcn.width=96"}
    finish_parent(tmp_path / "copy")
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    assert parent_run(tmp_path / "copy", "experiments", identity | {"dvc_exp": "again"}) != parent


def test_the_environment_names_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    monkeypatch.setenv("WEATHERGLASS_PARENT_RUN", parent)
    assert parent_run(tmp_path / "elsewhere", "pipelines", {"params": "b"}) == parent
    monkeypatch.setenv("WEATHERGLASS_PARENT_RUN", "0" * 32)
    with pytest.raises(TrackingError, match="WEATHERGLASS_PARENT_RUN is 0000"):
        parent_run(tmp_path, "pipelines", {"params": "a"})


def test_a_stage_logs_everything_as_one_child(tmp_path: Path) -> None:
    client = MlflowClient()
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.txt").write_text("1")
    params = {"train": {"epochs": 3, "note": "x" * 900}, **{f"p{i}": i for i in range(150)}}
    child = log_stage(
        parent,
        "train/tcn",
        params=params,
        metrics={"tcn/wql": 0.1, "tcn/coverage_90%": math.nan},
        artifacts=[tmp_path / "card.json", tmp_path / "plots"],
        histories={"tcn/loss": [3.0, 2.0, 1.0]},
        tags={"family": "tcn"},
    )
    run = client.get_run(child)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["family"] == "tcn"
    assert run.data.params["train.epochs"] == "3"
    assert len(run.data.params["train.note"]) == 500
    assert len(run.data.params) == 152
    assert run.data.metrics["tcn/wql"] == 0.1
    assert math.isnan(run.data.metrics["tcn/coverage_90_"])
    assert [(m.step, m.value) for m in client.get_metric_history(child, "tcn/loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    names = {entry.path for entry in client.list_artifacts(child)} | {
        entry.path for entry in client.list_artifacts(child, "plots")
    }
    assert names == {"card.json", "plots", "plots/loss.txt"}


def test_a_rerun_marks_the_killed_child_and_an_error_marks_its_own(tmp_path: Path) -> None:
    client = MlflowClient()
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    killed = stage_run(parent, "train/tcn")
    left_running = killed.__enter__().run_id
    with stage_run(parent, "train/tft") as other, stage_run(parent, "train/tcn") as again:
        assert client.get_run(left_running).info.status == "KILLED"
        assert client.get_run(other.run_id).info.status == "RUNNING"
        with stage_run(again.run_id, "member-0") as member:
            member.log(metrics={"loss": 1.0})
    assert client.get_run(again.run_id).info.status == "FINISHED"
    assert client.get_run(member.run_id).data.tags["mlflow.parentRunId"] == again.run_id
    with pytest.raises(ZeroDivisionError), stage_run(parent, "train/tcn") as failing:
        _ = 1 / 0
    assert client.get_run(failing.run_id).info.status == "FAILED"


def test_threads_log_to_one_run_at_once(tmp_path: Path) -> None:
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    with stage_run(parent, "train") as run, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: run.log(metrics={f"member-{i}/loss": float(i)}), range(12)))
    metrics = MlflowClient().get_run(run.run_id).data.metrics
    assert metrics == {f"member-{i}/loss": float(i) for i in range(12)}


def test_a_data_version_is_recorded_once(tmp_path: Path) -> None:
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    for _ in range(2):
        log_dataset(parent, "panel", tmp_path / "panel.parquet", "d41d8cd98f00b204e9800998ecf8427e")
    inputs = MlflowClient().get_run(parent).inputs
    assert inputs is not None
    assert [(entry.dataset.name, entry.dataset.digest) for entry in inputs.dataset_inputs] == [
        ("panel", "d41d8cd98f00b204e9800998ecf8427e")
    ]


def test_a_run_of_its_own_is_logged_once_for_a_digest(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("drift")

    def log(digest: str) -> str:
        return log_alone(tmp_path, "pipelines", "monitor", digest, {"live/crps": 1.5}, [tmp_path / "page.html"])

    first = log("a")
    assert log("a") == first and log("b") != first
    MlflowClient().update_run(first, status="RUNNING")
    assert log("a") != first, "one that was killed half-way is logged again"
    assert MlflowClient().get_run(first).info.status == "KILLED"
    run = MlflowClient().get_run(log("a"))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"live/crps": 1.5})
    assert "mlflow.parentRunId" not in run.data.tags
    assert [entry.path for entry in MlflowClient().list_artifacts(run.info.run_id)] == ["page.html"]


def test_two_processes_share_a_new_store_and_one_parent(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/fresh/mlflow.db"
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), uri, name],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("tcn", "tft")
    ]
    parents = {process.communicate(timeout=90)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(parents) == 1
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("parallel")
    assert experiment is not None
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents.pop()}'")
    assert sorted(run.info.run_name for run in children) == sorted(f"{n}/{i}" for n in ("tcn", "tft") for i in range(5))
    assert {run.info.status for run in children} == {"FINISHED"}


def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    try:
        (tmp_path / "mlflow.db").write_text("this is not a database, and long enough to be read as one" * 20)
        with pytest.raises(TrackingError, match=r"mlflow\.db is not a usable SQLite database") as caught:
            initialise(f"sqlite:///{tmp_path}/mlflow.db")
        assert "\n" not in str(caught.value)

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingError, match=r"^MLflow at http://\*\*\*@127\.0\.0\.1:9 ") as caught:
            initialise("http://user:secret@127.0.0.1:9")
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    finally:
        initialise(store)


def test_a_locked_store_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})
    calls = []
    real = MlflowClient.log_batch

    def busy(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", busy)
    child = log_stage(parent, "busy", metrics={"loss": 1.0})
    assert MlflowClient().get_run(child).data.metrics == {"loss": 1.0}
    assert len(calls) == 2


def test_a_store_that_stays_locked_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = parent_run(tmp_path, "pipelines", {"params": "a"})

    def locked(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        raise OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr("tasks.tracking_store.RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(MlflowClient, "log_batch", locked)
    with pytest.raises(TrackingError, match=r"services\.mlflow_uri in params\.yaml.*database is locked") as caught:
        log_stage(parent, "locked", metrics={"loss": 1.0})
    assert "\n" not in str(caught.value)


def test_runs_are_compared_by_a_view_of_whole_ones_and_what_a_person_wrote_stays(tmp_path: Path) -> None:
    client, runs = MlflowClient(), []
    metrics = {"ensemble/wql": 0.02, "seasonal_naive/wql": 1.0}
    for name, wql in (("a", 0.03), ("b", 0.02)):
        runs.append(parent_run(tmp_path, "compared", {"params": name}))
        log_stage(runs[-1], "evaluate", metrics=metrics)
        finish_parent(tmp_path, metrics | {"ensemble/wql": wql})
    log_alone(tmp_path, "compared", "monitor", "digest", {"live/crps": 0.1}, [])
    describe_experiment(runs[0], metrics)
    experiment = client.get_experiment_by_name("compared")
    assert experiment is not None
    number, view = experiment.experiment_id, json.loads(experiment.tags[VIEW_TAG])
    found = client.search_runs([number], view["searchFilter"], order_by=[f"{view['orderByKey']} ASC"])
    assert [run.info.run_id for run in found] == runs[::-1]
    assert view_address(number) in experiment.tags[NOTE_TAG]

    client.set_experiment_tag(number, NOTE_TAG, "ours")
    client.set_experiment_tag(number, KIND_TAG, "custom")
    describe_experiment(runs[0], {**metrics, "mamba/wql": 0.04})
    tags = client.get_experiment(number).tags
    assert (tags[NOTE_TAG], tags[KIND_TAG]) == ("ours", "custom") and "mamba/wql" in tags[VIEW_TAG]
