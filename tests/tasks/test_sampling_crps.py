"""On the Chicago data a speculative forecast scores as an ancestral one does, within the error of sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, variance

import numpy as np
import scoringrules
import torch

from models.forecasters.autoregressive import Autoregressive
from models.forecasters.config import Mamba2Config
from models.forecasters.drafts import build_draft
from models.forecasters.factory import build_forecaster
from models.forecasters.sampler import SAMPLERS, PathSampler
from models.panel import WindowLoader
from tasks.ingest import ingest
from tasks.params import Params
from tasks.prepare import load_prepared, prepare
from tasks.sampling import _train

SEEDS, PATHS, WINDOWS, STEPS = 12, 25, 24, 60


def test_crps_of_speculative_and_ancestral_forecasts_is_equal(
    new_project: Callable[[Path], Path], edit_params: Callable[..., None], tmp_path: Path
) -> None:
    """Mean CRPS over windows, 12 independent runs a sampler: apart by less than 4 standard errors of their difference."""
    root = new_project(tmp_path / "project")
    edit_params(root, {"data": {"source": "chicago"}})
    params = Params.load(root=root)
    ingest(params, root)
    prepare(params, root)
    prepared = load_prepared(root)
    schema = prepared.panel.schema
    config = Mamba2Config(width=16, layers=2, state_size=8, heads=4, dropout=0.0, decoding="paths", bins=32)
    torch.manual_seed(0)
    target = build_forecaster("mamba2", schema, config)
    assert isinstance(target, Autoregressive)
    optimizer = torch.optim.Adam(target.parameters(), 5e-3)
    for step_batch in WindowLoader(prepared.panel, prepared.fold("train", "fit networks"), 16, STEPS, 1):
        optimizer.zero_grad()
        target.loss(step_batch).backward()
        optimizer.step()
    draft = build_draft("distilled", target, schema, "mamba2", config)
    _train(target.eval(), draft, prepared, "distilled", STEPS, 1, lambda step, loss: None)
    windows = prepared.fold("test", "evaluate")
    batch = prepared.panel.gather(windows[torch.linspace(0, len(windows) - 1, WINDOWS).long()])
    truth = batch["decoder_target"].numpy()
    scores: dict[str, list[float]] = {}
    for number, name in enumerate(SAMPLERS):
        sampler = PathSampler(target, name, draft.eval(), lengths=(3,), least=0.0)
        drawn = [sampler.paths(batch, PATHS, seed=1000 * number + seed)[0] for seed in range(SEEDS)]
        scores[name] = [
            float(scoringrules.crps_ensemble(truth, paths.numpy(), m_axis=1, estimator="fair").mean()) for paths in drawn
        ]
    figures = sampler.records[WINDOWS * PATHS].figures()
    assert figures["acceptance"] > 0.3 and figures["tokens_per_call"] > 1.3, "the drafts are of use"
    ancestral = scores.pop("ancestral")
    for found in scores.values():
        error = np.sqrt((variance(found) + variance(ancestral)) / SEEDS)
        assert abs(mean(found) - mean(ancestral)) < 4 * error
        assert error < 0.02 * mean(ancestral), "sampled closely enough to tell"
