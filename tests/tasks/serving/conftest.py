"""A registered champion of the tiny project, and the service that answers with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from starlette.testclient import TestClient

from tasks.files import read_json, write_json
from tasks.params import Params
from tasks.registry import register
from tasks.serving.app import Service
from tasks.serving.processes import Nursery
from tasks.tracking import initialise, parent_run

LOCAL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def store(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The evaluated project with a store of its own, in which nothing is registered."""
    root = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(evaluated_project, root)
    before = mlflow.get_tracking_uri()
    initialise(f"sqlite:///{root}/mlflow.db")
    yield root
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def registered() -> Callable[[Path], str]:
    """Register the project's bundle with a metric of its own, so that it is another one; returns the version."""
    count = iter(range(1, 100))

    def again(root: Path) -> str:
        metrics = read_json(root / "metrics/test.json")
        write_json(root / "metrics/test.json", metrics | {"ensemble/wql": 0.01 + next(count) / 1000})
        params = Params.load(root=root)
        return str(read_json(register(params, root, parent_run(root, "serving", {"params": "same"})))["version"])

    return again


@pytest.fixture(scope="module")
def project(store: Path, registered: Callable[[Path], str]) -> Path:
    """The project with a champion, version 1."""
    assert registered(store) == "1"
    return store


@pytest.fixture(scope="session")
def first() -> Iterator[Nursery]:
    """The process from which those of all services are forked."""
    nursery = Nursery()
    yield nursery
    nursery.end()


@pytest.fixture(scope="module")
def start(first: Nursery) -> Callable[..., Any]:
    """A service in this process and a client of it: ``with start(root, {"waiting": 1}) as (service, client, log): ...``."""

    @contextmanager
    def started(root: Path, limits: dict[str, Any] | None = None) -> Iterator[tuple[Service, TestClient, list[str]]]:
        params = Params.load(root=root)
        serving = params.serving.model_copy(update={"reload_seconds": 3600.0} | (limits or {}))
        log: list[str] = []
        service = Service(root, params.model_copy(update={"serving": serving}), "champion", "127.0.0.1", log.append, first)
        service.watch.look()
        with TestClient(service.front, base_url=LOCAL, raise_server_exceptions=False) as client:
            yield service, client, log

    return started


@pytest.fixture(scope="module")
def client(project: Path, start: Callable[..., Any]) -> Iterator[TestClient]:
    with start(project) as (_, client, _):
        yield client


@pytest.fixture(scope="module")
def panel(project: Path) -> pd.DataFrame:
    return pd.read_parquet(project / "data/ingested/panel.parquet")


@pytest.fixture(scope="module")
def body(panel: pd.DataFrame) -> Callable[..., dict[str, Any]]:
    """A series of the panel as a body has it, of its last ``steps`` steps."""

    def of(name: str, steps: int = 10_000) -> dict[str, Any]:
        rows = panel[panel["unique_id"] == name].tail(steps)
        return {"unique_id": name, "ds": rows["ds"].dt.strftime("%Y-%m-%dT%H:%M:%S").tolist(), "y": rows["y"].tolist()}

    return of
