"""register: one bundle as one MLflow model; champion the first time, challenger with a comparison afterwards."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def register_flow(stage: Stage) -> None:
    from tasks.evaluate import load_metrics
    from tasks.files import read_json
    from tasks.registry import register
    from tasks.summary import receipt_text
    from tasks.tracking import finish_parent

    path = stage.do(register, stage.params, stage.root, stage.run.run_id)
    receipt = read_json(path)
    stage.run.log(artifacts=[path], tags={"weatherglass.version": receipt["version"], "weatherglass.alias": receipt["alias"]})
    finish_parent(stage.root, load_metrics(stage.root))
    print(receipt_text(receipt))


if __name__ == "__main__":
    raise SystemExit(run_stage("register", register_flow))
