"""`weatherglass serve` as a process: a stranger's requests, a load with a champion switched in it, and a graceful end."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from flows.serve import _listen, refuse_new
from tasks.serving.processes import usable_cores

SECONDS, SETTLE_SECONDS = 12.0, 2.0
REGISTER = """
from pathlib import Path
from flows.environment import opened
root, params = opened(Path.cwd())
from tasks.files import read_json, write_json
from tasks.registry import register
from tasks.tracking import initialise, parent_run
initialise()
metrics = read_json("metrics/test.json")
for wql in (0.01, 0.02):
    write_json("metrics/test.json", metrics | {"ensemble/wql": wql})
    register(params, root, parent_run(root, "serving", {"params": "same"}))
"""
PROMOTE = """
import sys
from pathlib import Path
from flows.environment import opened
root, params = opened(Path.cwd())
from mlflow import MlflowClient
MlflowClient().set_registered_model_alias("weatherglass", "champion", sys.argv[1])
"""
BAD = [
    (b"{", 400),
    (b'{"ids": ["\xff"]}', 400),
    (b'{"ids": ["nobody"]}', 404),
    (b'{"series": [{"unique_id": "x", "ds": ["2024-01-01"], "y": [NaN]}]}', 422),
    (b'{"series": [{"unique_id": "x", "ds": ["2024-01-01"], "y": [1, 2]}]}', 422),
    (b"[" * 50_000, 400),
    (b" " * 17_000_000, 413),
]


class Server:
    """A service in a process of its own."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", "serve", "--port", "0"],
            cwd=root, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.port = 0
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if "answers as @champion" in line:
                break
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True).start()

    def start(self, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=self.root, env=self.environment)

    def ask(self, connection: http.client.HTTPConnection, content: bytes) -> tuple[int, bytes]:
        connection.request("POST", "/v1/forecast", content, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


@pytest.fixture(scope="module")
def project(
    evaluated_project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    edit_params: Callable[..., None],
) -> Path:
    """A project with two versions of which the first is champion."""
    root = tmp_path_factory.mktemp("serve") / "project"
    shutil.copytree(evaluated_project, root)
    edit_params(root, {"serving.reload_seconds": 0.2, "serving.drain_seconds": 0.5})
    subprocess.run([sys.executable, "-c", REGISTER], cwd=root, env=environment, check=True, capture_output=True)
    return root


@pytest.fixture
def server(project: Path, environment: dict[str, str]) -> Iterator[Server]:
    server = Server(project, environment)
    yield server
    server.process.kill()
    server.process.wait()


def body(number: int, steps: int) -> bytes:
    """A series of 1 to 3 histories that no other number gives."""
    rng = np.random.default_rng(number)
    ds = [str(time) for time in np.datetime64("2024-01-01T00", "s") + np.arange(steps) * np.timedelta64(1, "h")]
    series = [
        {"unique_id": name, "ds": ds, "y": (10 + np.sin(np.arange(steps) / 4) + rng.normal(size=steps)).tolist()}
        for name in ("a", "b", "stranger")[: 1 + number % 3]
    ]
    return json.dumps({"series": series, "columns": ["median", "lo-90"]}).encode()


def children(pid: int) -> list[psutil.Process]:
    """Processes that a process has started.

    Asked of every process: psutil's own way compares clocks, and misses some where the system's clock is set meanwhile.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.ppid() == pid:
                found.append(process)
    return found


def tree(pid: int) -> list[psutil.Process]:
    """All that descend from a process."""
    return [each for child in children(pid) for each in (child, *tree(child.pid))]


def ended(process: psutil.Process) -> bool:
    """Whether a process has ended, also where nobody has asked how."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def pss(pid: int) -> int:
    """Bytes of memory of a process and those that descend from it, of shared pages each its part."""
    found = 0
    for process in (psutil.Process(pid), *tree(pid)):
        with suppress(psutil.NoSuchProcess):
            found += process.memory_full_info().pss
    return found


def worker_of(pid: int) -> psutil.Process:
    """One of the processes that forecast: forked from what holds the champion, that from what imports."""
    (imports,) = children(pid)
    return next(worker for leader in children(imports.pid) for worker in children(leader.pid))


def test_load_with_a_champion_switched_and_a_stop_in_it(server: Server) -> None:
    """No wrong answer, none lost, no 5xx and no growth, with one bad request in twenty and a process that is killed."""
    bodies = [body(number, 60 + number) for number in range(12)]
    with_one = server.connection()
    expected = [np.array(json.loads(server.ask(with_one, each)[1])["forecasts"][0]["lo-90"]) for each in bodies]
    wrong: list[Any] = []
    answered, stopping, versions, memory = [0] * 6, threading.Event(), set(), list[int]()

    def client(number: int) -> None:
        connection, rng = server.connection(), np.random.default_rng(number)
        while True:
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            kept = True
            while kept:
                try:
                    kept = one(connection, rng)
                except (http.client.HTTPException, OSError) as error:
                    wrong.append(f"lost: {error!r}")
                    return
                answered[number] += 1
            connection.close()
            if stopping.is_set():
                return

    def one(connection: http.client.HTTPConnection, rng: np.random.Generator) -> bool:
        bad = rng.random() < 0.05
        content, code = BAD[rng.integers(len(BAD))] if bad else (bodies[(which := int(rng.integers(len(bodies))))], 200)
        connection.request("POST", "/v1/forecast", content, {"content-type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != code:
            wrong.append((answer.status, told, content[:80]))
        elif not bad:
            versions.add(told["model"]["version"])
            if not np.allclose(told["forecasts"][0]["lo-90"], expected[which], rtol=1e-5):
                wrong.append(("another forecast", which))
        return answer.getheader("connection") != "close"

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    pid = server.process.pid
    killed: psutil.Process | None = None
    promoting: subprocess.Popen[bytes] | None = None
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < SECONDS or versions != {"1", "2"}:
        assert passed < 5 * SECONDS, versions
        time.sleep(0.5)
        memory.append(pss(pid))
        if promoting is None and passed > SECONDS / 3:
            early = len(memory)
            promoting = server.start(PROMOTE, "2")
        if killed is None and passed > SECONDS / 2:
            killed = worker_of(pid)
            killed.kill()
    assert promoting is not None and promoting.wait(timeout=40) == 0
    time.sleep(SETTLE_SECONDS)
    memory.append(pss(pid))
    family = tree(pid)
    stopping.set()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "no client hangs"
    assert server.process.wait(timeout=40) == 0
    assert all(ended(each) for each in family)
    assert wrong == []
    assert min(answered) > 0 and sum(answered) > 60
    assert versions == {"1", "2"}
    assert memory[-1] < 1.1 * max(memory[:early]), "the old champion's memory is given back"
    assert any("asked to stop" in line for line in server.log)
    assert sum("another takes its place" in line for line in server.log) == 1
    assert not any("failed" in line or "Traceback" in line for line in server.log), server.log


def test_the_end_leaves_no_process_however_it_comes(server: Server) -> None:
    """What is sent to the whole group, as a terminal and service managers do, ends nothing before the service says so."""
    pid = server.process.pid
    until = time.monotonic() + 20
    while len(family := tree(pid)) != 2 + min(2, usable_cores()):  # the one that forecast the panel may still be there
        assert time.monotonic() < until
        time.sleep(0.05)
    for each in family:
        each.send_signal(signal.SIGTERM)
        each.send_signal(signal.SIGINT)
    with_one = server.connection()
    assert server.ask(with_one, body(1, 60))[0] == 200
    assert tree(pid) == family
    server.process.kill()
    server.process.wait()
    until = time.monotonic() + 20
    while not all(ended(each) for each in family):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_stranger_that_reads_the_description_finds_nothing(server: Server, tmp_path: Path) -> None:
    """Schemathesis: whatever it makes of the OpenAPI page, valid or not, is answered as the page says.

    That valid data is accepted is left out: which series exist, and that columns are equally long, no schema can say.
    """
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "--exclude-checks", "positive_data_acceptance", "--max-examples", "15", "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 selected / 6 total" in done.stdout


def test_what_cannot_be_listened_at_is_one_sentence(weatherglass: Callable[..., Any], project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, sentence in (
            (("--port", str(port)), f"127.0.0.1 port {port} cannot be listened at (Address already in use); choose"),
            (("--host", "nowhere.invalid"), "nowhere.invalid port 8080 cannot be listened at"),
        ):
            ended = weatherglass(project, "serve", *arguments)
            assert ended.code == 2 and sentence in ended.err and ended.err.count("\n") == 1


def test_small_answers_are_sent_at_once() -> None:
    """asyncio leaves out Nagle's algorithm, 40 ms an answer, for sockets that say that they are TCP's."""
    with _listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_who_is_in_the_queue_is_answered_and_who_comes_later_is_refused() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    with socket.create_connection(address) as early, socket.socket() as late:
        refuse_new(listening)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(address)
        accepted, _ = listening.accept()
        with accepted:
            accepted.sendall(b"answer")
        assert early.recv(6) == b"answer"
    listening.close()
    with socket.socket() as later, pytest.raises(ConnectionRefusedError):
        later.connect(address)
