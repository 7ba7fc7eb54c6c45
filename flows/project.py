"""project: maps of the encoder's embeddings by PCA, t-SNE and UMAP, or of a matrix that a user brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.stage import Stage, run_stage


def project_flow(stage: Stage) -> None:
    from tasks.projection.run import MAP, guard_metrics, project
    from tasks.tracking import StageRun

    folder = stage.do(project, stage.params, stage.root)
    stage.run.log(params=stage.params.projection.model_dump(mode="json"), metrics=guard_metrics(stage.root), artifacts=[folder])
    StageRun(stage.parent_run_id).log(artifacts=[folder / MAP])


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
    from flows.outcome import aside, tell
    from tasks.projection.run import GUARDS, MAP, PROJECTION

    if embeddings is None:
        from flows.pipeline import run_pipeline
        from tasks.files import read_json

        with aside(as_json):
            code = run_pipeline(root, ("project",), force=False)
        if as_json:
            folder = root / PROJECTION
            tell({"exit": code} | ({"map": str(folder / MAP), **read_json(folder / GUARDS)} if code == 0 else {}))
        return code
    from tasks.projection.matrix import project_matrix
    from tasks.summary import CAUTION, guard_rows
    from tasks.terminal import show_table

    guards = project_matrix(embeddings, labels, new, output, neighbors, methods, metric, seed)
    if as_json:
        tell({"exit": 0, "map": str((output / MAP).resolve())} | guards)
        return 0
    show_table(guard_rows(guards), "How far to believe these maps")
    print("\n".join(["", *guards["notes"], CAUTION, "", str((output / MAP).resolve())]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage("project", project_flow))
