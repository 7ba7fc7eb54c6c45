"""The embedded Prefect server: one for many processes, gone when nobody needs it, replaced when it dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from flows import environment
from flows.server import is_healthy, prefect_server, stop_server
from tasks.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
SERVICE_VARIABLES = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "WEATHERGLASS_EMBEDDED_SERVER")
CLIENT = """
import sys
from pathlib import Path
from flows import environment
root = Path(sys.argv[1])
environment.configure(root)
from flows.server import prefect_server
with prefect_server(root, idle_seconds=20) as api_url:
    print(api_url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder whose server every test of this file shares or replaces; migrating its database is the cost."""
    folder = tmp_path_factory.mktemp("project")
    yield folder
    stop_server(folder)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No service is named, neither in the environment nor by a test harness of the session in Prefect's settings."""
    for name in SERVICE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        if "prefect" in sys.modules:
            from prefect.settings import PREFECT_API_URL, temporary_settings

            stack.enter_context(temporary_settings(restore_defaults={PREFECT_API_URL}))
        yield


def start_client(root: Path, folder: Path) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if name not in SERVICE_VARIABLES}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), variables.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(root)],
        cwd=folder,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def server_processes(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "flows.server" in command and str(root) in command:
            found.append(process)
    return found


def wait_until_gone(root: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server_processes(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server_processes(root) == []


def test_two_clients_at_once_share_one_server_and_a_killed_one_is_replaced(root: Path, tmp_path: Path) -> None:
    clients = [start_client(root, tmp_path), start_client(root, PROJECT)]
    addresses = [first_line(client) for client in clients]
    assert addresses[0] == addresses[1]
    assert is_healthy(addresses[0])
    assert len(server_processes(root)) == 1
    with urllib.request.urlopen(addresses[0].replace("/api", "/ui-settings"), timeout=5) as response:
        assert json.load(response)["api_url"] == addresses[0], "the UI must call the port that was chosen"

    server_processes(root)[0].kill()
    later = start_client(root, tmp_path)
    address = first_line(later)
    assert address != addresses[0]
    assert is_healthy(address)
    assert len(server_processes(root)) == 1
    for client in [*clients, later]:
        client.kill()
        client.wait()


@pytest.mark.usefixtures("clean_environment")
def test_the_address_is_exported_in_the_block_and_a_stopped_server_leaves_nothing(root: Path) -> None:
    with prefect_server(root, idle_seconds=20) as api_url:
        assert os.environ["PREFECT_API_URL"] == api_url
        with prefect_server(root) as nested:
            assert nested == api_url
    assert "PREFECT_API_URL" not in os.environ
    assert stop_server(root)
    assert server_processes(root) == []
    assert not (root / ".weatherglass" / "server" / "server.json").exists()
    assert not stop_server(root)


def test_the_server_stops_by_itself_once_its_last_client_is_killed(
    root: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    with prefect_server(root, idle_seconds=1.0):
        client = start_client(root, root)
        first_line(client)
    time.sleep(2.5)
    assert len(server_processes(root)) == 1, "a client still holds it"
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until_gone(root, 20)
    assert not (root / ".weatherglass" / "server" / "server.json").exists()


def test_the_server_stops_when_its_folder_is_cleaned_away(root: Path, clean_environment: None) -> None:
    with prefect_server(root, idle_seconds=60.0):
        assert len(server_processes(root)) == 1
    shutil.rmtree(root / ".weatherglass")
    wait_until_gone(root, 20)


@pytest.mark.parametrize("where", ["environment", "settings"])
def test_a_given_address_that_does_not_answer_is_one_sentence(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    address = "http://127.0.0.1:9/api"
    monkeypatch.setattr("flows.server.UNREACHABLE_SECONDS", 0.5)
    with ExitStack() as stack:
        if where == "settings":
            from prefect.settings import PREFECT_API_URL, temporary_settings

            stack.enter_context(temporary_settings({PREFECT_API_URL: address}))
        else:
            monkeypatch.setenv("PREFECT_API_URL", address)
        with pytest.raises(UserError, match=re.escape(address)) as caught, prefect_server(tmp_path):
            pass
    assert "\n" not in str(caught.value)
    assert server_processes(tmp_path) == []


@pytest.mark.usefixtures("clean_environment")
def test_environment_wins_over_params_and_params_over_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(os.environ)
    monkeypatch.setenv("PREFECT_API_URL", "http://mine/api")
    try:
        environment.configure(tmp_path, mlflow_uri="sqlite:///runs/mlflow.db", prefect_api_url="http://params/api")
        assert os.environ["PREFECT_API_URL"] == "http://mine/api"
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/runs/mlflow.db"
        assert os.environ["PREFECT_HOME"] == str(tmp_path / ".weatherglass" / "prefect")
        del os.environ["MLFLOW_TRACKING_URI"]
        environment.configure(tmp_path)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    finally:
        for name in set(os.environ) - names:
            del os.environ[name]
