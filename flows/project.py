"""project: maps of the encoder's embeddings by PCA, t-SNE and UMAP."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def project_flow(stage: Stage) -> None:
    from tasks.project import project

    folder = stage.do(project, stage.params, stage.root)
    stage.run.log(params=stage.params.projection.model_dump(mode="json"), artifacts=[folder])


if __name__ == "__main__":
    raise SystemExit(run_stage("project", project_flow))
