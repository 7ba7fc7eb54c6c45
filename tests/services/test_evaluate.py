"""The test fold scored by Dask and Ray workers, a piece each: the metrics of one machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.evaluate import pieces_runner
from tasks import model_scores
from tasks.evaluate import evaluate
from tasks.on_worker import PARTS
from tasks.params import Params
from tasks.summary import METRICS


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_workers_find_the_metrics_of_one_machine(
    runner: str,
    evaluated_project: Path,
    prefect_api: str,
    edit_params: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tmp_path / "project"
    shutil.copytree(evaluated_project, project)
    monkeypatch.setattr(model_scores, "PIECE", 10)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    evaluate(Params.load(root=project), project)
    alone = (project / METRICS).read_bytes()
    edit_params(project, {"runner": runner, "train.workers": 2})
    params, run, scored = Params.load(root=project), [], list[str]()
    monkeypatch.setattr(model_scores, "score_piece", lambda piece: pytest.fail("scored in this process"))
    with temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_LOGGING_TO_API_ENABLED: False}):
        run.append(pieces_runner(params))

        def told(pieces: list[model_scores.Piece], take: Callable[..., None]) -> None:
            run[0](pieces, lambda piece, found: (scored.append(piece.name), take(piece, found)))

        (project / METRICS).unlink()
        evaluate(params, project, told)  # type: ignore[arg-type]
    assert (project / METRICS).read_bytes() == alone
    assert len(scored) > 2 * len(params.baselines.models)
    assert not list((project / PARTS).glob("run-*"))
