"""Pooling, repairs and scores: each fold moves what is its own, and the figures are those of their formulas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from models.panel import Panel
from models.predictive import LEVELS, MEDIAN, Predictive
from models.uncertainty.conformal import conformal_rank
from models.uncertainty.groups import GroupIntervals
from models.uncertainty.guarantee import coverage_band
from models.uncertainty.scores import coverage
from tasks.calibrate import CALIBRATION, calibrate, group_promises, load_calibration, window_series
from tasks.ensemble import POOLED, make_ensemble, member_weights, pooled
from tasks.errors import UserError
from tasks.evaluate import BASELINE, evaluate
from tasks.folds import FoldLeak
from tasks.gate import encoder_family
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.settings import FOLDS
from tasks.summary import load_metrics
from tasks.train import TRAINED

TENTHS = [LEVELS.index(round(0.1 * i, 1)) for i in range(1, 10)]


@pytest.fixture
def project(evaluated_project: Path, tmp_path: Path) -> Path:
    """A copy of the evaluated project that a test may change."""
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    return root


def shift(root: Path, family: str, fold: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a family's stored quantiles ``(M, n, H, Q)`` on a fold."""
    path = root / TRAINED / family / f"quantiles_{fold}.npy"
    np.save(path, change(np.load(path)).astype(np.float32))


def refit(root: Path) -> dict[str, Any]:
    params = Params.load(root=root)
    make_ensemble(params, root)
    calibrate(params, root)
    state: dict[str, Any] = json.loads((root / CALIBRATION / "calibration.json").read_text())["ensemble"]
    return state


def test_the_ensemble_is_the_weighted_average_of_its_members(evaluated_project: Path) -> None:
    rows = member_weights(evaluated_project)
    assert [(row["family"], row["index"]) for row in rows] == [("tcn", 0), ("tcn", 1), ("mamba", 0), ("mamba", 1)]
    weights = np.array([row["weight"] for row in rows])
    assert weights.sum() == pytest.approx(1.0)
    assert (weights > 0).all()
    folder = evaluated_project / TRAINED
    for fold in FOLDS:
        families = {name: np.load(folder / name / f"quantiles_{fold}.npy") for name in ("tcn", "mamba")}
        expected = np.tensordot(weights, np.concatenate(list(families.values())), axes=1)
        stored = np.load(evaluated_project / POOLED / f"ensemble_{fold}.npy")
        np.testing.assert_allclose(stored, np.sort(expected), rtol=1e-5)
        for name, values in families.items():
            stored = np.load(evaluated_project / POOLED / f"{name}_{fold}.npy")
            np.testing.assert_allclose(stored, np.sort(values.mean(axis=0)), rtol=1e-5)


def test_a_member_that_errs_gets_the_least_weight_unless_weights_are_equal(
    project: Path, edit_params: Callable[..., None]
) -> None:
    shift(project, "mamba", "early_stopping", lambda values: values + np.array([0.0, 500.0])[:, None, None, None])
    make_ensemble(Params.load(root=project), project)
    weights = [float(row["weight"]) for row in member_weights(project)]
    assert weights[3] == min(weights)
    assert weights[3] < 0.25
    edit_params(project, {"ensemble.weighting": "equal"})
    make_ensemble(Params.load(root=project), project)
    assert [row["weight"] for row in member_weights(project)] == [0.25] * 4


def test_variance_splits_into_what_members_say_and_how_they_differ(project: Path) -> None:
    shift(project, "tcn", "test", lambda values: values + np.array([-50.0, 50.0])[:, None, None, None])
    before = [np.load(project / POOLED / f"{part}_test.npy") for part in ("aleatoric", "epistemic")]
    make_ensemble(Params.load(root=project), project)
    aleatoric, epistemic = (np.load(project / POOLED / f"{part}_test.npy") for part in ("aleatoric", "epistemic"))
    np.testing.assert_allclose(aleatoric, before[0], rtol=1e-2, err_msg="a shift leaves each member's own spread alone")
    assert epistemic.mean() > before[1].mean() + 100, "members that lie 100 apart do not know"


def test_test_forecasts_move_nothing_and_conformal_ones_only_the_intervals(project: Path) -> None:
    before = refit(project)
    gate = load_file(project / CALIBRATION / "gate.safetensors")
    for family in ("tcn", "mamba"):
        shift(project, family, "test", lambda values: values * 3 + 7)
    assert refit(project) == before
    torch.testing.assert_close(load_file(project / CALIBRATION / "gate.safetensors"), gate, rtol=0, atol=0)
    for family in ("tcn", "mamba"):
        shift(project, family, "conformal", lambda values: values + 2)
    moved = refit(project)
    assert moved["temperature"] == before["temperature"]
    assert moved["joint"]["scale"] == before["joint"]["scale"]
    assert moved["joint"]["radius"] > before["joint"]["radius"]
    assert all(new > old for new, old in zip(*(each["step"]["radius"]["90"] for each in (moved, before)), strict=True))
    torch.testing.assert_close(load_file(project / CALIBRATION / "gate.safetensors"), gate, rtol=1e-3, atol=1e-3)


def test_pooled_forecasts_are_not_given_for_another_purpose(evaluated_project: Path) -> None:
    with pytest.raises(FoldLeak, match="'temperature' must not be used to fit conformal"):
        pooled(evaluated_project, "ensemble", "temperature", "fit conformal")


def test_intervals_cover_their_rank_of_the_fold_they_come_from(evaluated_project: Path) -> None:
    """Exactly k of n scores are at most the k-th smallest (no ties in continuous data)."""
    prepared = load_prepared(evaluated_project)
    calibration = load_calibration(evaluated_project)[0]["ensemble"]
    target = prepared.panel.targets(prepared.windows["conformal"])
    predictive = calibration.apply(pooled(evaluated_project, "ensemble", "conformal", "fit conformal"))
    n = len(target)
    for level in (80, 90, 95):
        covered = coverage(*calibration.interval(predictive, level, []), target).sum(dim=0)
        rank = conformal_rank(n, level / 100)
        assert ((covered - rank).abs() <= 1).all(), "a rank may round by one in the last digit"
    joint = coverage(*calibration.joint.band(predictive), target).all(dim=1).sum()
    assert abs(int(joint) - conformal_rank(n, 0.9)) <= 1


@pytest.mark.parametrize("score", ["cqr", "scaled_residual"])
def test_other_scores_cover_their_rank_and_groups_theirs(project: Path, edit_params: Callable[..., None], score: str) -> None:
    edit_params(project, {"calibration.score": score, "calibration.groups": "series"})
    calibrate(Params.load(root=project), project)
    prepared, (calibrations, _, card) = load_prepared(project), load_calibration(project)
    windows, calibration = prepared.windows["conformal"], calibrations["ensemble"]
    predictive = calibration.apply(pooled(project, "ensemble", "conformal", "fit conformal"))
    series = window_series(prepared, windows)
    covered = coverage(*calibration.interval(predictive, 90, series), prepared.panel.targets(windows))
    for name in set(series):
        own = torch.tensor([each == name for each in series])
        rank = conformal_rank(int(own.sum()), 0.9)
        assert ((covered[own].sum(dim=0) - rank).abs() <= 1).all()
    assert card["score"] == score
    assert card["groups"]["step 90 %"] == "holds within each of 7 series, by rank 29 of 31 scores each"


def test_the_card_names_series_that_have_no_promise_of_their_own() -> None:
    predictive = Predictive(torch.arange(float(len(LEVELS))).expand(48, 2, -1))
    target = torch.linspace(0.0, 20.0, 48)[:, None].expand(48, 2)
    series = [*["a"] * 20, *["b"] * 24, *["few"] * 4]
    step = GroupIntervals.fit("tail", predictive, target, series, (80, 90), fallback="marginal")
    said = group_promises(step, ["a", "b", "few", "new"])
    assert said["step 90 %"] == (
        "holds within each of 2 series, by rank 19 of 20 scores to rank 23 of 24; over all series together, and for none of "
        "them alone, for 2 with too few scores: few, new"
    )
    assert said["step 80 %"].startswith("holds within each of 3 series, by rank 4 of 4 scores to rank 20 of 24; ")


def test_a_constant_fold_is_told_in_one_sentence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Panel, "targets", lambda panel, windows: torch.full((len(windows), 6), 3.0))
    with pytest.raises(UserError, match=r"the forecasts of ensemble cannot be calibrated: .* all its truths are 3"):
        calibrate(Params.load(root=project), project)


def test_coverage_of_the_test_fold_is_what_the_card_allows(evaluated_project: Path) -> None:
    """The generator's noise is stationary; 99.9 % band of the beta-binomial at the effective sizes (fixed seed)."""
    card = load_calibration(evaluated_project)[2]
    metrics, windows = load_metrics(evaluated_project), load_prepared(evaluated_project).windows["test"]
    for name, key in (("step 90 %", "ensemble/coverage_90"), ("joint 90 %", "ensemble/joint_coverage_90")):
        promise = card["levels"][name]
        assert promise["certified"]
        assert 1 <= promise["n_effective"] <= promise["n"] == card["n"]
        low, high = coverage_band(promise["n_effective"], min(len(windows), promise["n_effective"]), 0.9, confidence=0.999)
        assert low <= metrics[key] <= high


def test_metrics_have_flat_keys_and_the_values_of_their_formulas(evaluated_project: Path) -> None:
    metrics, prepared = load_metrics(evaluated_project), load_prepared(evaluated_project)
    common = {"wql", "crps", "wape", "mase", "ece", "pit_ks"} | {
        f"{a}_{b}" for a in ("coverage", "width") for b in (80, 90, 95)
    }
    joint = {"joint_coverage_90", "joint_width_90"}
    repairs = {f"{score}_{when}" for score in ("ece", "bin_ece", "pit_ks", "crps") for when in ("before", "after")}
    repairs |= {"bonferroni_width_90"}
    detection = {"ood_auroc", "ood_aupr", "ood_fpr95", "ood_false_alarm_rate", "ood_spearman"}
    errors = {"error_ratio_80", "error_ratio_80_oracle", "error_ratio_80_units"}
    trust = detection | errors | {"abstain_rate", "aurc", "aurc_oracle", "aurc_ratio"}
    expected = {
        "ensemble": common | joint | trust | repairs,
        "tcn": common | joint,
        "mamba": common | joint,
        "seasonal_naive": common,
    }
    assert set(metrics) == {f"{model}/{key}" for model, keys in expected.items() for key in keys}

    truth = prepared.panel.targets(prepared.windows["test"]).double().numpy()
    values = np.load(evaluated_project / BASELINE / "seasonal_naive.npy").astype(np.float64)
    levels = np.array(LEVELS)[TENTHS]
    error = truth[..., None] - values[..., TENTHS]
    pinball = np.maximum(levels * error, (levels - 1) * error)
    assert metrics["seasonal_naive/wql"] == pytest.approx((2 * pinball.sum((0, 1)) / np.abs(truth).sum()).mean(), rel=1e-4)
    wape = np.abs(truth - values[..., MEDIAN]).sum() / np.abs(truth).sum()
    assert metrics["seasonal_naive/wape"] == pytest.approx(wape, rel=1e-4)
    for score in ("ece", "pit_ks", "crps"):
        assert metrics[f"ensemble/{score}_after"] == pytest.approx(metrics[f"ensemble/{score}"], abs=1e-5)
    assert metrics["ensemble/aurc_oracle"] <= metrics["ensemble/aurc"]
    assert metrics["ensemble/aurc_ratio"] == pytest.approx(metrics["ensemble/aurc"] / metrics["ensemble/aurc_oracle"], rel=1e-3)
    assert metrics["ensemble/error_ratio_80_oracle"] <= metrics["ensemble/error_ratio_80"]
    assert metrics["ensemble/width_80"] < metrics["ensemble/width_90"] < metrics["ensemble/width_95"]


def test_the_seasonal_naive_is_yesterdays_value(evaluated_project: Path) -> None:
    prepared = load_prepared(evaluated_project)
    windows, panel = prepared.windows["test"], prepared.panel
    rows = (panel.offsets[windows.series] + windows.cutoff)[:, None] + torch.arange(panel.schema.horizon) - 24
    values = np.load(evaluated_project / BASELINE / "seasonal_naive.npy")
    np.testing.assert_allclose(values[..., MEDIAN], panel.rows[rows, 0].numpy(), rtol=1e-5)


def test_plots_are_tables_over_levels_and_steps(evaluated_project: Path) -> None:
    reliability = pd.read_csv(evaluated_project / "plots/reliability.csv")
    assert list(reliability.columns) == ["level", "before", "after"]
    assert reliability["level"].tolist() == list(LEVELS)
    assert reliability["after"].between(0, 1).all()
    steps = pd.read_csv(evaluated_project / "plots/coverage_by_step.csv")
    assert steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    share = load_metrics(evaluated_project)["ensemble/coverage_90"]
    assert steps["coverage_after"].mean() == pytest.approx(share, abs=1e-5)


def test_evaluating_again_writes_the_same_metrics(project: Path) -> None:
    before = (project / "metrics/test.json").read_bytes()
    evaluate(Params.load(root=project), project)
    assert (project / "metrics/test.json").read_bytes() == before


def test_the_gate_reads_one_family_that_was_trained(evaluated_project: Path) -> None:
    params, (_, gate, card) = Params.load(root=evaluated_project), load_calibration(evaluated_project)
    assert encoder_family(params) == "tcn" == card["gate"]["encoder"]
    assert len(gate.scores) == card["gate"]["n"] == len(load_prepared(evaluated_project).windows["conformal"])
    alarms = gate.is_ood(gate.scores).double().mean()
    assert alarms <= gate.alpha, "on its own fold the share flagged is at most the nominal rate"
