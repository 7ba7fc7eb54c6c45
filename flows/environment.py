"""Process environment for Prefect and MLflow, set before either is imported."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.params import Params


def opened(root: Path) -> tuple[Path, Params]:
    """The project's folder, resolved, and its params, with Prefect and MLflow pointed at its stores as `configure` does.

    Raises UserError where params.yaml is not valid.
    """
    from tasks.params import Params

    root = root.resolve()
    params = Params.load(root=root)
    configure(root, params.services.mlflow_uri, params.services.prefect_api_url)
    return root, params


def configure(root: Path | str, mlflow_uri: str | None = None, prefect_api_url: str | None = None) -> None:
    """Point Prefect and MLflow at the project's own stores and quiet them for a command line.

    Call it before ``prefect`` or ``mlflow`` is imported, since both read their settings on import. A variable that the
    environment already holds is left alone, so the order of precedence is environment, ``params.yaml``, default.

    Parameters
    ----------
    root
        Project folder; everything the services write lies under it.
    mlflow_uri
        ``services.mlflow_uri`` of params.yaml; a relative SQLite path is read from ``root``.
        Default ``sqlite:///<root>/mlflow.db``.
    prefect_api_url
        ``services.prefect_api_url`` of params.yaml; without it the embedded server of :mod:`flows.server` is used.
    """
    root = Path(root).resolve()
    defaults = {
        "PREFECT_HOME": str(root / ".weatherglass" / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "MLFLOW_TRACKING_URI": tracking_uri(root, mlflow_uri),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if prefect_api_url:
        defaults["PREFECT_API_URL"] = prefect_api_url
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(root: Path, mlflow_uri: str | None = None) -> str:
    """Return the URI given, with a relative SQLite path made absolute, or that of ``<root>/mlflow.db``."""
    prefix = "sqlite:///"
    if not mlflow_uri:
        return f"{prefix}{root / 'mlflow.db'}"
    if mlflow_uri.startswith(prefix):
        return f"{prefix}{root / mlflow_uri.removeprefix(prefix)}"
    return mlflow_uri
