"""The pipeline as one Prefect flow, for deployments (see prefect.yaml)."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.pipeline import run_pipeline


@flow(name="pipeline")
def pipeline(root: str = ".", force: bool = False) -> None:
    """Run what is stale, from ingest to register; fails where a stage fails."""
    code = run_pipeline(Path(root), force=force)
    if code != 0:
        raise RuntimeError(f"the pipeline ended with exit code {code}")


if __name__ == "__main__":
    pipeline()
