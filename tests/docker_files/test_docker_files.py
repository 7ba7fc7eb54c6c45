"""The files of docker/ without an engine: Compose and hadolint read them, secrets are kept, passwords go where they belong."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"


def tool(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).parent / name)


def module(path: Path) -> ModuleType:
    """A Python file that is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def rendered(*arguments: str, **variables: str) -> dict[str, Any]:
    """The stack as Compose understands it."""
    command = [tool("docker-compose"), *arguments, "-f", str(DOCKER / "compose.yaml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(yaml.safe_load(done.stdout))


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((), set()),
        (("--profile", "gpu"), {"worker-gpu"}),
        (("--profile", "s3"), {"s3", "s3-volume", "s3-bucket"}),
        (("--env-file", str(DOCKER / "gpu.env")), {"worker-gpu"}),
        (("--env-file", str(DOCKER / "s3.env")), {"s3", "s3-volume", "s3-bucket"}),
    ],
)
def test_compose_reads_the_stack_with_each_profile(arguments: tuple[str, ...], more: set[str]) -> None:
    services = rendered(*arguments)["services"]
    assert set(services) == {"postgres", "mlflow", "prefect", "bootstrap", "worker", "scorer"} | more
    for name, service in services.items():
        assert service["user"] == "10001:10001", name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert [port["host_ip"] for port in service.get("ports", [])] in ([], ["127.0.0.1"]), name
        assert not [variable for variable in service.get("environment", {}) if variable.endswith(("PASSWORD", "_KEY"))], name


def test_images_are_pinned_and_the_gpu_takes_the_place_of_the_cpu() -> None:
    services = rendered("--env-file", str(DOCKER / "gpu.env"))["services"]
    assert services["worker"]["scale"] == 0
    assert services["worker"]["build"]["args"]["TORCH_INDEX"].endswith("/cpu")
    assert services["worker-gpu"]["build"]["args"]["TORCH_INDEX"] == ""
    every = rendered("--profile", "s3")["services"].values()
    foreign = [service["image"] for service in every if "build" not in service]
    base = next(line for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines() if "PYTHON_IMAGE=" in line)
    assert len(foreign) == 2
    assert all(re.search(r":\d+\.\d+", image) for image in (*foreign, base))


def test_only_what_the_dockerfile_copies_is_sent_to_the_engine() -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert lines.index("docker/secrets") > lines.index("!docker")


def run_secrets(folder: Path) -> dict[str, str]:
    subprocess.run([DOCKER / "secrets.sh", folder], check=True, capture_output=True)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_secrets_are_made_once_and_nobody_else_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = run_secrets(folder)
    declared = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["secrets"]
    assert set(first) == set(declared)
    assert len(set(first.values())) == len(first)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        status = path.stat()
        assert status.st_mode & 0o777 == (0o600 if os.geteuid() == 0 else 0o644)
        assert status.st_uid == (10001 if os.geteuid() == 0 else os.geteuid())
    (folder / "api_keys").unlink()
    again = run_secrets(folder)
    assert {name for name in first if first[name] != again[name]} == {"api_keys"}


@pytest.fixture
def entrypoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The entrypoint in a container whose folders lie under tmp_path."""
    loaded = module(DOCKER / "entrypoint.py")
    for name in ("SECRETS", "APP", "PROJECT"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(loaded, name, tmp_path / name.lower())
    monkeypatch.setattr(loaded, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return loaded


def write_secrets(entrypoint: ModuleType, *names: str) -> None:
    for name in names:
        (entrypoint.SECRETS / name).write_text(f"{name}@/%word\n", encoding="utf-8")


def test_a_command_gets_the_credentials_of_the_secrets_that_its_container_has(
    entrypoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entrypoint.APP / "project").mkdir()
    (entrypoint.APP / "project/params.yaml").write_text("image's", encoding="utf-8")
    became: list[list[str]] = []
    environment = {"TMPDIR": str(tmp_path)}
    monkeypatch.setattr(entrypoint.os, "environ", environment)
    monkeypatch.setattr(entrypoint.os, "execvp", lambda name, command: became.append(command))
    write_secrets(entrypoint, "mlflow_scorer_password")
    entrypoint.main(["serve"])
    root = tmp_path / "serve"
    assert became == [["weatherglass", "serve", "--root", str(root)]]
    assert (root / "params.yaml").read_text(encoding="utf-8") == "image's"
    assert (root / "data").readlink() == entrypoint.PROJECT / "data"
    assert environment.pop("TMPDIR") == str(tmp_path)
    assert environment == {"MLFLOW_TRACKING_USERNAME": "scorer", "MLFLOW_TRACKING_PASSWORD": "mlflow_scorer_password@/%word"}
    write_secrets(entrypoint, "mlflow_admin_password", "prefect_password")
    entrypoint.main(["dvc", "status"])
    assert became[-1] == ["dvc", "status"]
    assert environment["MLFLOW_TRACKING_USERNAME"] == "admin"
    assert environment["PREFECT_API_AUTH_STRING"] == "weatherglass:prefect_password@/%word"


def test_a_missing_secret_is_one_sentence(entrypoint: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"prefect_database_password is not there or empty; make it by docker/secrets\.sh"):
        entrypoint.prefect_server({})


def test_servers_get_passwords_by_their_environment_and_not_by_their_command(entrypoint: ModuleType) -> None:
    write_secrets(entrypoint, "prefect_database_password", "prefect_password")
    environment = {"PREFECT_API_URL": "http://prefect:4200/api"}
    assert entrypoint.prefect_server(environment) == ["prefect", "server", "start"]
    assert environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == (
        "postgresql+asyncpg://prefect:prefect_database_password%40%2F%25word@postgres:5432/prefect"
    )
    assert "PREFECT_API_URL" not in environment


def test_mlflow_users_follow_the_secret_files(entrypoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.auth.config import read_auth_config
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    names = ("mlflow_database_password", "mlflow_flask_key", "mlflow_admin_password", "mlflow_scorer_password")
    write_secrets(entrypoint, *names)
    database = f"sqlite:///{tmp_path}/users.db"
    monkeypatch.setattr(entrypoint, "database_url", lambda scheme, user, name, password: database)
    monkeypatch.setattr(entrypoint, "_open_store", lambda url: None)
    for word in ("mlflow_scorer_password@/%word", "another long password"):
        (entrypoint.SECRETS / "mlflow_scorer_password").write_text(word, encoding="utf-8")
        environment: dict[str, str] = {}
        assert entrypoint.mlflow_server(environment) == ["mlflow", "server", "--app-name", "basic-auth"]
        store = SqlAlchemyStore()
        store.init_db(database)
        assert {user.username: user.is_admin for user in store.list_users()} == {"admin": True, "scorer": False}
        assert store.authenticate_user("scorer", word)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert (read_auth_config().database_uri, read_auth_config().default_permission) == (database, "READ")
    assert Path(environment["MLFLOW_AUTH_CONFIG_PATH"]).stat().st_mode & 0o777 == 0o600


def test_the_project_gets_the_code_of_the_image_and_keeps_what_runs_have_made(entrypoint: ModuleType) -> None:
    for house in entrypoint.HOUSES:
        shutil.copytree(PROJECT / house, entrypoint.APP / house, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        (entrypoint.APP / house / "new.py").write_text("", encoding="utf-8")
        (entrypoint.PROJECT / house).mkdir()
        (entrypoint.PROJECT / house / "gone.py").write_text("", encoding="utf-8")
    (entrypoint.APP / "project").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (entrypoint.APP / "project" / name).write_text("image's", encoding="utf-8")
    (entrypoint.PROJECT / "params.yaml").write_text("mine", encoding="utf-8")
    (entrypoint.PROJECT / "dvc.lock").write_text("kept", encoding="utf-8")
    entrypoint.lay_out_project()
    text = {path.name: path.read_text(encoding="utf-8") for path in entrypoint.PROJECT.iterdir() if path.is_file()}
    assert text == {"params.yaml": "mine", "dvc.yaml": "image's", "dvc.lock": "kept"}
    for house in entrypoint.HOUSES:
        assert (entrypoint.PROJECT / house / "new.py").exists() and not (entrypoint.PROJECT / house / "gone.py").exists()
    entrypoint.PARAMS.write_text("mounted", encoding="utf-8")
    entrypoint.lay_out_project()
    assert (entrypoint.PROJECT / "params.yaml").read_text(encoding="utf-8") == "mounted"


class Protected(BaseHTTPRequestHandler):
    """Answers 200 to who knows the password, 401 to others."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers.get("Authorization") == "Basic c2NvcmVyOndvcmQ=" else 401)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def protected() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Protected)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_health_check_wants_200_with_the_password_of_a_file(protected: str, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("word\n", encoding="utf-8")
    probe = module(DOCKER / "probe.py")
    assert probe.main([protected, "scorer", str(tmp_path / "word")]) == 0
    assert probe.main([protected]) == 1
    assert probe.main(["http://127.0.0.1:1/"]) == 1


def test_locks_hold_exact_pins_and_agree_with_each_other() -> None:
    audit = module(PROJECT / "tools/audit.py")
    pins: dict[str, set[str]] = {}
    for name in audit.LOCKS:
        assert audit.loose(PROJECT / name) == []
        for line in (PROJECT / name).read_text(encoding="utf-8").splitlines():
            if "==" in line:
                package, version = line.split("==")
                pins.setdefault(package, set()).add(version)
    assert {package: versions for package, versions in pins.items() if len(versions) > 1} == {}


def test_an_inexact_or_malicious_pin_is_found(tmp_path: Path) -> None:
    audit = module(PROJECT / "tools/audit.py")
    (tmp_path / "lock").write_text("# pins\ntorch==2.13.0\nlightning==2.6.3\nnumpy>=2\nmlflow==3.*\n", encoding="utf-8")
    assert audit.loose(tmp_path / "lock") == ["lightning==2.6.3", "numpy>=2", "mlflow==3.*"]
