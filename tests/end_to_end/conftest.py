"""One run of the whole pipeline, which all tests of this folder share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def command(pipeline_root: Path, environment: dict[str, str]) -> Call:
    """Run ``python -m <arguments>`` in the project, or in another folder, as a process of its own."""

    def call(
        *arguments: str, root: Path = pipeline_root, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=root,
            env=environment | (variables or {}),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def finished(command: Call, prefect_api: str) -> subprocess.CompletedProcess[str]:
    """The one run of the whole pipeline."""
    done: subprocess.CompletedProcess[str] = command("flows", "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def project(finished: object, pipeline_root: Path) -> Path:
    """The project after its run."""
    return pipeline_root


@pytest.fixture
def client_of() -> Iterator[Callable[[Path], MlflowClient]]:
    """A client of a project's own store, which is MLflow's for the length of a test."""
    before = mlflow.get_tracking_uri()

    def client(root: Path) -> MlflowClient:
        uri = f"sqlite:///{root}/mlflow.db"
        mlflow.set_tracking_uri(uri)
        return MlflowClient(uri)

    yield client
    mlflow.set_tracking_uri(before)
