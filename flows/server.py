"""One Prefect server for the length of a pipeline, shared by the short processes that a pipeline is made of.

A Prefect flow needs an API. The ephemeral one is started again by every process, which costs each DVC stage 12 s or
more; a server that lives as long as the pipeline costs that once. Nobody owns it, so that ``dvc repro``, a single
command and two pipelines at once all work:

- a client holds a *shared* lock on ``clients.lock`` while it needs the server (a killed client drops it by itself);
- the first client starts the server, detached, under ``start.lock``; later ones find its address in ``server.json``;
- the server process watches ``clients.lock`` and stops once nobody has held it for ``idle_seconds``;
- a server that died is noticed by the next client, which starts another on the same database.

All of it lies in ``<root>/.weatherglass/server``, the log of the server in ``server.log`` beside it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from flows import environment
from tasks.errors import Unavailable
from tasks.files import locked, read_json, write_json

log = logging.getLogger("weatherglass.server")

IDLE_SECONDS = 60.0
POLL_SECONDS = 2.0
STOP_SECONDS = 15.0
UNREACHABLE_SECONDS = 10.0
EMBEDDED = "WEATHERGLASS_EMBEDDED_SERVER"

_exported_urls: set[str] = set()  # Prefect, if it was imported within a block, still names that block's server later


@contextmanager
def prefect_server(root: Path | str, idle_seconds: float = IDLE_SECONDS) -> Iterator[str]:
    """Yield the URL of a live Prefect API and export it as ``PREFECT_API_URL`` for the length of the block.

    An API that the user chose (``PREFECT_API_URL``, or Prefect's own settings) is used as it is; otherwise the
    project's embedded server is found or started. Enter the block before the first flow; importing Prefect before or
    within it makes no difference.

    Parameters
    ----------
    root
        Project folder.
    idle_seconds
        How long an embedded server started here outlives its last client, in seconds.

    Raises
    ------
    Unavailable
        If the given API does not answer, or the embedded server does not start.
    """
    given = given_api()
    if given:
        _require_reachable(given)
        yield given
        return
    folder = _folder(root)
    with _client(folder):
        api_url = _find_or_start(folder, idle_seconds)
        with _exported(api_url):
            yield api_url


def stop_server(root: Path | str) -> bool:
    """Stop the embedded server of ``root`` whoever uses it; return whether there was one."""
    folder = _folder(root)
    with locked(folder / "start.lock"):
        process = _process(_record(folder))
        if process is None:
            return False
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
        (folder / "server.json").unlink(missing_ok=True)
        return True


def is_healthy(api_url: str, timeout: float = 5.0) -> bool:
    """Return whether ``<api_url>/health`` answers within ``timeout`` seconds; a refusal to authorise is an answer."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout) as response:
            return bool(response.status < 500)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False


def _folder(root: Path | str) -> Path:
    folder = Path(root).resolve() / ".weatherglass" / "server"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def given_api() -> str | None:
    """Return the API that somebody else chose, in the environment or in Prefect's settings; None for our own."""
    given = os.environ.get("PREFECT_API_URL")
    if not given and "prefect" in sys.modules:
        from prefect.settings import PREFECT_API_URL

        given = PREFECT_API_URL.value()
    return None if given in (*_exported_urls, os.environ.get(EMBEDDED)) else given


def _require_reachable(api_url: str) -> None:
    """Wait with backoff for an API that the user named; Unavailable after about ``UNREACHABLE_SECONDS``."""
    deadline, pause = time.monotonic() + UNREACHABLE_SECONDS, 0.25
    while not is_healthy(api_url):
        if time.monotonic() + pause > deadline:
            raise Unavailable(
                f"PREFECT_API_URL (services.prefect_api_url in params.yaml) is {api_url}, which does not answer "
                f"at /health: start that server, or leave the address unset to use the embedded one."
            )
        time.sleep(pause)
        pause *= 2


@contextmanager
def _client(folder: Path) -> Iterator[None]:
    """Keep the server from stopping; the time stamp of the lock file says when it was last needed."""
    path = folder / "clients.lock"
    with locked(path, shared=True):
        os.utime(path)
        try:
            yield
        finally:
            os.utime(path)


@contextmanager
def _exported(api_url: str) -> Iterator[None]:
    """Set ``PREFECT_API_URL`` for this process and its children, and in Prefect if it is loaded; restore it after."""
    names = ("PREFECT_API_URL", EMBEDDED)
    before = {name: os.environ.get(name) for name in names}
    with ExitStack() as stack:
        if "prefect" in sys.modules:
            from prefect.settings import PREFECT_API_URL, temporary_settings

            stack.enter_context(temporary_settings({PREFECT_API_URL: api_url}))
        os.environ.update(dict.fromkeys(names, api_url))
        _exported_urls.add(api_url)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _record(folder: Path) -> dict[str, Any]:
    """Return what ``server.json`` says, empty when there is none."""
    try:
        return dict(read_json(folder / "server.json"))
    except (OSError, ValueError):
        return {}


def _process(record: dict[str, Any]) -> psutil.Process | None:
    """Return the process that wrote ``record`` if it still runs; its start time tells it from a reused pid."""
    try:
        process = psutil.Process(int(record["pid"]))
        if abs(process.create_time() - float(record["started"])) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (psutil.Error, KeyError, ValueError, TypeError):
        pass
    return None


def _find_or_start(folder: Path, idle_seconds: float) -> str:
    """Return the URL of the live embedded server, starting one if there is none; the caller is already a client."""
    api_url = _live_url(folder)
    if api_url:
        return api_url
    with locked(folder / "start.lock"):
        api_url = _live_url(folder)  # another process may have started it while this one waited for the lock
        if api_url:
            return api_url
        stuck = _process(_record(folder))
        if stuck is not None:
            stuck.kill()
            stuck.wait(STOP_SECONDS)
        started = time.monotonic()
        for _attempt in range(2):  # the free port may be taken by another program in between
            api_url = _start(folder, idle_seconds)
            if api_url:
                log.info("Prefect server started in %.1f s at %s", time.monotonic() - started, api_url)
                return api_url
    raise Unavailable(f"The embedded Prefect server did not start: see the last lines of {folder / 'server.log'}.")


def _live_url(folder: Path) -> str | None:
    """Return the address in ``server.json`` if its process runs and answers (asked three times when busy)."""
    record = _record(folder)
    api_url = record.get("api_url")
    for _attempt in range(3):
        if not api_url or _process(record) is None:
            return None
        if is_healthy(api_url):
            return str(api_url)
        time.sleep(0.5)
    return None


def _start(folder: Path, idle_seconds: float) -> str | None:
    """Start the server process, detached from this one, and wait until it answers; None if it ended or was too slow."""
    (folder / "server.json").unlink(missing_ok=True)
    variables = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", EMBEDDED)}
    package = str(Path(__file__).resolve().parents[1])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [package, variables.get("PYTHONPATH")]))
    root = folder.parents[1]
    with open(folder / "server.log", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(root), str(idle_seconds)],
            cwd=root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + float(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90"))
    while process.poll() is None and time.monotonic() < deadline:
        api_url = _record(folder).get("api_url")
        if api_url:
            # Its end is not this process's business, so a ResourceWarning about an unreaped child would mislead.
            threading.Thread(target=process.wait, daemon=True).start()
            return str(api_url)
        time.sleep(0.1)
    if process.poll() is None:
        process.kill()
        process.wait()
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch(folder: Path, api_url: str, idle_seconds: float) -> None:
    """Publish the server's address once it answers, then end this process when it has had no client for a while."""
    while not is_healthy(api_url):
        time.sleep(0.1)
    me = psutil.Process()
    write_json(folder / "server.json", {"pid": me.pid, "started": me.create_time(), "api_url": api_url})
    path = folder / "clients.lock"
    last_busy = time.time()
    with open(path, "a") as stream:
        while True:
            time.sleep(min(POLL_SECONDS, max(idle_seconds / 4, 0.1)))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                last_busy = time.time()
                continue
            try:
                needed = max(last_busy, path.stat().st_mtime)
            except FileNotFoundError:
                break  # the folder was cleaned away, and nobody can find this server any more
            if time.time() - needed >= idle_seconds:
                break  # keep the lock: a client that comes now waits until this process is gone, then starts another
            fcntl.flock(stream, fcntl.LOCK_UN)
        if _record(folder).get("pid") == me.pid:
            (folder / "server.json").unlink(missing_ok=True)
        os.kill(me.pid, signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)  # the server did not stop when asked to


def _serve(root: Path, idle_seconds: float) -> None:
    """Run ``prefect server start`` in this process, watched by a thread."""
    environment.configure(root)
    port = _free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_SERVER_UI_API_URL"] = api_url
    threading.Thread(target=_watch, args=(_folder(root), api_url, idle_seconds), daemon=True).start()

    from prefect.cli import app

    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--analytics-off"]
    app()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
