"""baselines: what the forecasters have to beat, on the same test windows."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def baselines_flow(stage: Stage) -> None:
    from tasks.evaluate import run_baselines
    from tasks.files import read_json

    folder = stage.do(run_baselines, stage.params, stage.root)
    stage.run.log(params=stage.params.baselines.model_dump(mode="json"))
    for name, notes in read_json(folder / "notes.json").items():
        print(f"{name}: forecast the test fold" + "".join(f"\n  {note}" for note in notes))


if __name__ == "__main__":
    raise SystemExit(run_stage("baselines", baselines_flow))
