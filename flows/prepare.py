"""prepare: encode the panel as mapped arrays and lay the folds in time."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def prepare_flow(stage: Stage) -> None:
    from tasks.files import read_json
    from tasks.prepare import prepare

    folder = stage.do(prepare, stage.params, stage.root)
    meta = read_json(folder / "meta.json")
    stage.run.log(params={"settings": meta["settings"], "windows": meta["windows"]}, artifacts=[folder / "meta.json"])
    of = {name: f" (drawn from {count:,}, see folds.most_windows)" for name, count in meta["drawn_from"].items()}
    print("windows by fold: " + ", ".join(f"{name} {count:,}{of.get(name, '')}" for name, count in meta["windows"].items()))


if __name__ == "__main__":
    raise SystemExit(run_stage("prepare", prepare_flow))
