"""project: maps of the encoder's embeddings by PCA, t-SNE and UMAP, or of a matrix that a user brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.stage import Stage, run_stage

if TYPE_CHECKING:
    from tasks.projection.matrix import MatrixMaps


def project_flow(stage: Stage) -> None:
    from tasks.projection.run import guard_metrics, project
    from tasks.summary import MAP
    from tasks.tracking import StageRun

    folder = stage.do(project, stage.params, stage.root)
    stage.run.log(params=stage.params.projection.model_dump(mode="json"), metrics=guard_metrics(stage.root), artifacts=[folder])
    StageRun(stage.parent_run_id).log(artifacts=[folder / MAP])


def run_project(root: Path, as_json: bool) -> int:
    """Bring the project's stage up to date; returns the exit code."""
    from flows.outcome import aside, tell
    from flows.pipeline import run_pipeline
    from tasks.files import read_json
    from tasks.projection.run import GUARDS
    from tasks.summary import MAP, PROJECTION

    with aside(as_json):
        code = run_pipeline(root, ("project",), force=False)
    if as_json:
        folder = root / PROJECTION
        tell({"exit": code} | ({"map": str(folder / MAP), **read_json(folder / GUARDS)} if code == 0 else {}))
    return code


def run_matrix(wanted: MatrixMaps, as_json: bool) -> int:
    """Draw a matrix that a user brings and say how far to believe its maps; returns the exit code."""
    from flows.outcome import tell
    from tasks.projection.matrix import project_matrix
    from tasks.summary import CAUTION, MAP, guard_rows
    from tasks.terminal import show_table

    guards, page = project_matrix(wanted), str((wanted.output / MAP).resolve())
    if as_json:
        tell({"exit": 0, "map": page} | guards)
        return 0
    show_table(guard_rows(guards), "How far to believe these maps")
    print("\n".join(["", *guards["notes"], CAUTION, "", page]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage("project", project_flow))
