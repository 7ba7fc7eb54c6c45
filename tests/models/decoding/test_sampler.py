"""Samplers of a forecaster: one forecast in distribution, of each window by itself, in fewer calls of the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.decoding.planner import Costs, Plan
from models.decoding.speculative import Tally
from models.forecasters.drafts import build_draft
from models.forecasters.sampler import SAMPLERS, PathSampler
from models.panel import Batch, PanelSchema
from tests.models.decoding.test_binned_paths import BINNED, forecaster

PATHS = 1500


def sampler(family: str, name: Any, schema: PanelSchema, least: float = 0.0, **options: Any) -> PathSampler:
    target = forecaster(family, schema)
    draft = build_draft("early_exit", target, schema, family, BINNED[family]).eval()
    return PathSampler(target, name, draft, least=least, **options)


@pytest.mark.parametrize("family", ["hybrid", "deepar", "tcn"])
def test_all_samplers_draw_from_one_distribution(family: str, schema: PanelSchema, batch: Batch) -> None:
    """Means of 1,500 paths at each step differ by less than 4.5 standard errors; so do those of their first differences."""
    drawn = {name: sampler(family, name, schema).paths(batch, PATHS, seed)[0] for seed, name in enumerate(SAMPLERS)}
    drawn["torch"] = forecaster(family, schema).sample_paths(batch, PATHS, torch.Generator().manual_seed(9))[0]
    expected = drawn.pop("ancestral")
    for paths in drawn.values():
        assert paths.shape == (4, PATHS, schema.horizon)
        for of in (lambda values: values, lambda values: values.diff(dim=-1).abs()):
            gap = of(paths).mean(1) - of(expected).mean(1)
            error = ((of(paths).var(1) + of(expected).var(1)) / PATHS).sqrt()
            assert float((gap / error).abs().max()) < 4.5


@pytest.mark.parametrize("name", ["ancestral", "gumbel"])
def test_a_window_is_forecast_by_itself(name: Any, schema: PanelSchema, batch: Batch) -> None:
    target = forecaster("mamba2", schema)
    draft = build_draft("smaller", target, schema, "mamba2", BINNED["mamba2"]).double()
    target.use(PathSampler(target, name, draft, least=0.0))
    torch.manual_seed(4)
    together = target.predict(batch)
    for row in range(4):
        torch.manual_seed(4)
        alone = target.predict({key: values[row : row + 1] for key, values in batch.items()})
        torch.testing.assert_close(alone.quantiles[0], together.quantiles[row])
        torch.testing.assert_close(alone.features[0], together.features[row])
    assert target.batch_invariant
    target.use(PathSampler(target, "speculative", draft))
    assert not target.batch_invariant, "how far a round drafts depends on what the plan measures"
    target.use(None)
    assert not target.batch_invariant


def test_what_was_done_is_on_record(schema: PanelSchema, batch: Batch) -> None:
    on = sampler("hybrid", "speculative", schema, lengths=(2,))
    on.paths(batch, 5, seed=0)
    figures = on.records[20].figures()
    assert figures["length"] == 2 and 1.0 <= figures["tokens_per_call"] <= 3.0
    assert 0.0 < figures["acceptance"] < 1.0 and figures["measured_gain"] > 0.0
    off = sampler("hybrid", "speculative", schema, least=1e9)
    off.paths(batch, 5, seed=0)
    assert off.records[20].figures()["length"] == 0 and off.records[20].tally.calls == 0
    plain = sampler("hybrid", "ancestral", schema)
    plain.paths(batch, 5, seed=0)
    assert plain.records[20].figures() == {}


def test_a_sampler_that_there_is_not_is_refused(schema: PanelSchema) -> None:
    with pytest.raises(ValueError, match="'beam' is not a sampler; there are ancestral, speculative, gumbel"):
        sampler("hybrid", "beam", schema)


@pytest.mark.parametrize(("seconds", "own"), [(100.0, True), (1e-9, False)])
def test_steps_are_measured_against_a_quicker_sampler_of_the_forecasters_own(
    seconds: float, own: bool, schema: PanelSchema, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WaveNet's cache draws its paths: it is used where it beats both single steps, of `seconds`, and the draft."""
    plan = Plan(0, 0.5, Costs(seconds, seconds, {2: seconds}), Tally(1, 1, 1, [1], [0]))
    monkeypatch.setattr("models.forecasters.sampler.make_plan", lambda *arguments, **options: plan)
    off = sampler("wavenet", "speculative", schema, least=1.1)
    off.paths(batch, 5, seed=0)
    record = off.records[20]
    assert record.own == own and record.plan is not None and record.plan.length == 0
    assert (record.plan.costs.step < plan.costs.step) == own
    first, again = (off.paths(batch, 5, seed=seed)[0] for seed in (1, 1))
    assert torch.equal(first, again) and first.shape == (4, 5, schema.horizon)
