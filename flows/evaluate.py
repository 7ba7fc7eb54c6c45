"""evaluate: the test fold, every model on the same windows; metrics, plots and the report."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def evaluate_flow(stage: Stage) -> None:
    from tasks.evidence import evaluate_and_report
    from tasks.model_page import describe_experiment, describe_run
    from tasks.summary import METRICS, leaderboard, leaderboard_text, load_metrics
    from tasks.tracking import StageRun

    shown = dict(stage.identity) | {"mlflow_run": stage.parent_run_id}
    report = stage.do(evaluate_and_report, stage.params, stage.root, shown)
    metrics = load_metrics(stage.root)
    stage.run.log(metrics=metrics, artifacts=[stage.root / METRICS, stage.root / "plots", report])
    StageRun(stage.parent_run_id).log(metrics=metrics, artifacts=[report])
    describe_run(stage.parent_run_id, metrics, stage.identity)
    describe_experiment(stage.parent_run_id, metrics)
    publish_leaderboard(leaderboard(metrics))
    print(leaderboard_text(metrics))


def publish_leaderboard(rows: list[dict[str, str]]) -> None:
    """Show the leaderboard in the Prefect UI."""
    from prefect.artifacts import create_table_artifact

    create_table_artifact(key="leaderboard", table=rows, description="Models on the test fold, by WQL")  # type: ignore[unused-coroutine]


if __name__ == "__main__":
    raise SystemExit(run_stage("evaluate", evaluate_flow))
