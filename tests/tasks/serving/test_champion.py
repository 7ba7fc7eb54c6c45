"""The service follows the alias, drops no request for it, and keeps a champion whose successor is damaged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
from mlflow import MlflowClient

NAME = "weatherglass"


def version_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model"]["version"])


def test_one_life_of_a_service(store: Path, registered: Callable[[Path], str], start: Callable[..., Any]) -> None:
    with start(store) as (service, client, log):
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "holds no model 'weatherglass' with alias 'champion'" in answer.text
        assert client.post("/v1/forecast", json={"ids": ["a"]}).status_code == 503
        before = len(log)
        service.watch.look()
        assert len(log) == before, "the same trouble is told once"

        assert registered(store) == "1"
        service.watch.look()
        assert version_of(client.get("/readyz")) == "1"
        old = service.watch.current.crew

        assert registered(store) == "2"
        MlflowClient().set_registered_model_alias(NAME, "champion", "2")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.post, "/v1/forecast", json={"ids": ["a", "b"]}) for _ in range(10)]
            service.watch.look()
            asked += [pool.submit(client.post, "/v1/forecast", json={"ids": ["a", "b"]}) for _ in range(10)]
            versions = [version_of(future.result()) for future in asked]
        assert set(versions) <= {"1", "2"} and versions[-1] == "2"
        assert log[-1] == "weatherglass version 2 answers as @champion"
        processes = [each.process for each in (*old.idle, old.leader)]
        assert len(processes) > 1 and not psutil.wait_procs(processes, 10)[1], "the old champion's memory is given back"

        assert registered(store) == "3"
        copy = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/3")) / "artifacts/bundle/bundle.json"
        copy.write_text(copy.read_text() + " ")
        MlflowClient().set_registered_model_alias(NAME, "champion", "3")
        service.watch.look()
        assert version_of(client.get("/readyz")) == "2"
        assert "version 3 is damaged" in log[-1]
        assert 'weatherglass_champion{model="weatherglass",version="2"} 1.0' in client.get("/metrics").text

        MlflowClient().set_registered_model_alias(NAME, "champion", "2")
        panel = store / "data/ingested/panel.parquet"
        rows = pd.read_parquet(panel)
        rows[rows["unique_id"] != "c"].to_parquet(panel, index=False)
        service.watch.look()
        assert client.post("/v1/forecast", json={"ids": ["c"]}).status_code == 404, "the panel is read again"
        panel.unlink()
        service.watch.look()
        answer = client.post("/v1/forecast", json={"ids": ["a"]})
        assert answer.status_code == 404 and "panel.parquet is not there" in answer.text

        service.drain()
        answer = client.get("/readyz")
        assert answer.status_code == 503 and answer.headers["connection"] == "close"
        assert client.get("/healthz").status_code == 200
