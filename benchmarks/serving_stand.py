"""What is measured and where: a project of its own for the champion, and services as processes of one compute thread."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import HOME
from flows.environment import opened
from tasks.bundle import Bundle, bundle_digest
from tasks.errors import UserError
from tasks.files import file_md5, read_json, write_json
from tasks.forecast import PANEL
from tasks.params import Params
from tasks.params_file import read_yaml
from tasks.registry import log_and_register, stored_bundle, version_behind
from tasks.tracking_store import SQLITE, current_client, initialise, retry

PARAMS_FILE = "params.yaml"
START_SECONDS, STOP_SECONDS = 240.0, 45.0


@dataclass(frozen=True)
class Stand:
    """A project with a panel and a registry of its own, in which a champion is registered by the code that is measured."""

    root: Path
    params: Params
    champion: str
    folder: Path
    run_id: str

    @classmethod
    def lay_out(cls, project: Path, root: Path) -> Stand:
        """Copy the panel and the champion of ``project`` to ``root``; the project's registry is only read.

        Raises UserError where the project has no panel or no champion.
        """
        project, params = opened(project)
        folder = root / "champion/bundle"  # MLflow keeps the last part of the name
        copy_champion(project, params, folder)
        if not (project / PANEL).exists():
            raise UserError(f"{PANEL} is not there under {project}; run `make run` there first, or name another --root.")
        (root / PANEL).parent.mkdir(parents=True)
        shutil.copyfile(project / PANEL, root / PANEL)
        tree = read_yaml(project / PARAMS_FILE, PARAMS_FILE)
        tree["serving"] = {**tree.get("serving", {}), "api_keys": None}
        (root / PARAMS_FILE).write_text(yaml.safe_dump(tree), encoding="utf-8")
        os.environ["MLFLOW_TRACKING_URI"] = initialise(f"{SQLITE}{root}/mlflow.db")
        client = current_client()
        experiment = client.create_experiment("serving", artifact_location=(root / "mlartifacts").as_uri())
        stand = cls(root, params, "", folder, client.create_run(experiment).info.run_id)
        version = stand.register(folder)
        stand.point(version)
        return cls(root, params, version, folder, stand.run_id)

    @property
    def name(self) -> str:
        return self.params.registry.name

    def bundle(self) -> Bundle:
        return Bundle.load(self.folder)

    def register(self, folder: Path) -> str:
        """Register a bundle; returns its version."""
        return log_and_register(self.params, self.root, folder, self.run_id, bundle_digest(folder))

    def point(self, version: str, alias: str = "champion") -> None:
        """Move the alias."""
        retry(current_client().set_registered_model_alias, self.name, alias, version)

    def other(self) -> str:
        """Register a second version with other answers: the champion's bundle, all weight on its first member."""
        folder = self.root / "other/bundle"
        shutil.copytree(self.folder, folder)
        content = read_json(folder / "bundle.json")
        for place, member in enumerate(content["members"]):
            member["weight"] = float(place == 0)
        write_json(folder / "bundle.json", content)
        manifest = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", manifest | {"bundle.json": file_md5(folder / "bundle.json")})
        return self.register(folder)


def copy_champion(project: Path, params: Params, folder: Path) -> None:
    """Copy the champion's bundle from a project's registry to ``folder``; UserError where it has none."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise UserError(f"{project} has no champion: {uri.removeprefix(SQLITE)} is not there; run `make run` there first.")
    initialise()
    version, _ = version_behind(params.registry.name)
    with stored_bundle(params.registry.name, version) as stored:
        shutil.copytree(stored, folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Service:
    """A service that answers, and how it is asked: the form of its bodies and their path."""

    port: int
    process: psutil.Process
    form: str
    path: str

    def processes(self) -> list[psutil.Process]:
        return [self.process, *descendants(self.process.pid)]

    def cpu_seconds(self) -> float:
        """Processor time that the service has used so far."""
        return float(sum(sum(process.cpu_times()[:2]) for process in self.processes()))

    def memory(self) -> int:
        """Bytes of memory in use by all processes, a page that several share counted once (PSS, proc(5) smaps_rollup)."""
        found = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # a champion's processes end when its successor has come
                found += process.memory_full_info().pss
        return found


def descendants(pid: int) -> list[psutil.Process]:
    """Processes that descend from a process, by what each says of its parent.

    psutil's ``children`` compares times of creation, and misses some where the system's clock is set meanwhile.
    """
    parents: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            parents.setdefault(process.ppid(), []).append(process)
    found = list(parents.get(pid, ()))
    for process in found:  # which grows
        found += parents.get(process.pid, ())
    return found


@contextmanager
def running(name: str, command: list[str], cwd: Path, log: Path, port: int, ready: str) -> Iterator[psutil.Process]:
    """A service as a process group of its own, from its first answer at ``ready`` to the end of the block.

    Raises UserError with the end of its log where it does not come up.
    """
    with log.open("wb") as stream:
        started = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    process = psutil.Process(started.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if started.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"{name} does not come up: {log.read_text(errors='replace')[-600:].strip()}")
            time.sleep(0.25)
        yield process
    finally:
        end(started)


def end(started: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end, and end them where they do not."""
    try:
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        if process.is_running():
            process.terminate()
    _, alive = psutil.wait_procs(family, STOP_SECONDS)
    for process in alive:
        process.kill()
    started.wait()


def environment() -> dict[str, str]:
    """Of every service: one compute thread, this interpreter's programs, and none of the caller's settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEATHERGLASS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


@contextmanager
def ours(stand: Stand) -> Iterator[Service]:
    """`weatherglass serve` on the stand's champion."""
    port = free_port()
    command = [sys.executable, "-m", "flows", "serve", "--root", str(stand.root), "--host", "127.0.0.1", "--port", str(port)]
    with running("weatherglass serve", command, HOME, stand.root / "weatherglass.log", port, "/readyz") as process:
        yield Service(port, process, "ours", "/v1/forecast")


@contextmanager
def mlflow(stand: Stand, form: str) -> Iterator[Service]:
    """`mlflow models serve` on the same champion, one worker, asked with bodies of ``form``."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{stand.name}@champion", "--env-manager", "local",
        "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with running("mlflow models serve", command, stand.root, stand.root / "mlflow.log", port, "/ping") as process:
        yield Service(port, process, form, "/invocations")


@contextmanager
def neuralforecast(stand: Stand, interpreter: Path, bundle: Bundle, steps: int) -> Iterator[Service]:
    """A NeuralForecast model behind a plain app, in the peers' environment; trained for ``steps`` steps when it starts."""
    port, encoding = free_port(), bundle.encoding
    spec: Mapping[str, Any] = {
        "panel": str(stand.root / PANEL), "folder": str(stand.root / "neuralforecast"), "port": port, "steps": steps,
        "horizon": encoding.schema.horizon, "context": encoding.schema.context, "frequency": encoding.frequency,
        "known": list(encoding.known_future), "past": list(encoding.past_only),
    }  # fmt: skip
    write_json(stand.root / "spec.json", spec)
    program = Path(__file__).with_name("peer_serving.py").resolve()
    command = [str(interpreter.absolute()), "-P", str(program), str(stand.root / "spec.json")]
    with running("NeuralForecast's app", command, stand.root, stand.root / "neuralforecast.log", port, "/ready") as process:
        yield Service(port, process, "split", "/forecast")
