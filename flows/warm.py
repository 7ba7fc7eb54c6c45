"""A process that has imported everything, from which the stages of a run are forked.

A pipeline is many short processes, and each would spend seconds on importing torch, Prefect and MLflow again. While a run
lasts, :mod:`flows.warm_server` does so once; ``python -m flows.<stage>``, as DVC calls it, hands its command over, stays for
as long as the stage works and ends with its exit code. Where there is no such process (``dvc repro`` called directly), or it
cannot stand for this one, the stage runs where it was started: what it writes is the same.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "WEATHERGLASS_WARM"
SOCKET, LOG = ".weatherglass/warm.sock", ".weatherglass/warm.log"
REFUSED = "refused"
LENGTH_BYTES = 8


@contextmanager
def warm_process(root: Path) -> Iterator[None]:
    """Keep the process for the length of the block; ``root`` has at most one, since it has one run at a time."""
    (root / SOCKET).parent.mkdir(parents=True, exist_ok=True)
    (root / SOCKET).unlink(missing_ok=True)
    with open(root / LOG, "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.warm_server"], cwd=root, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    os.environ[VARIABLE] = str(root / SOCKET)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        process.kill()  # it holds nothing; a stage at work does not need it any more
        process.communicate()
        (root / SOCKET).unlink(missing_ok=True)


def handed_over() -> int | None:
    """Have this process's command run by the warm process and return its exit code; None where it has to run here.

    That is where there is no warm process, or where it refuses: it has imported code that has changed since, or under other
    settings. The run itself, which trains ahead on a cluster, is no stage: handed over, it would wait for its own end.
    When this process is killed, the stage ends as well.
    """
    address, module = os.environ.get(VARIABLE), sys.modules["__main__"].__spec__
    if not address or module is None or not module.name.startswith("flows.") or module.name == "flows.__main__":
        return None
    request = {"module": module.name, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.path.relpath(address))  # addresses are short: at most 107 bytes
            send(connection, request)
        except OSError:
            return None
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage by itself
        try:
            answer = b"".join(iter(lambda: connection.recv(64), b"")).decode()
        finally:
            signal.signal(signal.SIGINT, before)
    if answer == REFUSED:
        return None
    if not answer:
        print(f"{module.name}: its process was killed", file=sys.stderr)
    return int(answer or 1)


def send(connection: socket.socket, request: Mapping[str, object]) -> None:
    """Send a request and this process's standard streams."""
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(LENGTH_BYTES, "big")], [0, 1, 2])
    connection.sendall(body)
