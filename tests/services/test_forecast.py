"""`weatherglass forecast` of a large panel on Dask and Ray workers: the bytes of one machine, also where a worker is killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest

from tasks.forecast import PANEL
from tasks.forecast_parts import parts_of
from tasks.on_worker import PARTS
from tasks.params import Params
from tasks.registry import register
from tasks.tracking import initialise, parent_run

SERIES, STEPS = 1_600, 2_000
WORKER = {"dask": "spawn_main", "ray": "ray::"}  # in the command line of a worker's process
SECONDS = 150.0


@pytest.fixture(scope="module")
def large(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project's champion with a panel of several parts, and what one machine forecasts of it."""
    root = tmp_path_factory.mktemp("large") / "project"
    shutil.copytree(evaluated_project, root)
    params, before = Params.load(root=root), mlflow.get_tracking_uri()
    initialise(f"sqlite:///{root}/mlflow.db")
    register(params, root, parent_run(root, params.registry.experiment, {"params": "same"}))
    mlflow.set_tracking_uri(before)
    random = np.random.default_rng(1)
    panel = pd.DataFrame({"unique_id": np.repeat([f"series {number:04d}" for number in range(SERIES)], STEPS)})
    times = pd.date_range(end="2024-03-01 23:00", periods=STEPS, freq="h").as_unit("ns")
    panel["ds"], panel["y"] = np.tile(times.to_numpy(), SERIES), random.normal(50, 5, SERIES * STEPS)
    panel.to_parquet(root / PANEL, index=False, row_group_size=2**18)
    assert parts_of(root) > 3
    return root


@pytest.fixture(scope="module")
def alone(large: Path, environment: dict[str, str]) -> bytes:
    """The file that one machine writes."""
    subprocess.run(command("alone"), cwd=large, env=environment, check=True)
    return (large / "alone.parquet").read_bytes()


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "flows", "forecast", "--output", f"{name}.parquet"]


def worker_of(run: psutil.Popen, sign: str) -> psutil.Process | None:
    """A worker's process that has used its processor, so that it has work."""
    for process in run.children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if sign in line and "IDLE" not in line and process.cpu_times().user > 1.0:
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_writes_the_bytes_of_one_machine_though_a_worker_is_killed(
    runner: str,
    large: Path,
    alone: bytes,
    prefect_api: str,
    environment: dict[str, str],
    edit_params: Callable[..., None],
    tmp_path: Path,
) -> None:
    edit_params(large, {"runner": runner, "train.workers": 2})
    with open(tmp_path / "log", "w") as log:
        variables = environment | {"PREFECT_API_URL": prefect_api}
        run = psutil.Popen(command(runner), cwd=large, env=variables, stdout=log, stderr=log)
        deadline, killed, most = time.monotonic() + SECONDS, False, 0
        while run.poll() is None and time.monotonic() < deadline:
            parts = list((large / PARTS).glob("run-*/part_*.parquet"))
            most = max(most, sum(".forecast" not in path.name for path in parts))
            if parts and not killed and (worker := worker_of(run, WORKER[runner])) is not None:
                worker.kill()
                killed = True
            time.sleep(0.02)
    told = (tmp_path / "log").read_text()
    assert run.poll() == 0, told
    assert killed and 1 < most <= 4
    assert (large / f"{runner}.parquet").read_bytes() == alone
    assert list((large / PARTS).glob("run-*")) == []
