"""Autoregressive forecasters on bins: paths as tokens equal the network run over the whole window, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.decoding.speculative import ancestral_paths, speculative_paths
from models.decoding.streams import CHOOSE, WITHIN, Streams
from models.forecasters import config as configs
from models.forecasters.autoregressive import Autoregressive
from models.forecasters.base import SequenceForecaster
from models.forecasters.binned_paths import BinnedPaths, Stepper, values_in_bins
from models.forecasters.drafts import DRAFTS, build_draft, check_draft, distillation_loss, smaller_config
from models.forecasters.factory import build_forecaster
from models.heads import CategoricalHead
from models.panel import Batch, PanelSchema

COPIES = 5
BINNED: dict[str, Any] = {
    "deepar": configs.DeepARConfig(hidden_size=8, layers=2, head="categorical", bins=8, paths=9),
    "tcn": configs.TCNConfig(width=8, levels=3, decoding="paths", bins=8, paths=9),
    "wavenet": configs.WaveNetConfig(width=8, levels=3, bins=8, paths=9),
    "s4d": configs.S4DConfig(width=8, layers=2, state_size=4, decoding="paths", bins=8, paths=9),
    "mamba": configs.MambaConfig(width=8, layers=2, state_size=4, decoding="paths", bins=8, paths=9),
    "mamba2": configs.Mamba2Config(width=8, layers=2, state_size=4, heads=2, decoding="paths", bins=8, paths=9),
    "hybrid": configs.HybridConfig(width=8, layers=4, state_size=4, heads=2, window=6, decoding="paths", bins=8, paths=9),
}


def forecaster(family: str, schema: PanelSchema, seed: int = 0) -> Autoregressive:
    """Of random weights that are large enough for tokens to depend on history and covariates."""
    torch.manual_seed(seed)
    built = build_forecaster(family, schema, BINNED[family]).double().eval()
    assert isinstance(built, Autoregressive)
    for parameter in built.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return built


def streams(batch: Batch, schema: PanelSchema, seed: int = 3) -> Streams:
    return Streams(seed, torch.arange(len(batch["groups"]) * COPIES), schema.horizon)


def as_tokens(model: Autoregressive, target: Autoregressive, batch: Batch, numbers: Streams) -> BinnedPaths:
    return BinnedPaths(Stepper(model), batch, COPIES, values_in_bins(target, batch, COPIES, numbers))


@torch.no_grad()
def whole_window_paths(model: Autoregressive, batch: Batch, numbers: Streams) -> Tensor:
    """Paths (R, H) in the window's scale by running the whole network over the whole window for every new step."""
    head = model.head
    assert isinstance(head, CategoricalHead)
    inputs, target, base = (part.repeat_interleave(COPIES, 0) for part in model._inputs(batch))
    target[:, model.context :] = float("nan")  # what is not drawn yet must not be read
    edges = torch.cat([head.edges[:1] * 0 - torch.inf, head.edges, head.edges[:1] * 0 + torch.inf]).double()
    for step in range(model.context, target.shape[1]):
        hidden = model.backbone(model._teacher_forced(inputs[:, : step + 1], target[:, : step + 1]))[:, -1]
        cumulative = head.project(hidden).softmax(-1).cumsum(-1)
        token = torch.searchsorted(cumulative, numbers.all(CHOOSE)[:, step - model.context, None].contiguous())[:, 0]
        share = numbers.all(WITHIN)[:, step - model.context]
        low, high = edges[token], edges[token + 1]
        value = torch.where(low.isinf(), high + head.tails[0] * share.log(), low + share * (high - low))
        value = torch.where(high.isinf(), low - head.tails[1] * torch.log1p(-share), value)
        target[:, step] = value + base[:, step]
    return target[:, model.context :]


@pytest.mark.parametrize("family", BINNED)
def test_paths_of_tokens_equal_the_whole_network_run_anew(family: str, schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(family, schema)
    numbers = streams(batch, schema)
    paths = as_tokens(model, model, batch, numbers)
    found = paths.paths(ancestral_paths(paths, numbers))
    torch.testing.assert_close(found.flatten(0, 1), whole_window_paths(model, batch, numbers), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("family", BINNED)
def test_coupled_paths_are_the_targets_whatever_drafts(family: str, kind: Any, schema: PanelSchema, batch: Batch) -> None:
    """Windows differ in covariates, paths in how far a round takes them: known inputs are read at each path's own step."""
    target = forecaster(family, schema)
    draft = build_draft(kind, target, schema, family, BINNED[family]).double().eval()
    check_draft(target, draft)
    for seed in range(3):
        numbers = streams(batch, schema, seed)
        models = [as_tokens(model, target, batch, numbers) for model in (target, draft)]
        expected = ancestral_paths(models[0], numbers, rule="gumbel")
        assert torch.equal(speculative_paths(*models, 3, numbers, rule="gumbel").tokens, expected)


def test_a_direct_forecaster_stays_direct_by_default(schema: PanelSchema) -> None:
    assert isinstance(build_forecaster("mamba", schema, configs.MambaConfig()), SequenceForecaster)
    assert configs.MambaConfig(decoding="paths").head == "categorical"
    assert configs.MambaConfig(decoding="paths", head="student_t").head == "student_t"


@pytest.mark.parametrize("family", BINNED)
def test_a_binned_forecaster_predicts_and_learns(family: str, schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(family, schema)
    prediction = model.predict(batch)
    assert prediction.quantiles.shape == (4, schema.horizon, len(model.levels))
    assert bool((prediction.quantiles.diff(dim=-1) >= 0).all())
    model.train().loss(batch).backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "lag_weights")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda draft: setattr(draft, "head", CategoricalHead(8, 16)), "has 16 bins and the target 8"),
        (lambda draft: draft.head.edges.add_(0.1), "other edges than the target's"),
        (lambda draft: draft.lag_weights.data.add_(torch.tensor([0.3, 0.0])), "another average of lags"),
        (lambda draft: setattr(draft, "head", torch.nn.Identity()), "must both have a categorical head"),
    ],
)
def test_a_draft_with_other_bins_is_refused(change: Any, words: str, schema: PanelSchema) -> None:
    target = forecaster("mamba", schema)
    draft = build_draft("distilled", target, schema, "mamba", BINNED["mamba"]).double()
    check_draft(target, draft)
    change(draft)
    with pytest.raises(ValueError, match=words):
        check_draft(target, draft)


def test_only_a_categorical_head_has_tokens(schema: PanelSchema) -> None:
    model = build_forecaster("wavenet", schema, configs.WaveNetConfig(width=8, head="normal"))
    assert isinstance(model, Autoregressive)
    with pytest.raises(ValueError, match="categorical head, and this forecaster has a NormalHead"):
        Stepper(model)


def test_distillation_brings_a_draft_to_its_target(schema: PanelSchema, batch: Batch) -> None:
    target = forecaster("mamba", schema)
    draft = build_draft("distilled", target, schema, "mamba", BINNED["mamba"]).double()
    frozen = [parameter.clone() for parameter in target.parameters()]
    optimizer = torch.optim.Adam([parameter for parameter in draft.parameters() if parameter.requires_grad], 2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = distillation_loss(target, draft, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(*pair) for pair in zip(frozen, target.parameters(), strict=True))
    check_draft(target, draft)


def test_a_draft_is_smaller_than_its_target() -> None:
    small = smaller_config("mamba2", configs.Mamba2Config(width=256, layers=8, heads=8))
    assert (small.width, small.layers, small.heads, small.bins, small.dropout) == (64, 1, 1, 64, 0.0)
    assert smaller_config("deepar", configs.DeepARConfig(hidden_size=12)).hidden_size == 12
