"""``dvc exp run`` in a temporary copy of a project: its results compare in DVC and MLflow, and the registry is left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

PROJECT = Path(__file__).resolve().parents[2]
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def repository(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after its run, under git."""
    root = tmp_path_factory.mktemp("experiments") / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns(".weatherglass", "__pycache__"), symlinks=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore"):
        shutil.copyfile(PROJECT / name, root / name)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Baseline"]):
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def told(repository: Path, command: Call, prefect_api: str) -> str:
    """What an experiment with fewer baselines says; it runs three stages in a copy of the project."""
    changed = ["-S", "baselines.models=[seasonal_naive]", "-S", "registry.experiment=sweeps"]
    user = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = command(
        *("dvc", "exp", "run", "--temp", "-n", "lean", *changed),
        root=repository,
        variables=user | {"PREFECT_API_URL": prefect_api},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


@pytest.fixture
def client(repository: Path, client_of: Callable[[Path], MlflowClient]) -> MlflowClient:
    return client_of(repository)


def test_the_workspace_and_the_registry_stay_as_they_were(told: str, repository: Path, client: MlflowClient) -> None:
    assert "Running stage 'baselines'" in told and "Running stage 'train" not in told
    assert "experiment lean is not registered; `dvc exp apply lean`" in told
    status = subprocess.run(["git", "status", "--short"], cwd=repository, capture_output=True, text=True, check=True)
    assert status.stdout == ""
    assert json.loads((repository / "artifacts/receipt.json").read_text())["alias"] == "champion"
    assert [str(version.version) for version in client.search_model_versions("name = 'weatherglass'")] == ["1"]
    assert {str(key): str(value) for key, value in client.get_registered_model("weatherglass").aliases.items()} == {
        "champion": "1"
    }


def test_mlflow_has_one_run_of_it_in_the_projects_own_store(told: str, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.info.run_name == "lean: baselines.models=[seasonal_naive], registry.experiment=sweeps"
    tags = {key.removeprefix("weatherglass."): value for key, value in parent.data.tags.items()}
    assert (tags["kind"], tags["dvc_exp"]) == ("experiment", "lean")
    assert tags["git_revision"].endswith("-dirty") and tags["git_commit"].startswith(tags["git_revision"][:7])
    assert parent.data.params["baselines.models"] == "['seasonal_naive']"
    assert parent.data.params["forecasters.tcn.width"] == "8"
    assert {"ensemble/wql", "tcn/wql", "seasonal_naive/wql"} <= set(parent.data.metrics)
    assert not any(key.startswith("prophet/") for key in parent.data.metrics)


def test_dvc_compares_metrics_params_and_plots(told: str, repository: Path, command: Call) -> None:
    metrics = json.loads(command("dvc", "metrics", "diff", "--json", "--all", "HEAD", "lean", root=repository).stdout)
    rows = metrics["metrics/test.json"]
    assert rows["prophet/wql"]["new"] is None and rows["prophet/wql"]["old"] > 0
    assert rows["tcn/wql"]["diff"] == 0
    params = json.loads(command("dvc", "params", "diff", "--json", "HEAD", "lean", root=repository).stdout)
    assert set(params["params.yaml"]) == {"baselines.models", "registry.experiment"}
    shown = command("dvc", "plots", "diff", "HEAD", "lean", root=repository)
    assert shown.returncode == 0, shown.stderr
    page = (repository / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "reliability.csv" in page and "coverage_by_step.csv" in page
