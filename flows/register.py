"""register: one bundle as one MLflow model; champion the first time, challenger with a comparison afterwards.

In a DVC experiment the bundle is written and nothing is registered, so that a sweep moves no alias; `weatherglass run`
registers what `dvc exp apply` brings.
"""

from __future__ import annotations

from flows.stage import Stage, run_stage


def register_flow(stage: Stage) -> None:
    from tasks.experiment import experiment_name
    from tasks.files import read_json
    from tasks.registry import register, set_aside
    from tasks.summary import load_metrics, receipt_text
    from tasks.tracking import finish_parent

    experiment = experiment_name()
    if experiment is None:
        path = stage.do(register, stage.params, stage.root, stage.run.run_id)
    else:
        path = stage.do(set_aside, stage.params, stage.root, experiment)
    receipt = read_json(path)
    told = {f"weatherglass.{key}": receipt[key] for key in ("version", "alias") if receipt[key] is not None}
    stage.run.log(artifacts=[path], tags=told)
    finish_parent(stage.root, load_metrics(stage.root))
    print(receipt_text(receipt))


if __name__ == "__main__":
    raise SystemExit(run_stage("register", register_flow))
