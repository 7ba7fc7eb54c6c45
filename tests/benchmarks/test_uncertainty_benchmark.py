"""The uncertainty benchmark: the peers' methods by hand, its goals, and one run on a set as small as can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import peer_conformal, uncertainty
from benchmarks.datasets import Benchmark
from benchmarks.path import DEFAULTS, default_params
from benchmarks.uncertainty import Bands
from models.predictive import LEVELS, Predictive
from tasks.calibrate import load_calibration
from tasks.ensemble import pooled
from tasks.errors import UserError
from tasks.params import Params
from tasks.prepare import load_prepared

ERROR = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [4.0, 10.0], [5.0, 10.0]])
METRICS = {
    "ensemble/coverage_90": 0.91, "ensemble/width_90": 2.0, "ensemble/joint_coverage_90": 0.9, "ensemble/joint_width_90": 3.0,
    "ensemble/bonferroni_width_90": 4.0, "ensemble/ood_auroc": 0.96, "ensemble/ood_fpr95": 0.2,
    "ensemble/error_ratio_80": 0.8, "ensemble/error_ratio_80_units": 0.7, "ensemble/error_ratio_80_oracle": 0.6,
    "ensemble/aurc_ratio": 1.2,
    "ensemble/ece_before": 0.03, "ensemble/ece_after": 0.02,
    "darts_naive/coverage_90": 0.8, "darts_naive/width_90": 1.0, "darts_qr/coverage_90": 0.89, "darts_qr/width_90": 2.5,
}  # fmt: skip
BANDS = Bands((0.86, 0.94), (0.85, 0.95))


def test_peers_reach_as_far_as_their_sources_say() -> None:
    assert peer_conformal.neuralforecast_error(ERROR, 0.9).tolist() == pytest.approx([4.8, 10.0])
    both = sorted([-5.0, -4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    expected = both[8] + 0.55 * (both[9] - both[8])  # place 0.95 * 9 = 8.55 among ten
    assert peer_conformal.neuralforecast_distribution(ERROR, 0.9).tolist() == pytest.approx([expected, 10.0])
    assert peer_conformal.darts_conformal(ERROR, 0.6).tolist() == [4.0, 10.0]  # place 2.4 of 0 ... 4, the next higher


def test_goals_hold_a_peer_against_us_only_where_it_covers() -> None:
    aims = uncertainty.goals(METRICS, BANDS)
    met = {name: goal.met for name, goal in aims.items()}
    assert met == {
        "coverage": True, "narrower": True, "joint_coverage": True, "joint_width": True, "ood_auroc": True,
        "ood_fpr95": False, "error_ratio_80": False, "aurc_ratio": None, "ece": False,
    }  # fmt: skip
    assert aims["narrower"].aim == "below darts_qr 2.5"
    assert aims["coverage"].aim == "0.900 give or take 0.015, by chance in [0.860, 0.940]"
    closer = uncertainty.goals(METRICS | {"darts_naive/coverage_90": 0.886}, BANDS)
    assert (closer["narrower"].met, closer["narrower"].aim) == (False, "below darts_naive 1")
    alone = {key: value for key, value in METRICS.items() if key.startswith("ensemble/") and "bonferroni" not in key}
    aims = uncertainty.goals(alone | {"ensemble/ece_before": 0.019}, BANDS._replace(joint=(0.91, 0.95)))
    worse = uncertainty.goals(METRICS | {"ensemble/ece_before": 0.01, "ensemble/ece_after": 0.021}, BANDS)
    assert worse["ece"].met is False, "temperature must not spoil what was calibrated"
    assert [aims[name].met for name in ("narrower", "joint_coverage", "joint_width", "ece")] == [None, False, True, None]


def test_peers_wrap_the_same_medians_and_intervals(evaluated_project: Path) -> None:
    found = uncertainty.peer_intervals(evaluated_project)
    assert {key.split("/")[0] for key in found} == {*peer_conformal.POINT, *peer_conformal.INTERVAL}
    prepared = load_prepared(evaluated_project)
    calibration = load_calibration(evaluated_project)[0]["ensemble"]
    median, target, series = {}, {}, {}
    for fold, purpose in (("conformal", "fit conformal"), ("test", "evaluate")):
        median[fold] = calibration.apply(pooled(evaluated_project, "ensemble", fold, purpose)).median.double().numpy()
        target[fold] = prepared.panel.targets(prepared.windows[fold]).double().numpy()
        series[fold] = prepared.windows[fold].series.numpy()
    inside, widths = [], []
    for row, one in enumerate(series["test"]):
        errors = np.sort(np.abs(target["conformal"] - median["conformal"])[series["conformal"] == one], axis=0)
        radius = errors[int(np.ceil(0.9 * (len(errors) - 1)))]
        inside.append(np.abs(target["test"][row] - median["test"][row]) <= radius)
        widths.append(2 * radius)
    assert found["darts_naive/coverage_90"] == pytest.approx(np.mean(inside))
    assert found["darts_naive/width_90"] == pytest.approx(np.mean(widths))


def test_a_set_that_is_not_there_is_left_out_and_asked_for_alone_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = uncertainty.run_set

    def quick(name: str, *rest: Any) -> Any:
        return (METRICS, uncertainty.goals(METRICS, BANDS)) if name == "chicago" else real(name, *rest)

    monkeypatch.setattr(uncertainty, "run_set", quick)
    out = tmp_path / "u.json"
    uncertainty.main(["--data", str(tmp_path), "--datasets", "chicago", "etth1", "--json", str(out)])
    told = capsys.readouterr()
    assert "uncertainty: etth1 is left out" in told.err and "ETTh1.csv is not there" in told.err
    assert [line.split()[:2] for line in told.out.splitlines()[1:3]] == [["chicago", "coverage"], ["chicago", "narrower"]]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["chicago/goal/coverage"] is True and result["chicago/ensemble/width_90"] == 2.0
    with pytest.raises(UserError, match="is not there"):
        uncertainty.main(["--data", str(tmp_path), "--datasets", "etth1"])


def test_the_default_data_come_with_the_covariates_of_params_yaml() -> None:
    params = default_params(["tcn"], 1, ["seasonal_naive"])
    assert params.data == Params.load(DEFAULTS).data and params.data.known_future
    assert (params.families, params.train.members, params.baselines.models) == (("tcn",), 1, ("seasonal_naive",))


@pytest.mark.filterwarnings("ignore")
def test_one_set_from_its_table_to_its_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees alone, on eight days of hours; every goal has an answer and figures come from the run."""
    rng = np.random.default_rng(2)
    hours = np.arange(600)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(["a", "b", "c"], len(hours)),
            "ds": np.tile(hours, 3),
            "y": np.tile(10 + np.sin(hours / 24 * 2 * np.pi), 3) + rng.normal(0, 0.2, 3 * len(hours)),
        }
    )
    small = Benchmark("etth1", frame, 1, 6, 24, 24, {"features": {"season_length": 24}, "folds": {"test": 24}})
    monkeypatch.setitem(uncertainty.DATASETS, "etth1", lambda folder: small)
    metrics, aims = uncertainty.run_set("etth1", tmp_path, ["gradient_boosting"], 1)
    assert metrics["darts_qr/width_90"] > 0 and 0 <= metrics["ensemble/coverage_90"] <= 1
    assert metrics["joint_band_90"][0] <= metrics["joint_band_90"][1]
    assert set(aims) == {
        "coverage", "narrower", "joint_coverage", "joint_width", "ood_auroc", "ood_fpr95", "error_ratio_80", "aurc_ratio", "ece"
    }  # fmt: skip


def test_without_a_second_window_a_series_has_no_peers(evaluated_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_conformal, "FEWEST", 10_000)
    assert uncertainty.peer_intervals(evaluated_project) == {}


def test_what_peers_see_of_a_fold(evaluated_project: Path) -> None:
    prepared = load_prepared(evaluated_project)
    windows = prepared.windows["test"]
    values = torch.linspace(-1.0, 1.0, len(LEVELS)).expand(len(windows), prepared.panel.schema.horizon, -1)
    seen = uncertainty.Seen.of(Predictive(values), prepared, windows)
    assert (seen.median[0] == seen.median[1]).all() and np.allclose(seen.median[0], 0.0, atol=1e-6)
    assert (seen.interval[0] < seen.median[0]).all() and (seen.interval[1] > seen.median[0]).all()
