"""Services that these tests start, all on 127.0.0.1, and their end."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="session")
def kill_tree() -> Callable[[psutil.Process], None]:
    """Kill a process and all that it has started."""

    def kill(process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            family = [*process.children(recursive=True), process]
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=20)

    return kill


@pytest.fixture(scope="module")
def service(
    environment: dict[str, str], kill_tree: Callable[[psutil.Process], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., psutil.Process]]:
    """Start a command in the background, with the project's code at hand; all of its processes end with the module."""
    folder, started = tmp_path_factory.mktemp("services"), list[psutil.Process]()
    variables = environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "RAY_USAGE_STATS_ENABLED": "0"}

    def start(*command: str, **more: str) -> psutil.Process:
        with open(folder / f"{len(started)}.log", "wb") as log:
            process = psutil.Popen(command, cwd=folder, env=variables | more, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        kill_tree(process)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of 127.0.0.1 that nobody has at the moment."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
