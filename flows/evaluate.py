"""evaluate: the test fold, every model on the same windows; metrics, plots and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from flows.stage import Stage, run_stage

if TYPE_CHECKING:
    from tasks.model_scores import ModelScores, Piece, RunPieces
    from tasks.params import Params


def pieces_runner(params: Params) -> RunPieces:
    """Where pieces of the test fold are scored under ``runner``."""
    from tasks.model_scores import run_pieces

    return run_pieces if params.runner == "local" else partial(score_on_cluster, params)


def score_on_cluster(params: Params, pieces: Sequence[Piece], take: Callable[[Piece, ModelScores], None]) -> None:
    """Score pieces of a fold on the workers of ``runner``, where there is more than one a model; else in this process."""
    from flows.parts import run_in_order
    from flows.runners import check_prefect, check_runner
    from tasks.model_scores import SharedPiece, run_pieces, score_on_worker, take_scores
    from tasks.on_worker import shared_folder
    from tasks.train import workers_for

    if all(piece.first == 0 for piece in pieces):
        run_pieces(pieces, take)
        return
    check_runner(params)
    check_prefect(params)
    with shared_folder(pieces[0].root) as folder:
        shared, workers = [SharedPiece(piece, folder) for piece in pieces], workers_for(params, len(pieces))
        run_in_order("scores", params, shared, score_on_worker, lambda each: take(each.piece, take_scores(each)), workers)


def evaluate_flow(stage: Stage) -> None:
    from tasks.evidence import evaluate_and_report
    from tasks.model_page import describe_experiment, describe_run
    from tasks.summary import METRICS, leaderboard, leaderboard_text, load_metrics
    from tasks.tracking import StageRun

    shown = dict(stage.identity) | {"mlflow_run": stage.parent_run_id}
    report = stage.do(evaluate_and_report, stage.params, stage.root, shown, pieces_runner(stage.params))
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
