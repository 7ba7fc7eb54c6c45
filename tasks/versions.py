"""What the registry says of a model's versions, without loading one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.files import read_json, write_json
from tasks.tracking_store import current_client, retry

RECEIPT = Path("artifacts/receipt.json")
COMPARED = ("wql", "crps", "wape", "coverage_90", "joint_coverage_90", "width_90")
"""Metrics by which versions are compared."""

REGISTERED = Path(".weatherglass/registered.json")
"""Beside what DVC keeps: the receipt of the bundle that was last registered from this folder, and in which store."""


def note_registered(root: Path, receipt: Mapping[str, Any]) -> None:
    """Note that what ``receipt`` tells was registered in the store in use."""
    write_json(root / REGISTERED, {"receipt": receipt, "store": _store()})


def is_registered(root: Path) -> bool:
    """Whether the receipt in ``root`` is that of the last registration, in the store in use.

    It is not where DVC has brought it back, from an experiment or from its cache of runs: then the results are there, but
    registry and aliases may know nothing of them.
    """
    if not (root / RECEIPT).exists() or not (root / REGISTERED).exists():
        return False
    return bool(read_json(root / REGISTERED) == {"receipt": read_json(root / RECEIPT), "store": _store()})


def _store() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_URI")


def version_metrics(name: str, version: str) -> dict[str, float]:
    """Test metrics of the ensemble with which a version was registered."""
    tags = retry(current_client().get_model_version, name, version).tags
    return {metric: float(tags[f"test.{metric}"]) for metric in COMPARED if f"test.{metric}" in tags}


def aliases_of(name: str) -> dict[str, str]:
    """Version by alias of a registered model; empty where it is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return {str(key): str(value) for key, value in retry(current_client().get_registered_model, name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
