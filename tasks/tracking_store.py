"""The MLflow store itself: created or migrated once, and called again where it is busy."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tasks.errors import Unavailable
from tasks.files import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0)
SQLITE = "sqlite:///"

P = ParamSpec("P")
T = TypeVar("T")


class TrackingError(Unavailable):
    """MLflow cannot be reached or is locked for longer than a few retries, told in one sentence."""


def initialise(uri: str | None = None) -> str:
    """Create or migrate the tracking store once, whoever comes first, and make it this process's tracking URI.

    Parameters
    ----------
    uri
        ``sqlite:///...``, ``postgresql://...`` or ``http(s)://...``; by default ``MLFLOW_TRACKING_URI``.

    Returns
    -------
    str
        The URI in use.

    Raises
    ------
    TrackingError
        If no URI is known, or the store cannot be opened.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise TrackingError("services.mlflow_uri in params.yaml and MLFLOW_TRACKING_URI are both unset; set one of them.")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # with growing pauses, half a minute in all
    import mlflow

    mlflow.set_tracking_uri(uri)
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE))
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            with locked(database.with_name(f"{database.name}.lock")):
                with closing(sqlite3.connect(database, timeout=20.0)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # readers and one writer do not wait for each other
                _open()
        except (OSError, sqlite3.Error) as error:
            raise TrackingError(f"The MLflow store {database} is not a usable SQLite database: {error}.") from error
    else:
        if uri.startswith("postgresql"):
            _reach_database(uri)
        _open()
    return uri


def _reach_database(uri: str) -> None:
    """Connect once to a database server, and again while it starts; MLflow by itself would go on for two minutes.

    Raises TrackingError where it stays away, or where the package that talks to it is not installed.
    """
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"services.mlflow_uri (or MLFLOW_TRACKING_URI) is {_without_password(uri)}, whose driver {error.name} is not "
            "installed: pip install -e '.[postgres]'."
        ) from None
    try:
        retry(lambda: engine.connect().close())
    finally:
        engine.dispose()


def current_client() -> MlflowClient:
    """Return a client of the current tracking URI (cheap: stores are cached by MLflow)."""
    from mlflow import MlflowClient

    return MlflowClient()


def retry(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call, and again after a pause while the database is locked or the server is away; TrackingError at the end."""
    import requests
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    for pause in (*RETRY_SECONDS, None):
        try:
            return call(*args, **kwargs)
        except (sqlalchemy.exc.OperationalError, requests.ConnectionError, requests.Timeout) as error:
            problem: Exception = error
        except MlflowException as error:
            if error.error_code != "TEMPORARILY_UNAVAILABLE" and not _is_unreachable(error):
                raise
            problem = error
        if pause is None or _is_unreachable(problem):  # the HTTP client has retried by itself
            break
        time.sleep(pause)
    raise TrackingError(
        f"MLflow at {_address()} does not take the record (services.mlflow_uri in params.yaml): {first_line(problem)}"
    ) from problem


def first_line(error: Exception) -> str:
    """Return the first line of an error's text without passwords, at most 200 characters."""
    return _without_password((str(error).splitlines() or [type(error).__name__])[0])[:200]


def _open() -> None:
    """Read from the store, which creates the tables of a new database; upgrade one from an older MLflow."""
    from mlflow.exceptions import MlflowException

    def read() -> object:
        return current_client().search_experiments(max_results=1)

    try:
        retry(read)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise TrackingError(f"MLflow at {_address()} does not answer: {first_line(error)}") from error
        import mlflow
        import sqlalchemy
        from mlflow.store.db import utils

        upgrade: Callable[[sqlalchemy.Engine], None] = utils._upgrade_db
        upgrade(sqlalchemy.create_engine(mlflow.get_tracking_uri()))
        retry(read)


def _address() -> str:
    """Return the tracking URI, to be shown."""
    import mlflow

    return _without_password(mlflow.get_tracking_uri())


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _is_unreachable(error: Exception) -> bool:
    return "Max retries exceeded" in str(error) or "too many 5" in str(error)
