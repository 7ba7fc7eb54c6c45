"""Drafts of a bundle's members: trained, kept for that bundle alone, and forecasts drawn with their help."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from models.decoding.planner import make_plan
from tasks.bundle import Bundle, bundle_digest, write_bundle
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.future import with_future_rows
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.registry import register
from tasks.sampling import FOLDER, binned_members, distil, sampling_figures, sampling_text, use_sampler
from tasks.tracking import initialise, parent_run
from tasks.train import train_family

LABEL = "tiny-1"


@pytest.fixture(scope="module")
def project(
    prepared_project: Path,
    edit_params: Callable[..., None],
    evaluate_project: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tiny project whose one family samples paths of bins, up to its bundle and early-exit drafts for it."""
    root = tmp_path_factory.mktemp("sampling") / "project"
    shutil.copytree(prepared_project, root)
    changes = {"families": ["mamba2"], "baselines.models": ["seasonal_naive"], "forecasters.mamba2.decoding": "paths"}
    small = {"width": 8, "layers": 2, "state_size": 4, "heads": 2, "bins": 16, "paths": 20, "max_epochs": 1}
    edit_params(root, changes | {f"forecasters.mamba2.{key}": value for key, value in small.items()})
    params = Params.load(root=root)
    train_family(params, root, "mamba2")
    evaluate_project(root)
    write_bundle(params, root)
    make_drafts(root)
    return root


def bundle_of(root: Path) -> tuple[Bundle, str]:
    folder = root / "artifacts/bundle"
    return Bundle.load(folder, "tiny version 1"), bundle_digest(folder)


def make_drafts(root: Path, kind: str = "early_exit", steps: int = 6) -> dict[str, dict[str, float]]:
    bundle, digest = bundle_of(root)
    return distil(root, LABEL, digest, bundle, load_prepared(root), kind, steps, lambda name, step, loss: None)


def forecast_of(root: Path, sampler: str | None) -> tuple[pd.DataFrame, Bundle]:
    bundle, digest = bundle_of(root)
    if sampler is not None:
        use_sampler(root, LABEL, digest, bundle, sampler)
    panel = pd.read_parquet(root / "data/ingested/panel.parquet")
    return bundle.forecast(with_future_rows(panel, bundle.encoding)), bundle


def test_distillation_lowers_the_loss_and_repeats_itself(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    short = make_drafts(root, "distilled", 1)
    longer = make_drafts(root, "distilled", 60)
    assert list(longer) == ["mamba2_0", "mamba2_1"]
    assert all(longer[name]["loss"] < short[name]["loss"] for name in longer)
    weights = (root / FOLDER / LABEL / "mamba2_0.safetensors").read_bytes()
    make_drafts(root, "distilled", 60)
    assert (root / FOLDER / LABEL / "mamba2_0.safetensors").read_bytes() == weights


def test_a_forecast_is_the_same_coupled_with_drafts_and_without(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.forecasters.sampler.make_plan", partial(make_plan, least=0.0))
    coupled, bundle = forecast_of(project, "gumbel")
    assert all(figures["length"] > 0 and figures["tokens_per_call"] >= 1.0 for figures in sampling_figures(bundle).values())
    assert "tokens drafted a round" in sampling_text(bundle)
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("drafts"))
    alone, bundle = forecast_of(root, "gumbel")
    assert sampling_text(bundle) == "one step after another, without drafts"
    numbers = alone.select_dtypes("number").columns
    np.testing.assert_allclose(alone[numbers], coupled[numbers], rtol=1e-4, atol=1e-4)


def test_speculative_forecasts_are_the_ancestral_ones_but_for_chance(project: Path) -> None:
    """Medians of 20 paths a member: apart by less than the 80 % interval, and on average by a small share of it."""
    speculative, _ = forecast_of(project, "speculative")
    ancestral, _ = forecast_of(project, None)
    width = ancestral["hi-80"] - ancestral["lo-80"]
    assert float(((speculative["median"] - ancestral["median"]).abs() / width).mean()) < 0.35
    assert float((speculative["hi-80"] - speculative["lo-80"]).mean() / width.mean()) == pytest.approx(1.0, abs=0.35)


def rename_bundle(record: Path) -> None:
    write_json(record, read_json(record) | {"bundle": "another"})


def test_a_machine_without_a_compiler_is_told_and_forecasts_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.forecasters.sampler.can_compile", lambda: False)
    bundle, digest = bundle_of(project)
    use_sampler(project, LABEL, digest, bundle, "gumbel", compiled=True)
    panel = pd.read_parquet(project / "data/ingested/panel.parquet")
    assert len(bundle.forecast(with_future_rows(panel, bundle.encoding))) > 0
    assert "steps are not compiled: torch.compile finds no working C++ compiler" in sampling_text(bundle)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "has no drafts to speculate with; run `weatherglass distill` first."),
        (lambda folder: (folder / "mamba2_1.safetensors").write_bytes(b""), "'mamba2_1.safetensors' .* is not the one that"),
        (lambda folder: rename_bundle(folder / "drafts.json"), "are for another bundle"),
    ],
)
def test_drafts_that_are_missing_damaged_or_anothers_are_refused(
    project: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    spoil(root / FOLDER / LABEL)
    with pytest.raises(UserError, match=words):
        forecast_of(root, "speculative")


def test_a_draft_with_other_bins_is_refused(project: Path) -> None:
    bundle, digest = bundle_of(project)
    _, target = binned_members(bundle)["mamba2_0"]
    with torch.no_grad():
        target.head.edges.add_(0.5)
    with pytest.raises(UserError, match=r"cannot serve tiny version 1: the draft's bins have other edges"):
        use_sampler(project, LABEL, digest, bundle, "speculative")


def test_a_model_without_paths_of_bins_is_told(evaluated_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    write_bundle(Params.load(root=root), root)
    bundle, digest = bundle_of(root)
    with pytest.raises(UserError, match=r"has no member that samples paths of bins; set forecasters\.FAMILY"):
        use_sampler(root, LABEL, digest, bundle, "speculative")


def test_the_commands_distil_forecast_and_tell_mlflow(project: Path, tmp_path: Path, weatherglass: Callable[..., Any]) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("drafts"))
    initialise(f"sqlite:///{root}/mlflow.db")
    params = Params.load(root=root)
    missing = weatherglass(root, "distill")
    assert missing.code == 2 and "the registry holds no model 'weatherglass' with alias 'champion'" in missing.err
    register(params, root, parent_run(root, "weatherglass", {"params": "tiny"}))
    early = weatherglass(root, "forecast", "--sampler", "speculative")
    assert early.code == 2 and "has no drafts to speculate with; run `weatherglass distill` first" in early.err
    told = weatherglass(root, "distill", "--kind", "early_exit", "--steps", "4", "--json")
    assert told.code == 0 and set(json.loads(told.out)) == {"mamba2_0", "mamba2_1"}
    done = weatherglass(root, "forecast", "--sampler", "speculative", "--output", "forecast.parquet")
    assert done.code == 0 and "predicted gain" in done.err
    assert len(pd.read_parquet(root / "forecast.parquet")) == 7 * params.data.horizon
    (run,) = MlflowClient().search_runs(["1"], "tags.`weatherglass.kind` = 'sampler speculative'")
    names = {name.rpartition("/")[2] for name in run.data.metrics}
    assert {
        "length",
        "acceptance",
        "acceptance_step_1",
        "cost_ratio",
        "verify_cost",
        "predicted_gain",
        "measured_gain",
    } <= names
