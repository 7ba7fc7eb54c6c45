"""Processes that are asked over a connection, and processes that fork another for each connection they are sent.

Forking is safe where one thread runs. So a process that imports what all need and does nothing else is started once, what is
forked from it loads a champion, and what is forked from that forecasts: each finds the memory of the one before it, which they
share for as long as nobody writes to it. Nobody outside this tree holds an end of its connections, and a process ends when the
other end of its own does: when its service lets it go, or is killed.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import psutil

from tasks.errors import UserError

HOME = Path(__file__).resolve().parents[2]
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
END_SECONDS = 10.0
FORK_SECONDS = 120.0  # a nursery answers when it has imported everything
WORKER = ("-m", "tasks.serving.worker")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} | {
    "JE_ARROW_MALLOC_CONF": "background_thread:false"  # of Arrow's own allocator
}

SECRETS = ("PASSWORD", "SECRET", "TOKEN", "KEY", "AUTH", "CREDENTIAL")
"""Words in the names of variables that processes which forecast do without."""


class Lost(Exception):
    """A process that was asked has ended, or took too long and was ended for it."""


class Failed(Exception):
    """A process that was asked met a defect; its text names it."""


class Process:
    """A process at the other end of a connection; asked by one thread at a time, forked from by any."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self.connection, self.process = connection, psutil.Process(pid)
        self._forking = threading.Lock()

    def ask(self, *message: Any, seconds: float = 0.0) -> Any:
        """Send a message and return what is answered; with ``seconds`` the process is ended when that takes longer.

        Raises UserError as it was raised there, Failed where there was another error, and Lost.
        """
        try:
            _limit(self.connection, seconds)
            self.connection.send(message)
            kind, value = self.connection.recv()
        except BlockingIOError:
            self.kill()
            raise Lost(f"took more than {seconds:g} s and was ended") from None
        except (OSError, EOFError):
            self.kill()  # it may hang in its end
            raise Lost("has ended") from None
        if kind == "refused":
            raise UserError(value)
        if kind == "failed":
            raise Failed(value)
        return value

    def fork(self) -> Process:
        """A process forked from this one, which must be at `forks`; Lost where there is none."""
        with self._forking:
            try:
                _limit(self.connection, FORK_SECONDS)
                ours, theirs = Pipe()
                with theirs:
                    send_handle(self.connection, theirs.fileno(), self.process.pid)
                found = self.connection.recv()
            except (OSError, EOFError) as error:
                self.kill()  # what it may yet tell is of no use
                raise Lost(f"cannot fork any more ({type(error).__name__})") from None
        if isinstance(found, str):
            raise Lost(f"cannot fork: {found}")
        try:
            return Process(ours, found)
        except psutil.NoSuchProcess:
            raise Lost("has forked what has ended at once") from None

    @property
    def waits(self) -> bool:
        """Whether it is there and waits to be asked; only what has ended has something to say unasked."""
        try:
            with self._forking:
                return not self.connection.poll(0)
        except (OSError, EOFError):
            return False

    @property
    def ended(self) -> bool:
        """Whether it has ended, be it that its parent has not yet been told: an orphan's is the system's first process."""
        try:
            return bool(self.process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def let_go(self) -> None:
        """Close the connection, at whose end the process ends once it has done what it is at."""
        self.connection.close()

    def kill(self) -> None:
        """End the process at once."""
        try:
            self.process.kill()
        except psutil.NoSuchProcess:
            return


def wait_for_end(processes: list[Process]) -> None:
    """Wait until processes that were let go have ended, and end those that do not."""
    until = time.monotonic() + END_SECONDS
    while (alive := [each for each in processes if not each.ended]) and time.monotonic() < until:
        time.sleep(0.01)
    for process in alive:
        process.kill()


class Nursery(Process):
    """A process that has imported what the others need and forks them; started when it is made.

    ``python PROGRAM... DESCRIPTOR`` is it, a program that comes to `forks`.
    """

    def __init__(self, *program: str) -> None:
        ours, theirs = Pipe()
        path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
        with theirs:
            self.started = subprocess.Popen(
                [sys.executable, "-P", *(program or WORKER), str(theirs.fileno())],
                env=_without_secrets() | ONE_THREAD | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
            )
        super().__init__(ours, self.started.pid)

    def end(self) -> None:
        """Let it go and wait for it."""
        self.let_go()
        try:
            self.started.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.started.kill()
            self.started.wait()


def _without_secrets() -> dict[str, str]:
    """The environment without what opens a registry or a store; files of both are read by the service."""
    return {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in SECRETS)}


def forks(control: Connection) -> Connection | None:
    """Fork for each connection that comes; returns it in the new process, and None in this one when ``control`` ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a process ended: its connection tells
    while True:
        try:
            handle = recv_handle(control)
        except (OSError, EOFError):
            return None
        try:
            pid = os.fork()
        except OSError as error:
            pid, problem = -1, error.strerror or str(error)
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return Connection(handle)
        os.close(handle)
        try:
            control.send(problem if pid < 0 else pid)
        except OSError:
            return None


def answer(connection: Connection, works: dict[str, Callable[..., Any]]) -> None:
    """Do what is asked, a message (name of the work, arguments...) at a time, until the other end is gone."""
    while True:
        try:
            name, *arguments = connection.recv()
            connection.send(_done(works[name], arguments))
        except (OSError, EOFError):
            return


def _done(work: Callable[..., Any], arguments: list[Any]) -> tuple[str, Any]:
    try:
        return "done", work(*arguments)
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def _limit(connection: Connection, seconds: float) -> None:
    """Let sending and receiving end with BlockingIOError after ``seconds`` without a byte (socket(7)); 0 for no limit."""
    whole = struct.pack("ll", int(seconds), int(seconds % 1.0 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, whole)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, whole)


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by its control group's limit of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_LIMIT.read_text(encoding="ascii").split()
        return min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):  # none, or no limit ("max")
        return cores
