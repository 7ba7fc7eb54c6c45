"""weatherglass tune: what it prints, writes and records, and the mistakes it tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from tasks.params import Params

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def root(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "project"
    shutil.copytree(prepared_project / "data/prepared", folder / "data/prepared")
    shutil.copyfile(prepared_project / "params.yaml", folder / "params.yaml")
    return folder


def runs(root: Path) -> tuple[Any, list[Any]]:
    """The search's run and those below it."""
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    found = MlflowClient().search_runs(["1"], order_by=["attributes.run_name"])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    return parents[0], [run for run in found if run is not parents[0]]


def test_the_best_values_are_printed_recorded_and_written(root: Path, weatherglass: Call) -> None:
    first = weatherglass(root, "tune", "tcn", "--trials", "2")
    assert first.code == 0, first.err
    assert "tune tcn: trial 0: learning_rate 0.003, dropout 0.1, width 8" in first.out
    printed = yaml.safe_load(first.out[first.out.index("forecasters:") :])["forecasters"]["tcn"]
    parent, trials = runs(root)
    assert (parent.info.run_name, parent.info.status) == ("tune tcn", "FINISHED")
    assert parent.data.tags["weatherglass.kind"] == "tune"
    assert [run.info.run_name for run in trials] == ["trial 000", "trial 001"]
    wql = [run.data.metrics["tcn/early_stopping_wql"] for run in trials]
    assert parent.data.metrics["tcn/early_stopping_wql"] == min(wql)
    best = trials[wql.index(min(wql))]
    assert best.data.params == {f"forecasters.tcn.{name}": str(value) for name, value in printed.items()}
    assert len(MlflowClient().get_metric_history(best.info.run_id, "early_stopping_loss")) == 2

    again = weatherglass(root, "tune", "tcn", "--trials", "2", "--write")
    assert again.code == 0, again.err
    assert "trial 1:" not in again.out, "nothing is trained again"
    assert len(runs(root)[1]) == 2
    config = Params.load(root=root).forecasters.tcn
    assert {name: getattr(config, name) for name in printed} == printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tcm"], "'tcm' is no family; weatherglass tune knows tft, deepar, tcn,"),
        (["tcn", "--trials", "0"], "--trials is 0; it must be 1 or more."),
        (["tcn", "--timeout", "0"], "--timeout is 0; it must be more than 0 seconds."),
        (["tcn"], "data/prepared is not there to tune on; run `weatherglass run prepare` first."),
    ],
)
def test_a_mistake_is_one_sentence(root: Path, weatherglass: Call, tmp_path: Path, arguments: list[str], told: str) -> None:
    shutil.copyfile(root / "params.yaml", tmp_path / "params.yaml")
    ended = weatherglass(tmp_path, "tune", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"weatherglass: {told}") and len(ended.err.splitlines()) == 1
