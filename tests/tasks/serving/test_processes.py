"""Processes answer, fork, and end with what they belong to, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.errors import UserError
from tasks.serving import processes
from tasks.serving.processes import Failed, Lost, Nursery, Process, usable_cores, wait_for_end

ECHO = str(Path(__file__).with_name("echo.py"))
TREE = f"""
import sys, time
from tasks.serving.processes import Nursery
nursery = Nursery("{ECHO}")
leader = nursery.fork()
workers = [leader.fork(), leader.fork()]
print(*[each.process.pid for each in (nursery, leader, *workers)], flush=True)
workers[0].ask("sleep", float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def leader() -> Iterator[Process]:
    nursery = Nursery(ECHO)
    leader = nursery.fork()
    yield leader
    leader.let_go()
    nursery.end()
    assert gone([leader.process.pid])


@pytest.fixture
def worker(leader: Process) -> Iterator[Process]:
    worker = leader.fork()
    yield worker
    worker.let_go()
    wait_for_end([worker])
    assert gone([worker.process.pid])


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether processes have ended, at the latest after ``seconds``."""
    until = time.monotonic() + seconds
    while (there := any(alive(pid) for pid in pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not there


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_arrays_come_back_as_they_were(worker: Process) -> None:
    values = np.random.default_rng(1).normal(size=(1000, 300))
    name, found = worker.ask("echo", "a", values)
    assert name == "a"
    np.testing.assert_array_equal(found, values)


def test_errors_come_back_as_what_they_were(worker: Process) -> None:
    with pytest.raises(UserError, match=r"^the row is wrong$"):
        worker.ask("refuse", "the row is wrong")
    with pytest.raises(Failed, match=r"^ZeroDivisionError: division by zero$"):
        worker.ask("divide")
    assert worker.ask("echo", 1) == (1,) and worker.waits


def test_one_that_ends_is_lost_and_another_can_be_forked(leader: Process) -> None:
    worker = leader.fork()
    with pytest.raises(Lost, match="has ended"):
        worker.ask("end")
    assert not worker.waits
    idle = leader.fork()
    assert idle.waits
    idle.process.kill()
    assert gone([idle.process.pid]) and not idle.waits
    with pytest.raises(Lost):
        idle.ask("echo")


@pytest.mark.parametrize("megabytes", [0, 20])
def test_one_that_takes_too_long_is_ended(leader: Process, megabytes: int) -> None:
    """Whether it does not answer, or does not even read what it is asked."""
    worker = leader.fork()
    worker.process.suspend()
    with pytest.raises(Lost, match=r"took more than 0\.3 s"):
        worker.ask("echo", b" " * (megabytes * 1_000_000), seconds=0.3)
    assert gone([worker.process.pid])


def test_one_that_cannot_fork_any_more_says_so() -> None:
    nursery = Nursery(ECHO)
    leader = nursery.fork()
    worker = leader.fork()
    leader.process.kill()
    with pytest.raises(Lost, match="cannot fork any more"):
        leader.fork()
    assert worker.ask("echo", 1) == (1,), "those that are there go on"
    worker.let_go()
    nursery.end()
    assert gone([worker.process.pid])


def test_they_get_one_thread_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    nursery = Nursery(ECHO)
    nursery.fork().let_go()  # it has begun
    found = nursery.process.environ()
    nursery.end()
    assert "hidden" not in found.values() and found["OMP_NUM_THREADS"] == "1" and found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("working", [False, True])
def test_all_end_when_who_asks_them_is_killed(working: bool) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", TREE, "60" if working else "0"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None and parent.stderr is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 4
    assert "asleep\n" in iter(parent.stderr.readline, ""), "the one that is asked is at it before the kill"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    if working:  # one that is at work ends after it
        assert gone([*pids[:2], pids[3]])
        os.kill(pids[2], signal.SIGKILL)
    assert gone(pids)


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3)]
)
def test_cores_are_those_of_affinity_and_of_the_control_group(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpu.max"
    monkeypatch.setattr(processes, "CGROUP_LIMIT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert usable_cores() == 3
    path.write_text(limit + "\n")
    assert usable_cores() == cores
