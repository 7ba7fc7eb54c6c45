"""project: maps of the encoder's embeddings by PCA, t-SNE and UMAP, or of a matrix that a user brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.stage import Stage, run_stage


def project_flow(stage: Stage) -> None:
    from tasks.projection.run import guard_metrics, project

    folder = stage.do(project, stage.params, stage.root)
    stage.run.log(params=stage.params.projection.model_dump(mode="json"), metrics=guard_metrics(stage.root), artifacts=[folder])


def run_project(
    root: Path,
    embeddings: Path | None,
    labels: Path | None,
    new: Path | None,
    output: Path,
    neighbors: Sequence[int],
    methods: Sequence[str],
    metric: str,
    seed: int,
    as_json: bool,
) -> int:
    """Draw a user's matrix, or the project's stage where none is given; returns the exit code."""
    import json

    if embeddings is None:
        from flows.pipeline import run_pipeline

        return run_pipeline(root, ("project",), force=False)
    from tasks.projection.matrix import project_matrix
    from tasks.summary import guards_text

    guards = project_matrix(embeddings, labels, new, output, neighbors, methods, metric, seed)
    print(json.dumps(guards | {"output": str(output)}, indent=2) if as_json else guards_text(guards))
    if not as_json:
        print(f"\n{(output / 'map.html').resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage("project", project_flow))
