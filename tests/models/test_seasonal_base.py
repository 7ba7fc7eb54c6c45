"""What a direct network starts from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.layers.seasonal_base import CYCLES, SeasonalBase, same_phase
from models.panel import PanelSchema


def test_same_phase_looks_up_each_steps_own_phase_newest_last() -> None:
    history = torch.arange(20.0)[None]
    found = same_phase(history, season=6, cycles=3, horizon=8)
    for step in range(8):
        phase = 20 + step % 6  # the value one season before the step's phase in the first season ahead is known
        assert found[0, step].tolist() == [phase - 18.0, phase - 12.0, phase - 6.0]


def test_it_starts_as_the_mean_of_the_past_values(schema: PanelSchema) -> None:
    schema = replace(schema, context=30)
    base, history = SeasonalBase(schema, width=5), torch.randn(3, 30)
    assert base.cycles == min(CYCLES, 30 // schema.season_length)
    seasons, lags = base.seasons(history, 4), torch.randn(3, 4, len(schema.lags))
    start = base(history, seasons, lags, torch.randn(3, 4, 5))
    torch.testing.assert_close(start, torch.cat([seasons, lags], -1).mean(-1))


@pytest.mark.parametrize("lags", [(), (4, 7)])
def test_a_context_below_a_season_leaves_the_linear_map_and_the_lags(schema: PanelSchema, lags: tuple[int, ...]) -> None:
    schema = replace(schema, context=5, lags=lags)
    base, history = SeasonalBase(schema, width=3), torch.randn(2, 5)
    values = torch.randn(2, 4, len(lags))
    start = base(history, base.seasons(history, 4), values, torch.randn(2, 4, 3))
    torch.testing.assert_close(start, values.mean(-1) if lags else torch.zeros(2, 4))


def test_it_can_learn_a_linear_map_of_the_history(schema: PanelSchema) -> None:
    schema = replace(schema, context=12, lags=())
    torch.manual_seed(0)
    base, history = SeasonalBase(schema, width=2), torch.randn(256, 12)
    target, features = history[:, 2:6] - history[:, 8:12], torch.zeros(256, 4, 2)
    optimizer = torch.optim.LBFGS(base.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (base(history, base.seasons(history, 4), target[:, :, None][..., :0], features) - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(closure().detach()) < 1e-6
