"""A small seeded panel that the tests of models/ share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from models.calendar import Calendar
from models.panel import Panel, PanelSchema

MakePanel = Callable[..., Panel]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def schema() -> PanelSchema:
    return PanelSchema(
        known=("price", "trend"),
        past=("temperature",),
        static=(("store", 4),),
        categories=(("weekday", 8),),
        lags=(4, 7),
        context=10,
        horizon=4,
        season_length=7,
    )


@pytest.fixture(scope="session")
def make_panel(schema: PanelSchema) -> MakePanel:
    def make(lengths: Sequence[int] = (60, 25, 9), schema: PanelSchema = schema, seed: int = 3) -> Panel:
        """A seasonal panel whose series have ``lengths`` observed rows, each followed by ``horizon`` future rows."""
        rng = np.random.default_rng(seed)
        rows, codes = [], []
        for index, length in enumerate(lengths):
            time = np.arange(length + schema.horizon)
            target = 20.0 * (index + 1) + 5.0 * np.sin(2 * np.pi * time / schema.season_length)
            target = target + rng.normal(size=len(time))
            target[length:] = np.nan
            covariates = rng.normal(size=(len(time), len(schema.known) + len(schema.past)))
            rows.append(np.column_stack([target, covariates]))
            codes.append((1 + time % 7)[:, None].repeat(len(schema.categories), axis=1))
        sizes = [len(part) for part in rows]
        static = np.arange(1, len(lengths) + 1)[:, None].repeat(len(schema.static), axis=1)
        values, offsets = torch.from_numpy(np.concatenate(rows).astype(np.float32)), torch.tensor([0, *np.cumsum(sizes)])
        return Panel(
            schema,
            values,
            Calendar.of_rows(values[:, :0], torch.from_numpy(np.concatenate(codes).astype(np.int64)), offsets),
            torch.from_numpy(static.astype(np.int64)),
            offsets,
            torch.tensor(lengths),
        )

    return make


@pytest.fixture(scope="session")
def panel(make_panel: MakePanel) -> Panel:
    return make_panel()
