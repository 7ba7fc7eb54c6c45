"""ingest: read the source, validate it, write the panel that DVC versions."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def ingest_flow(stage: Stage) -> None:
    from tasks.files import read_json
    from tasks.ingest import ingest, to_stderr
    from tasks.tracking import log_dataset

    def warn(sentence: str) -> None:
        to_stderr(sentence)
        stage.run.log(tags={"weatherglass.warning": sentence})

    folder = stage.do(ingest, stage.params, stage.root, warn)
    meta = read_json(folder / "meta.json")
    log_dataset(stage.parent_run_id, stage.params.data.name, folder / "panel.parquet", meta["sha256"])
    stage.run.log(params=stage.params.data.model_dump(mode="json"), artifacts=[folder / "meta.json"])
    print(f"ingested {meta['n_series']} series, {meta['n_rows']} rows, {meta['first']} to {meta['last']}")


if __name__ == "__main__":
    raise SystemExit(run_stage("ingest", ingest_flow))
