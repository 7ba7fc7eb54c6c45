"""What every stage shares: exit codes, its records in MLflow, and its end when the one who started it is killed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from flows.pipeline import USER_ERROR
from flows.stage import Stage, _not_told_anyway, identity, run_stage
from tasks.errors import UserError
from tasks.tracking_store import TrackingError

PROJECT = Path(__file__).resolve().parents[2]
DVC = """
import os, subprocess, sys
python = "python -c 'import os, time; from flows.stage import end_with_dvc; end_with_dvc(); " \\
         "print(os.getpid(), flush=True); time.sleep(60)'"
stage = subprocess.Popen([sys.argv[1], "-c", python + sys.argv[2]], env=os.environ | {"DVC_STAGE": "train"})
stage.wait()
"""


@pytest.fixture(scope="module")
def root(new_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Path]:
    """A project of its own on the session's Prefect server; what flows set in this process is undone afterwards."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = new_project(tmp_path_factory.mktemp("stage") / "project")
    kept, before = dict(os.environ), mlflow.get_tracking_uri()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["PREFECT_API_URL"] = prefect_api
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield folder
    os.environ.clear()
    os.environ.update(kept)
    mlflow.set_tracking_uri(before)


def last_run(name: str) -> mlflow.entities.Run:
    runs = MlflowClient().search_runs(["1"], f"tags.`weatherglass.stage` = '{name}'", max_results=1)
    return runs[0]


def test_a_stage_that_ends_well_is_recorded_below_its_parent(root: Path) -> None:
    seen: list[Stage] = []

    def doubled(number: int) -> int:
        return 2 * number

    def body(stage: Stage) -> None:
        seen.append(stage)
        stage.run.log(metrics={"answer": stage.do(doubled, 21)})

    assert run_stage("train@tcn", body, root) == 0
    run = last_run("train@tcn")
    assert (run.info.status, run.info.run_name, run.data.metrics) == ("FINISHED", "train@tcn", {"answer": 42.0})
    assert run.data.tags["mlflow.parentRunId"] == seen[0].parent_run_id
    parent = MlflowClient().get_run(seen[0].parent_run_id)
    assert parent.info.status == "RUNNING", "register ends it"
    assert parent.data.tags["weatherglass.params"] == seen[0].identity["params"]
    assert run.data.tags["weatherglass.prefect_flow_run_id"] == parent.data.tags["weatherglass.prefect_flow_run_id"]


def test_a_users_mistake_is_one_sentence_and_code_two(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise UserError("column 'y' is missing.")

    assert run_stage("ingest", lambda stage: stage.do(refuse), root) == 2
    assert "ingest: column 'y' is missing." in capsys.readouterr().err.splitlines()
    assert (root / USER_ERROR).read_text() == "ingest: column 'y' is missing.\n"
    assert last_run("ingest").info.status == "FAILED"


def test_a_failure_is_not_hidden(root: Path) -> None:
    def fail(stage: Stage) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        run_stage("prepare", fail, root)
    assert last_run("prepare").info.status == "FAILED"


def test_a_mistake_in_params_needs_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").write_text("data: {horizon: 0}\n")
    assert run_stage("prepare", lambda stage: None, tmp_path) == 2
    told = "prepare: params.yaml: data.horizon is 0; it must be a whole number of 1 or more.\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "mlflow.db").exists()


def test_the_identity_follows_params_data_and_lock(new_project: Callable[[Path], Path], tmp_path: Path) -> None:
    root = new_project(tmp_path / "project")
    first = identity(root, {})
    assert "data_md5" not in first
    (root / "data/ingested").mkdir()
    (root / "data/ingested/panel.parquet").write_bytes(b"1")
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    second = identity(root, {})
    assert second["params"] == first["params"]
    assert {"data_md5", "dvc_lock"} <= set(second)
    (root / "params.yaml").write_text((root / "params.yaml").read_text() + "# a note\n")
    assert identity(root, {})["params"] != first["params"]


@pytest.mark.parametrize(
    ("error", "message", "shown"),
    [
        (UserError("x"), "Encountered exception during execution", False),
        (httpx.ConnectError("x"), "Encountered exception during execution", False),
        (None, "Finished in state Failed('Task run encountered an exception Unavailable: x')", False),
        (TrackingError("x"), "Task run failed with exception", False),
        (None, "Finished in state Failed('Task run encountered an exception UserError: x')", False),
        (None, "Finished in state Failed('Flow run encountered an exception: TrackingError: x')", False),
        (None, "Still processing items: 1 items remaining...", False),
        (RuntimeError("x"), "Encountered exception during execution", True),
        (None, "Finished in state Failed('Task run encountered an exception RuntimeError: x')", True),
    ],
)
def test_only_what_prefect_says_of_a_users_mistake_is_kept_off_the_console(
    error: Exception | None, message: str, shown: bool
) -> None:
    info = None if error is None else (type(error), error, None)
    record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, message, (), info)
    assert _not_told_anyway(record) is shown


@pytest.mark.parametrize(("shell", "rest"), [("/bin/bash", ""), ("/bin/sh", ""), ("/bin/sh", "; true")])
def test_a_stage_ends_when_dvc_is_killed(shell: str, rest: str, environment: dict[str, str]) -> None:
    arguments = [sys.executable, "-c", DVC, shell, rest]
    dvc = subprocess.Popen(arguments, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
    assert dvc.stdout is not None
    stage = psutil.Process(int(dvc.stdout.readline()))
    dvc.kill()
    dvc.wait()
    deadline = time.monotonic() + 10
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
