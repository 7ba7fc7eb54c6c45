"""The flows that a schedule or a worker starts: the pipeline, and retraining (see prefect.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed

from flows.pipeline import run_pipeline
from flows.retrain import EXIT_KEPT, EXIT_PROMOTED, run_retrain


@flow(name="pipeline")
def pipeline(root: str = ".", force: bool = False) -> None:
    """Run what is stale, from ingest to register; fails where a stage fails."""
    code = run_pipeline(Path(root), force=force)
    if code != 0:
        raise RuntimeError(f"the pipeline ended with exit code {code}")


@flow(name="retrain", persist_result=False)
def retrain(root: str = ".", force: bool = False) -> Any:
    """Retrain and decide; the run ends in the state Promoted or Kept, and fails where retraining does."""
    code = run_retrain(Path(root), force=force)
    if code not in (EXIT_PROMOTED, EXIT_KEPT):
        raise RuntimeError(f"retraining ended with exit code {code}")
    if code == EXIT_PROMOTED:
        return Completed(name="Promoted", message="a new version answers as @champion")
    return Completed(name="Kept", message="the champion stays")


if __name__ == "__main__":
    retrain()
