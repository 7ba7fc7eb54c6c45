"""The gate on a project: which folds it reads, what it tells of perturbed windows, and what its card promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.uncertainty.descriptors import DESCRIPTORS, descriptors
from models.uncertainty.perturb import HELD_OUT, PERTURBATIONS, TUNING
from tasks.calibrate import guarantee_card, load_calibration
from tasks.ensemble import ENSEMBLE
from tasks.evaluate import gather_evidence
from tasks.folds import FoldLeak
from tasks.gate import apart, encoder_family, error_signals, fit_gate, gate_features, look
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.summary import load_metrics


def test_features_are_the_encoders_and_the_descriptors(evaluated_project: Path) -> None:
    prepared = load_prepared(evaluated_project)
    windows = prepared.windows["test"]
    features = gate_features(torch.ones(len(windows), 3), prepared.panel, windows)
    assert features.shape == (len(windows), 3 + len(DESCRIPTORS))
    torch.testing.assert_close(features[:, 3:], descriptors(prepared.panel, windows), equal_nan=True)


def test_a_fold_is_not_looked_at_for_another_purpose(evaluated_project: Path) -> None:
    params, prepared = Params.load(root=evaluated_project), load_prepared(evaluated_project)
    calibrations, gate, _ = load_calibration(evaluated_project)
    with pytest.raises(FoldLeak, match="'test' must not be used to fit gate"):
        look(evaluated_project, encoder_family(params), prepared, calibrations[ENSEMBLE], gate, "test", "fit gate")


def test_the_card_says_what_is_withheld_and_at_what_risk(evaluated_project: Path) -> None:
    card = load_calibration(evaluated_project)[2]["abstention"]
    assert card["nominal_share_withheld"] == 0.05
    assert card["n"] == len(load_prepared(evaluated_project).windows["conformal"])
    assert "with probability 0.9" in card["risk"] or card["risk"].startswith("No promise")


def test_a_promise_that_the_fold_cannot_keep_is_not_made(evaluated_project: Path) -> None:
    """The fold has few windows that do not overlap; a chance of one in a million takes more, whatever their errors."""
    params, prepared = Params.load(root=evaluated_project), load_prepared(evaluated_project)
    strict = params.model_copy(
        update={"calibration": params.calibration.model_copy(update={"selective_delta": 1e-9, "selective_risk": 1e-3})}
    )
    calibrations, gate, _ = load_calibration(evaluated_project)
    card = guarantee_card(strict, evaluated_project, prepared, calibrations[ENSEMBLE], gate)["abstention"]
    assert card["risk"].startswith("No promise")
    assert "it takes at least" in card["risk"]
    assert "selective" not in card


def test_on_the_conformal_fold_no_more_than_the_nominal_share_is_withheld(evaluated_project: Path) -> None:
    params, prepared = Params.load(root=evaluated_project), load_prepared(evaluated_project)
    calibration = load_calibration(evaluated_project)[0][ENSEMBLE]
    gate = fit_gate(params, evaluated_project, prepared, calibration)
    seen = look(evaluated_project, encoder_family(params), prepared, calibration, gate, "conformal", "fit abstention")
    withheld = gate.abstain(seen.score, gate.uncertainty(seen.signals, seen.score))
    assert float(withheld.double().mean()) <= params.calibration.abstain_fraction


def test_held_out_changes_of_the_middle_size_are_detected(evaluated_project: Path) -> None:
    """The mean over held-out kinds, as the metrics have it; the kind that the gate was tuned on is no part of it."""
    params, prepared = Params.load(root=evaluated_project), load_prepared(evaluated_project)
    calibrations, gate, _ = load_calibration(evaluated_project)
    detection = gather_evidence(params, evaluated_project, prepared, calibrations[ENSEMBLE], gate).detection
    assert TUNING not in HELD_OUT
    assert set(detection.by_size[1.0]) == set(PERTURBATIONS) == {*HELD_OUT, TUNING}
    auroc = np.mean([detection.by_size[1.0][name].auroc for name in HELD_OUT])
    assert load_metrics(evaluated_project)["ensemble/ood_auroc"] == pytest.approx(auroc, abs=1e-5)
    assert auroc > 0.9, "two thousand steps of training are enough for descriptors, which compare a series with itself"
    assert detection.mean["auroc"].lower <= auroc <= detection.mean["auroc"].upper
    small, large = (np.mean([detection.by_size[size][name].auroc for name in HELD_OUT]) for size in (0.5, 2.0))
    assert small < large


def test_cutoffs_that_overlap_are_thinned_from_the_newest_back() -> None:
    step = torch.tensor([10, 12, 14, 16, 18, 20, 20])
    assert step[apart(step, 4)].tolist() == [12, 16, 20, 20]
    assert bool(apart(step, 1).all())


def test_signals_are_in_units_of_the_window() -> None:
    from models.predictive import LEVELS, Predictive

    quantiles = torch.tensor(LEVELS).expand(2, 3, len(LEVELS)) * torch.tensor([1.0, 10.0])[:, None, None]
    epistemic = torch.tensor([[4.0] * 3, [400.0] * 3])
    signals = error_signals(Predictive(quantiles), epistemic, torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(signals[0], signals[1])
    assert float(signals[0, 1]) == pytest.approx(2.0)
