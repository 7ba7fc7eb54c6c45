"""MLflow and Prefect away at the start and half-way, a locked database, two runs at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tasks.files import read_json

Call = Callable[..., Any]
NOBODY = "http://127.0.0.1:9"
TRAINED = {"on": "rename", "path": r"artifacts/train/tcn$", "after": True}
"""The moment at which all members are trained and nothing is recorded yet."""
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
HOLD = """
import sys
from pathlib import Path
from tasks.files import held
with held(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def sentences(ended: subprocess.CompletedProcess[str], stage: str) -> list[str]:
    """What a stage told on stderr."""
    return [line for line in ended.stderr.splitlines() if line.startswith(f"{stage}: ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int, environment: dict[str, str]) -> Iterator[int]:
    """A real MLflow server on 127.0.0.1; yields the pid of its group."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "served"),
    ]  # fmt: skip
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        answers(f"http://127.0.0.1:{port}/health", server)
        yield server.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once ``url`` answers; fails where the server ends instead."""
    while server.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=1.0).close()
            return
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.2)
    raise AssertionError("the server ended")


@pytest.fixture
def stale(disturbed: Any, edit_params: Call) -> Any:
    """A copy of the undisturbed project whose TCN is to be trained again."""
    edit_params(disturbed.root, {"forecasters.tcn.dropout": 0.15})
    return disturbed


def trains_no_member_again(project: Any, **variables: str) -> None:
    """Run the training stage again and see that it took the members that it had kept."""
    kept = project.members()
    assert len(kept) == 1
    again = project.run("dvc", "repro", "train@tcn", **variables)
    assert again.returncode == 0, again.stderr[-3000:]
    assert project.members() == kept
    assert (project.root / "artifacts/train/tcn/member_0.safetensors").stat().st_size > 0


def test_mlflow_down_at_the_start(stale: Any, fault: Call) -> None:
    with fault("MLflow down at the start", "retries, then one sentence, exit code 1; nothing is begun"):
        ended = stale.run("flows", "run", "train@tcn", MLFLOW_TRACKING_URI=NOBODY)
        assert ended.returncode == 1
        told = sentences(ended, "train@tcn")
        assert len(told) == 1 and NOBODY in told[0] and "services.mlflow_uri" in told[0], ended.stderr
        assert "Traceback" not in ended.stderr
        assert stale.members() == {}
    forecast = stale.run("flows", "forecast", MLFLOW_TRACKING_URI=NOBODY)
    assert forecast.returncode == 1
    assert len(forecast.stderr.splitlines()) == 1 and NOBODY in forecast.stderr, forecast.stderr


def test_mlflow_lost_half_way(stale: Any, fault: Call, tmp_path: Path) -> None:
    port = free_port()
    where = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    with fault("MLflow lost while members train", "retries, then one sentence; no member is trained again"):
        with mlflow_server(tmp_path, port, stale.environment) as pid:
            lost = ["sh", "-c", f"kill -9 -{pid}; echo killed"]
            ended = stale.run("dvc", "repro", "train@tcn", fault=TRAINED | {"act": lost}, **where)
        assert ended.returncode != 0
        told = sentences(ended, "train@tcn")
        assert len(told) == 1 and where["MLFLOW_TRACKING_URI"] in told[0], ended.stderr[-3000:]
        assert "Traceback" not in ended.stderr
        with mlflow_server(tmp_path, port, stale.environment):
            trains_no_member_again(stale, **where)


def test_mlflow_back_within_the_retries(stale: Any, fault: Call, tmp_path: Path) -> None:
    port = free_port()
    where = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
    with fault("MLflow restarted while members train", "the run waits and goes on"):
        with mlflow_server(tmp_path, port, stale.environment) as pid:
            lost = ["sh", "-c", f"kill -9 -{pid}; echo killed"]
            running = stale.start("dvc", "repro", "train@tcn", fault=TRAINED | {"act": lost}, **where)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with mlflow_server(tmp_path, port, stale.environment):
            err = running.communicate(timeout=200)[1]
            assert running.returncode == 0, err[-3000:]


def test_prefect_down_at_the_start(stale: Any, fault: Call) -> None:
    with fault("Prefect down at the start", "retries, then one sentence, exit code 1; nothing is begun"):
        ended = stale.run("flows", "run", "train@tcn", PREFECT_API_URL=f"{NOBODY}/api")
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1 and f"{NOBODY}/api" in ended.stderr, ended.stderr
        assert stale.members() == {}


def test_prefect_lost_half_way(stale: Any, fault: Call) -> None:
    with fault("Prefect lost while members train", "retries, then one sentence; no member is trained again"):
        assert stale.run("dvc", "repro", "prepare", "-s", "-f").returncode == 0  # starts the embedded server
        pid = read_json(stale.root / ".weatherglass/server/server.json")["pid"]
        ended = stale.run("dvc", "repro", "train@tcn", fault=TRAINED | {"act": ["sh", "-c", f"kill -9 {pid}; echo killed"]})
        assert ended.returncode != 0
        told = sentences(ended, "train@tcn")
        assert len(told) == 1 and "Prefect server" in told[0], ended.stderr[-3000:]
        assert "Traceback" not in ended.stderr
        trains_no_member_again(stale)


def test_a_locked_database_is_waited_for(disturbed: Any, edit_params: Call, fault: Call) -> None:
    edit_params(disturbed.root, {"registry.experiment": "another"})
    (disturbed.root / "artifacts/receipt.json").unlink()
    with fault("SQLite locked by another process for 8 s", "waits and goes on"):
        lock = [sys.executable, "-S", "-c", LOCK, str(disturbed.root / "mlflow.db"), "8"]
        begun = {"on": "rename", "path": r"artifacts/bundle$", "after": True, "act": lock}
        done = disturbed.run("dvc", "repro", "-s", "register", fault=begun)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr


def gate(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Pipes and a fault: training TCN opens the first as it starts, and goes on when the second is written to."""
    begun, go = folder / "begun", folder / "go"
    os.mkfifo(begun)
    os.mkfifo(go)
    act = ["sh", "-c", f"echo > {begun}; cat {go}; echo gone"]
    return begun, go, {"on": "start", "path": r"flows\.train --family tcn$", "act": act}


def test_two_runs_at_once(disturbed: Any, fault: Call) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(disturbed.root / ".weatherglass/run.lock")],
        cwd=disturbed.root, env=disturbed.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with fault("weatherglass run while another one runs", "names the holder's pid and waits for it"):
        second = disturbed.start("flows", "run")
        assert second.stderr is not None
        assert second.stderr.readline() == f"waiting for process {holder.pid}, which is running this project\n"
        assert second.poll() is None
        holder.communicate()
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0, err[-3000:]
        assert "Data and pipelines are up to date" in out


def test_a_run_after_a_killed_one_waits_for_what_it_left(stale: Any, fault: Call, tmp_path: Path) -> None:
    """DVC goes on when the run that started it is killed; it holds the lock of the run, so the next one waits."""
    begun, go, wait = gate(tmp_path)
    with fault("weatherglass run after SIGKILL of one whose dvc goes on", "waits for it and ends well"):
        first = stale.start("flows", "run", "train@tcn", fault=wait)
        begun.read_text()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = stale.start("flows", "run", "train@tcn")
        assert second.stderr is not None
        told = second.stderr.readline()
        assert told == f"waiting for what the killed process {first.pid} left, which is running this project\n"
        with suppress(OSError):  # nobody reads: the stage has ended with the run
            descriptor = os.open(go, os.O_WRONLY | os.O_NONBLOCK)
            os.write(descriptor, b"on\n")
            os.close(descriptor)
        err = second.communicate(timeout=300)[1]
        assert second.returncode == 0, err[-3000:]


def test_a_run_beside_a_plain_dvc_repro_is_refused_by_its_pid(stale: Any, fault: Call, tmp_path: Path) -> None:
    begun, go, wait = gate(tmp_path)
    with fault("weatherglass run while dvc repro runs", "is refused with the holder's pid, the first one ends well"):
        first = stale.start("dvc", "repro", "train@tcn", fault=wait)
        begun.read_text()
        second = stale.run("flows", "run", "train@tcn")
        go.write_text("on\n")
        err = first.communicate(timeout=200)[1]
        assert first.returncode == 0, err[-3000:]
        assert second.returncode == 1
        assert f"(PID {first.pid})" in second.stderr, second.stderr
