#!/usr/bin/env python3
"""Starts a service of the stack, or any command, with what it needs from the secret files in its environment.

    with-secrets serve | worker | bootstrap | mlflow | prefect | bucket s3://NAME | COMMAND [ARGUMENT...]

Passwords go from files into the environment of the one process that needs them: neither the container's configuration, nor
a command line, nor a log holds them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from urllib.parse import quote

SECRETS = Path("/run/secrets")
APP = Path("/app")
PROJECT = Path("/project")
PARAMS = Path("/config/params.yaml")
HOUSES = ("models", "tasks", "flows")
DVC_CONFIG = "[core]\n    analytics = false\n    autostage = false\n    no_scm = true\n"
ADMIN, READER = "admin", "scorer"
POOL = "weatherglass"


def secret(name: str) -> str | None:
    """The content of a secret file, None where this container has none of that name."""
    path = SECRETS / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def database_url(scheme: str, user: str, database: str, password: str) -> str:
    """Connection string of a database of the stack's PostgreSQL server (``POSTGRES_ADDRESS``, HOST:PORT)."""
    address = os.environ.get("POSTGRES_ADDRESS", "postgres:5432")
    return f"{scheme}://{user}:{quote(password, safe='')}@{address}/{database}"


def add_client_secrets(environment: MutableMapping[str, str]) -> None:
    """Credentials of clients: MLflow (as administrator, or as who only reads), Prefect and an S3 store."""
    for user, name in ((READER, "mlflow_scorer_password"), (ADMIN, "mlflow_admin_password")):
        if (password := secret(name)) is not None:
            environment |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    if (password := secret("prefect_password")) is not None:
        environment["PREFECT_API_AUTH_STRING"] = f"{POOL}:{password}"
    if not environment.get("MLFLOW_S3_ENDPOINT_URL"):
        environment.pop("MLFLOW_S3_ENDPOINT_URL", None)
    for name, variable in (("s3_access_key", "AWS_ACCESS_KEY_ID"), ("s3_secret_key", "AWS_SECRET_ACCESS_KEY")):
        if (value := secret(name)) is not None:
            environment[variable] = value


def mlflow_server(environment: MutableMapping[str, str]) -> list[str]:
    """The MLflow server: users and passwords are those of the secret files, at every start."""
    password, key = _required("mlflow_database_password"), _required("mlflow_flask_key")
    users = database_url("postgresql", "mlflow", "mlflow_users", password)
    config = Path(os.environ.get("TMPDIR", "/tmp")) / "basic_auth.ini"
    config.touch(mode=0o600)
    config.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {users.replace('%', '%%')}\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
        "auth_cache_ttl_seconds = 30\n",
        encoding="utf-8",
    )
    passwords = {ADMIN: _required("mlflow_admin_password"), READER: _required("mlflow_scorer_password")}
    _write_users(users, passwords)
    store = database_url("postgresql", "mlflow", "mlflow", password)
    _open_store(store)
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords[ADMIN],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVE_ARTIFACTS": "true",
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        environment.pop(name, None)
    return ["mlflow", "server", "--app-name", "basic-auth"]


def _open_store(url: str) -> None:
    """Make the tables of runs and registry, or bring those of an older MLflow up to date, before several workers read them."""
    from tasks.tracking_store import initialise

    initialise(url)


def _write_users(database: str, passwords: dict[str, str]) -> None:
    """Give MLflow's users the passwords of the secret files; the administrator administers, the others read."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(database)
    for user, password in passwords.items():
        if not store.has_user(user):
            store.create_user(user, password, is_admin=user == ADMIN)
        elif not store.authenticate_user(user, password):
            store.update_user(user, password)


def prefect_server(environment: MutableMapping[str, str]) -> list[str]:
    """The Prefect server, which asks for the password of the secret file."""
    url = database_url("postgresql+asyncpg", "prefect", "prefect", _required("prefect_database_password"))
    environment |= {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_API_AUTH_STRING": f"{POOL}:{_required('prefect_password')}",
    }
    environment.pop("PREFECT_API_URL", None)
    return ["prefect", "server", "start"]


def serve(environment: MutableMapping[str, str]) -> list[str]:
    """The forecast service, in a folder that shows it params.yaml and what the pipeline has left; it writes to neither."""
    root = Path(os.environ.get("TMPDIR", "/tmp")) / "serve"
    root.mkdir(exist_ok=True)
    shutil.copyfile(PARAMS if PARAMS.is_file() else APP / "project/params.yaml", root / "params.yaml")
    for name in ("data", ".weatherglass"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(PROJECT / name)
    return ["weatherglass", "serve", "--root", str(root)]


def worker(environment: MutableMapping[str, str]) -> list[str]:
    """A Prefect worker that retrains: its pool and the deployments of prefect.yaml are made, what was killed begins again."""
    lay_out_project()
    for command in (
        ["prefect", "work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["prefect", "--no-prompt", "deploy", "--all"],
        [sys.executable, "-m", "flows.abandoned"],
    ):
        subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    return ["prefect", "worker", "start", "--pool", POOL, "--with-healthcheck"]


def bootstrap(environment: MutableMapping[str, str]) -> list[str]:
    """The first run, which registers the first champion; nothing where the registry has one."""
    lay_out_project()
    if (version := _champion()) is not None:
        print(f"version {version} is @champion; nothing to do", flush=True)
        return ["true"]
    return ["weatherglass", "run"]


def _champion() -> str | None:
    """The version behind @champion, None where the registry has none; ends with one sentence where it cannot be asked."""
    from flows.environment import opened
    from tasks.errors import UserError
    from tasks.tracking_store import initialise
    from tasks.versions import aliases_of

    try:
        _, params = opened(PROJECT)
        initialise()
        return aliases_of(params.registry.name).get("champion")
    except UserError as error:
        raise SystemExit(f"weatherglass: {error}") from None


def make_bucket(address: str) -> None:
    """Make the bucket of an ``s3://bucket[/path]`` address where it is not there."""
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)
    name = address.removeprefix("s3://").split("/")[0]
    try:
        client.head_bucket(Bucket=name)
    except ClientError:
        client.create_bucket(Bucket=name)


def lay_out_project() -> None:
    """Bring the code and settings of this image to the project's volume, and params.yaml where one is mounted.

    A run that is at work there is waited for.
    """
    from tasks.files import held, waiting

    with held(PROJECT / ".weatherglass/run.lock", waiting("running this project")):
        for house in HOUSES:
            shutil.rmtree(PROJECT / house, ignore_errors=True)
            shutil.copytree(APP / house, PROJECT / house, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (APP / "project").iterdir():
            if path.name != "params.yaml" or not (PROJECT / path.name).exists():
                shutil.copyfile(path, PROJECT / path.name)
        if PARAMS.is_file():
            shutil.copyfile(PARAMS, PROJECT / "params.yaml")
        (PROJECT / ".dvc").mkdir(exist_ok=True)
        (PROJECT / ".dvc/config").write_text(DVC_CONFIG, encoding="utf-8")


def _required(name: str) -> str:
    value = secret(name)
    if not value:
        raise SystemExit(f"{SECRETS / name} is not there or empty; make it by docker/secrets.sh")
    return value


SERVICES = {"mlflow": mlflow_server, "prefect": prefect_server, "serve": serve, "worker": worker, "bootstrap": bootstrap}


def main(arguments: Sequence[str]) -> None:
    """Become the service or the command that ``arguments`` name."""
    if not arguments:
        raise SystemExit((__doc__ or "").strip())
    environment = os.environ
    add_client_secrets(environment)
    if len(arguments) == 1 and arguments[0] in SERVICES:
        command = SERVICES[arguments[0]](environment)
    elif arguments[0] == "bucket":
        return make_bucket(*arguments[1:])
    else:
        command = list(arguments)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
