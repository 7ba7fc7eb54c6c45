"""The gate between champion and challenger, on bundles of a small project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.predictive import Predictive
from models.uncertainty import scores
from tasks.bundle import Bundle, write_bundle
from tasks.calibrate import load_calibration
from tasks.contest import judge, perform, worse_slices
from tasks.ensemble import pooled
from tasks.errors import UserError
from tasks.params import Params
from tasks.prepare import load_prepared


@pytest.fixture(scope="module")
def bundle(evaluated_project: Path) -> Bundle:
    return Bundle.load(write_bundle(Params.load(root=evaluated_project), evaluated_project), "weatherglass version 1")


class Spoiled(Bundle):
    """A bundle whose forecasts are ``shift`` too high and ``stretch`` times as wide."""

    shift: float = 0.0
    stretch: float = 1.0

    def predictive(self, *given: object) -> Predictive:
        told = super().predictive(*given)  # type: ignore[arg-type]
        middle = told.median[..., None]
        return Predictive(middle + self.shift + self.stretch * (told.values - middle))


def spoiled(bundle: Bundle, **how: float) -> Bundle:
    made = Spoiled(**{name: getattr(bundle, name) for name in bundle.__dataclass_fields__})
    for name, value in how.items():
        object.__setattr__(made, name, value)
    return made


def test_a_bundle_scores_on_the_test_fold_what_evaluate_scored(evaluated_project: Path, bundle: Bundle) -> None:
    prepared = load_prepared(evaluated_project)
    found = perform(Params.load(root=evaluated_project), bundle, evaluated_project, prepared)
    calibration = load_calibration(evaluated_project)[0]["ensemble"]
    predictive = calibration.apply(pooled(evaluated_project, "ensemble", "test", "evaluate"))
    expected = scores.crps(predictive, prepared.panel.targets(prepared.windows["test"]))
    assert torch.allclose(found.crps.double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_a_worse_challenger_is_kept_out_with_the_reason_and_a_better_one_passes(
    evaluated_project: Path, bundle: Bundle
) -> None:
    params = Params.load(root=evaluated_project)
    worse = spoiled(bundle, shift=2.0)
    verdict = judge(params, evaluated_project, bundle, worse, None)
    assert (
        not verdict.passed
        and "lower in 0% of resamples, 90% are asked for" in verdict.text
        and "CRPS of steps 1 to 2" in verdict.text
    )
    verdict = judge(params, evaluated_project, worse, bundle, None)
    assert verdict.passed and verdict.text.startswith("CRPS -")
    assert verdict.figures["crps_better"] == 1.0 and verdict.figures["challenger_crps"] < verdict.figures["champion_crps"]
    same = judge(params, evaluated_project, bundle, bundle, None)
    assert not same.passed, "an equal is no reason to change"
    assert same.text == "it forecasts exactly what the champion does"


def test_a_fresh_champion_stands_for_its_least_days(evaluated_project: Path, bundle: Bundle) -> None:
    params = Params.load(root=evaluated_project)
    params = params.model_copy(update={"promotion": params.promotion.model_copy(update={"least_days": 1e5})})
    verdict = judge(params, evaluated_project, spoiled(bundle, shift=2.0), bundle, "2026-01-02T03:04:05Z")
    assert not verdict.passed and "promotion.least_days is 100000" in verdict.text


def test_intervals_that_stop_covering_keep_a_challenger_out(evaluated_project: Path, bundle: Bundle) -> None:
    params = Params.load(root=evaluated_project)
    params = params.model_copy(update={"promotion": params.promotion.model_copy(update={"slice_tolerance": 1e9})})
    verdict = judge(params, evaluated_project, spoiled(bundle, shift=2.0), spoiled(bundle, stretch=0.05), None)
    assert [reason for reason in verdict.reasons if "90 % intervals cover" in reason]


def test_slices_are_series_with_windows_enough_and_thirds_of_the_horizon() -> None:
    old = torch.ones(24, 6)
    new = old.clone()
    new[:12, :2] = 3.0  # series 0, its first steps
    series = torch.tensor([0] * 12 + [1] * 9 + [2] * 3)
    found = dict(worse_slices(old, new, series, ["a", "b", "c"], 0.25))
    assert found == pytest.approx({"steps 1 to 2": 1.0, "series a": 2 / 3})
    assert worse_slices(old, new, series, ["a", "b", "c"], 1.5) == []


def test_a_champion_that_does_not_fit_the_data_is_told(evaluated_project: Path, bundle: Bundle) -> None:
    params, prepared = Params.load(root=evaluated_project), load_prepared(evaluated_project)
    other = replace(bundle, encoding=replace(bundle.encoding, schema=replace(bundle.encoding.schema, horizon=3)))
    with pytest.raises(UserError, match=r"version 1 forecasts 3 steps of frequency h and params.yaml asks for \d+ of h"):
        judge(params, evaluated_project, other, bundle, None)
    reads = replace(bundle, encoding=replace(bundle.encoding, known_future=("price",)))
    with pytest.raises(UserError, match="version 1 reads the column 'price', which the data has no more"):
        perform(params, reads, evaluated_project, prepared)
