"""The process of :mod:`flows.warm`: ``python -m flows.warm_server`` in a project's folder, until its standard input ends.

It has one thread and runs nothing itself, which is what makes forking it safe. It imports a module at a time and listens in
between, so that the first stages are not kept waiting for what only the last ones need.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil

from flows.warm import LENGTH_BYTES, REFUSED, SOCKET, VARIABLE

IMPORTS = (
    "flows.stage",
    "flows.server",
    "tasks.tracking",
    "prefect.flow_engine",
    "prefect.task_engine",
    "anyio._backends._asyncio",
    "pydantic.v1",
    "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
    "pyarrow.parquet",
    "pandera.pandas",
    "tasks.ingest",
    "tasks.prepare",
    "tasks.evaluate",
    "statsforecast.models",
    "prophet",
    "flows.runners",
    "tasks.train",
    "tasks.descent",
    "safetensors.torch",
    "tasks.calibrate",
    "tasks.interpret",
    "jinja2",
    "tasks.evidence",
    "tasks.report",
    "tasks.report_plots",
    "prefect.artifacts",
    "sklearn.manifold",
    "umap",
    "tasks.projection.run",
    "mlflow.pyfunc",
    "tasks.registry",
    "tasks.summary",
)
"""What stages import, in the order in which they do; a name that is missing here costs time and nothing else."""
READ_ON_IMPORT = (
    "PREFECT_",
    "MLFLOW_",
    "PYTHON",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMBA_",
    "TORCH_",
    "CUDA_",
    "MALLOC_",
    "MPL",
    "LD_",
)
PER_STAGE = ("PREFECT_API_URL",)  # :mod:`flows.server` tells Prefect itself
HOUSES = ("flows", "tasks", "models")

_exit_code: list[tuple[socket.socket, int]] = []


def serve(listener: socket.socket, lifeline: int, environment: dict[str, str]) -> None:
    """Import, and fork a process for each request; returns in each such process, and when ``lifeline`` ends.

    ``environment`` is that in which this process was started; a request from another is refused.
    """
    left = list(reversed(IMPORTS))
    sources = dict[Path, tuple[int, int]]()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a stage ended: it tells so itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready = select.select([listener.fileno(), lifeline], [], [], 0.0 if left else None)[0]
        if lifeline in ready:
            return
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            with connection:
                request, streams = receive(connection)
                fits = settings(request["environment"]) == settings(environment)
                if not fits or any(stamp(path) != seen for path, seen in sources.items()):
                    connection.sendall(REFUSED.encode())
                elif fork() == 0:
                    listener.close()
                    become(connection.dup(), request, streams)
                    return
                for stream in streams:
                    os.close(stream)
        elif left:
            load(left.pop())
            sources |= {path: stamp(path) for path in own_files() if path not in sources}
            if not left:
                start_member_server()
                gc.freeze()


def settings(environment: dict[str, str]) -> dict[str, str]:
    """Those variables that libraries read as they are imported."""
    return {key: value for key, value in environment.items() if key.startswith(READ_ON_IMPORT) and key not in PER_STAGE}


def load(name: str) -> None:
    """Import a module; where that fails, the stage that needs it will tell."""
    try:
        importlib.import_module(name)
    except Exception:
        traceback.print_exc()


def own_files() -> list[Path]:
    """The project's own code that is imported here."""
    modules = (module for name, module in list(sys.modules.items()) if name.partition(".")[0] in HOUSES)
    return [Path(file) for module in modules if (file := getattr(module, "__file__", None))]


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those of BLAS are made for it
        return os.fork()


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the standard streams of who sent it."""
    head, streams, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
    body = bytearray()
    while len(body) < int.from_bytes(head, "big"):
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionError("a stage ended before it had told its command")
        body += more
    return json.loads(body), streams


def become(connection: socket.socket, request: dict[str, Any], streams: list[int]) -> None:
    """Run a stage's command in this process, which was forked for it; the exit code is sent as its last deed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.chdir(request["folder"])
    os.environ.clear()
    # its caller, which DVC has started, ends with DVC, and this process with its caller
    os.environ.update({key: value for key, value in request["environment"].items() if key not in (VARIABLE, "DVC_STAGE")})
    sys.argv[1:] = request["arguments"]
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    _exit_code.append((connection, run(request["module"])))


def run(module: str) -> int:
    """Run a module as the main one and return its exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, str):
            return int(ended.code or 0)
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end_with(connection: socket.socket) -> None:
    """End this process when its caller is gone."""
    connection.recv(1)
    if not _exit_code:
        os._exit(1)


def tell() -> None:
    """Send the exit code; registered before anything else, so that it is the last of what is done at exit."""
    for connection, code in _exit_code:
        sys.stdout.flush()
        connection.sendall(str(code).encode())
        connection.close()


def start_member_server() -> None:
    """Start the server that forks members' processes, so that one serves every family of the run.

    Python starts one in each process that needs it, and would do so in a fork of this one: a server is waited for by its
    parent. Here a fork uses its parent's for as long as that is there.
    """
    from tasks.train import member_processes

    member_processes()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server.ensure_running()
    process, own = psutil.Process(server._forkserver_pid), server.ensure_running

    def ensure_running() -> None:
        if server._forkserver_pid == process.pid and not process.is_running():
            server._forkserver_pid = None
        if server._forkserver_pid != process.pid:
            own()

    server.ensure_running = ensure_running


def main() -> None:
    atexit.register(tell)
    environment = dict(os.environ)
    from flows.environment import opened

    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        listener.bind(SOCKET)
        os.umask(before)
        listener.listen()
        opened(Path.cwd())
        serve(listener, sys.stdin.fileno(), environment)


if __name__ == "__main__":
    main()
