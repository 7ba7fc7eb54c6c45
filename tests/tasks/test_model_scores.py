"""Scores of a model, a piece of the test fold at a time: those of all windows at once, also by way of a worker's file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.predictive import Predictive
from models.uncertainty import scores
from models.uncertainty.calibration import INTERVAL_LEVELS
from tasks import model_scores
from tasks.calibrate import load_calibration, window_series
from tasks.ensemble import ENSEMBLE, pooled
from tasks.errors import UserError
from tasks.evaluate import evaluate, seasonal_error
from tasks.model_scores import ModelScores, SharedPiece, pieces_of, run_pieces, score_on_worker, take_scores
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.summary import METRICS


def test_metrics_are_those_of_each_score_by_itself(evaluated_project: Path) -> None:
    prepared, calibration = load_prepared(evaluated_project), load_calibration(evaluated_project)[0][ENSEMBLE]
    windows = prepared.fold("test", "evaluate")
    target, scale = prepared.panel.targets(windows), seasonal_error(prepared)[windows.series]
    predictive = calibration.apply(pooled(evaluated_project, ENSEMBLE, "test", "evaluate"))
    series = window_series(prepared, windows)
    found = model_scores.model_scores(predictive, target, calibration, series).metrics(target, scale)
    assert found["wql"] == scores.wql(predictive, target) and found["ece"] == scores.calibration_error(predictive, target)
    assert found["crps"] == float(scores.crps(predictive, target).mean())
    assert found["mase"] == scores.mase(predictive.median, target, scale)
    assert found["pit_ks"] == scores.pit_distance(predictive.cdf(target))
    for level in INTERVAL_LEVELS:
        lower, upper = calibration.interval(predictive, level, series)
        assert found[f"coverage_{level}"] == float(scores.coverage(lower, upper, target).double().mean())
        assert found[f"width_{level}"] == float((upper - lower).mean())
    lower, upper = calibration.joint.band(predictive)
    assert found["joint_width_90"] == float((upper - lower).mean())
    central = model_scores.model_scores(predictive, target).metrics(target, scale)
    assert "joint_width_90" not in central and central["wql"] == found["wql"]


@pytest.mark.parametrize("rows", [3, 8])
def test_pieces_by_way_of_workers_files_give_the_metrics_of_one_process(
    rows: int, evaluated_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = tmp_path / "project", tmp_path / "shared"
    shutil.copytree(evaluated_project, project)
    folder.mkdir()
    params = Params.load(root=project)
    monkeypatch.setattr(model_scores, "ROWS", rows)
    monkeypatch.setattr("models.predictive_parts.ROWS", rows)
    evaluate(params, project)
    alone = (project / METRICS).read_bytes()
    names = list[str]()

    def in_pieces(pieces: list[model_scores.Piece], take: object) -> None:
        smaller = [
            model_scores.Piece(piece.root, piece.model, first, min(first + 2 * rows, piece.last))
            for piece in pieces
            for first in range(piece.first, piece.last, 2 * rows)
        ]
        shared = [SharedPiece(piece, folder) for piece in smaller]
        for each in reversed(shared):
            score_on_worker(each)
        for each in shared:
            names.append(each.name)
            take(each.piece, take_scores(each))  # type: ignore[operator]

    evaluate(params, project, in_pieces)  # type: ignore[arg-type]
    assert (project / METRICS).read_bytes() == alone
    assert len(set(names)) == len(names) > 2 * len(params.baselines.models)
    assert not list(folder.iterdir()), "what was taken is not kept"


def test_pieces_cover_the_fold_and_an_empty_one_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_scores, "PIECE", 10)
    assert [(each.first, each.last) for each in pieces_of(tmp_path, "tcn", 25)] == [(0, 10), (10, 20), (20, 25)]
    assert [(each.first, each.last) for each in pieces_of(tmp_path, "tcn", 0)] == [(0, 0)]


def test_scores_of_parts_are_joined_in_order() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(9, 4, 23, generator=generator).sort(-1).values
    target = torch.randn(9, 4, generator=generator)
    whole = model_scores.model_scores(Predictive(values), target)
    parts = [model_scores.model_scores(Predictive(values[rows]), target[rows]) for rows in (slice(0, 5), slice(5, 9))]
    joined = ModelScores.joined(parts)
    for name in ("crps", "median", "pit", "bounds", "band"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    np.testing.assert_allclose(joined.pinball.sum(0), whole.pinball[0], rtol=1e-12)
    assert torch.equal(joined.below.sum(0), whole.below[0]) and len(joined.below) == 2


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    piece = pieces_of(tmp_path, "tcn", 1)[0]
    with pytest.raises(UserError, match=r"does not see .*/elsewhere; keep the project in a folder"):
        score_on_worker(SharedPiece(piece, tmp_path / "elsewhere"))


def test_what_is_in_this_process_reads_a_calibration_that_was_written_anew(evaluated_project: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(evaluated_project, project)
    found: list[ModelScores] = []
    pieces = pieces_of(project, ENSEMBLE, len(load_prepared(project).fold("test", "evaluate")))
    run_pieces(pieces, lambda piece, scored: found.append(scored))
    path = project / "artifacts/calibration/calibration.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state[ENSEMBLE]["joint"]["radius"] = 12.5
    path.write_text(json.dumps(state), encoding="utf-8")
    run_pieces(pieces, lambda piece, scored: found.append(scored))
    assert torch.equal(found[0].crps, found[1].crps) and not torch.equal(found[0].band, found[1].band)
