"""The stack of docker/compose.yaml, built and started on loopback with a tiny project, by Docker or by Podman."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = PROJECT / "docker/compose.yaml"
HOST = Path(__file__).parent / "host.yaml"
NAME = "weatherglass-test"
TAG = "test"
BASE = "docker.io/library/python:3.11-slim-bookworm"  # the one that the script makes
POSTGRES = "localhost/weatherglass/postgres:test"
IMAGES = ("serve", "worker")
PORTS = ("POSTGRES", "MLFLOW", "PREFECT", "WORKER", "SCORER")
SMALL = {
    "uncertainty": "constrained",
    "families": ["tcn"],
    "train.members": 1,
    "train.batches_per_epoch": 40,
    "train.workers": 1,
    "forecasters.tcn.max_epochs": 40,
    "baselines.models": ["seasonal_naive"],
    "projection.points": 20,
}
TOLD = pytest.StashKey[list[str]]()
PIP_CONFIGURATION = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nfind-links = /wheels\n"
BUILD_SECONDS, START_SECONDS = 900.0, 240.0


def _answers(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def script() -> Path | None:
    """The script that runs Podman where there is no Docker: ``WEATHERGLASS_CONTAINERS``, or that of the folder beside."""
    named = os.environ.get("WEATHERGLASS_CONTAINERS")
    path = Path(named) if named else PROJECT.parent / "shared/tools/containers.sh"
    return path if path.is_file() else None


def pytest_configure(config: pytest.Config) -> None:
    if not _answers("docker", "info") and script() is None:
        pytest.exit(
            "neither a Docker engine nor a script for Podman (WEATHERGLASS_CONTAINERS) is here: the images were not built, and "
            "the stack was not started",
            returncode=0,
        )


class Engine:
    """Docker with its Compose."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.ports = {name: int(environment[f"PORT_{name}"]) for name in PORTS}

    @property
    def compose_command(self) -> list[str]:
        return ["docker", "compose", "-p", NAME, "-f", str(COMPOSE)]

    def call(self, *command: str, seconds: float = 120.0, check: bool = True) -> str:
        """Run a command to its end and return what it printed on both streams."""
        done = subprocess.run(
            command, cwd=PROJECT, env=self.environment, text=True, timeout=seconds, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
        return done.stdout

    def engine(self, *arguments: str, **options: Any) -> str:
        return self.call("docker", *arguments, **options)

    def compose(self, *arguments: str, **options: Any) -> str:
        return self.call(*self.compose_command, *arguments, **options)

    def build(self) -> None:
        """Build the images, and have PostgreSQL's."""
        self.compose("build", "scorer", "worker", seconds=BUILD_SECONDS)
        self.compose("pull", "postgres", seconds=BUILD_SECONDS)

    def container(self, service: str) -> str:
        return f"{NAME}-{service}-1"

    def size(self, image: str) -> float:
        """Size of an image with all its layers, in MB."""
        return float(self._image(image)["Size"]) / 1e6

    def layers(self, image: str) -> list[str]:
        """Digests of an image's layers, from the base up."""
        return list(self._image(image)["RootFS"]["Layers"])

    def _image(self, image: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.engine("image", "inspect", f"weatherglass/{image}:{TAG}"))
        return found[0]

    def start(self, service: str) -> None:
        """Start a service alone."""
        self.compose("up", "--detach", "--no-build", "--no-deps", service, seconds=START_SECONDS)

    def healthy(self, service: str) -> bool:
        return self.inspect(service)["State"]["Health"]["Status"] == "healthy"

    def inspect(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.engine("inspect", self.container(service)))
        return found[0]

    def logs(self, service: str) -> str:
        return self.engine("logs", self.container(service), check=False)

    def exec(self, service: str, *command: str, **options: Any) -> str:
        return self.engine("exec", self.container(service), *command, **options)

    def kill(self, service: str) -> None:
        """End a container by SIGKILL, as the kernel does where memory is short."""
        self.engine("kill", "--signal", "KILL", self.container(service))

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "20", check=False, seconds=START_SECONDS)


class Podman(Engine):
    """Podman by the script, with images from a base that needs no registry, on the host's network."""

    def __init__(self, folder: Path, environment: dict[str, str], path: Path) -> None:
        super().__init__(folder, environment)
        self.path = str(path)
        self.rendered = folder / "compose.json"

    @property
    def compose_command(self) -> list[str]:
        return [self.path, "compose", "-p", NAME, "-f", str(self.rendered)]

    def engine(self, *arguments: str, **options: Any) -> str:
        return self.call(self.path, "podman", *arguments, **options)

    def build(self) -> None:
        self.call(self.path, "base", seconds=BUILD_SECONDS)
        self.call(self.path, "build", "tests/docker/postgres.Dockerfile", POSTGRES, "tests/docker", seconds=BUILD_SECONDS)
        for image in IMAGES:
            self._build_target(image)
        self.rendered.write_text(self._config(), encoding="utf-8")

    def _build_target(self, image: str) -> None:
        """Build a target; pip inside is told of the wheels that it is told of here."""
        wheels, mounts = os.environ.get("PIP_FIND_LINKS"), []
        if wheels and Path(wheels).is_dir():
            (self.folder / "pip.conf").write_text(PIP_CONFIGURATION, encoding="utf-8")
            mounts = ["-v", f"{wheels}:/wheels:ro", "-v", f"{self.folder / 'pip.conf'}:/etc/pip.conf:ro"]
        options = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--pull=never", "--layers", *mounts]
        arguments = ["--build-arg", "TORCH_INDEX=", "--build-arg", f"PYTHON_IMAGE={BASE}"]
        target = ["--target", image, "--tag", f"weatherglass/{image}:{TAG}", "-f", "docker/Dockerfile", "."]
        self.engine("build", *options, *arguments, *target, seconds=BUILD_SECONDS)

    def _config(self) -> str:
        """Both Compose files merged by Compose itself."""
        compose = str(Path(sys.executable).parent / "docker-compose")
        return self.call(compose, "-p", NAME, "-f", str(COMPOSE), "-f", str(HOST), "config", "--format", "json")

    def container(self, service: str) -> str:
        return f"{NAME}-{service}"

    def healthy(self, service: str) -> bool:
        """Podman's timers need systemd, so the check of the container is run by hand."""
        return _answers(self.path, "podman", "healthcheck", "run", self.container(service))


def wait(until: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask ``until`` again until it answers with something true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (answer := until()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not so: {what}"
        time.sleep(1.0)
    return answer


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Have a line shown at the end."""
    return pytestconfig.stash.setdefault(TOLD, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(TOLD, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Any], float, str], Any]:
    return wait


@pytest.fixture(scope="session")
def engine(
    tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Path], edit_params: Callable[..., None]
) -> Iterator[Engine]:
    """The engine that is here, told of the tiny project, of secrets of its own and of free ports."""
    folder = tmp_path_factory.mktemp("stack")
    root = new_project(folder / "project")
    edit_params(root, SMALL)
    subprocess.run([PROJECT / "docker/secrets.sh", folder / "secrets"], check=True, capture_output=True)
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = {name: str(probe.getsockname()[1]) for name, probe in zip(PORTS, probes, strict=True)}
    for probe in probes:
        probe.close()
    variables = {
        "WEATHERGLASS_TAG": TAG,
        "WEATHERGLASS_SECRETS": str(folder / "secrets"),
        "WEATHERGLASS_DATA": str(root / "data/raw"),
        "WEATHERGLASS_PARAMS": str(root / "params.yaml"),
        **{f"WEATHERGLASS_{name}_PORT": port for name, port in ports.items()},
        **{f"PORT_{name}": port for name, port in ports.items()},
    }
    environment = dict(os.environ) | variables
    if _answers("docker", "info"):
        yield Engine(folder, environment)
    else:
        path = script()
        assert path is not None
        yield Podman(folder, environment | {"POSTGRES_IMAGE": POSTGRES}, path)
