"""What the registry says of a model's versions, without loading one."""

from __future__ import annotations

from pathlib import Path

from tasks.tracking_store import current_client, retry

RECEIPT = Path("artifacts/receipt.json")
COMPARED = ("wql", "crps", "wape", "coverage_90", "joint_coverage_90", "width_90")
"""Metrics by which versions are compared."""


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
