"""Decile bins: a tenth of a series' training values each, with edges between values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.uncertainty.decomposition import bin_index
from tasks.bins import DECILES, deciles, series_edges
from tasks.prepare import load_prepared


def test_bins_hold_a_tenth_each_and_counts_lie_between_edges() -> None:
    values = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).double()
    shares = torch.bincount(bin_index(values, deciles(values)), minlength=10)
    assert ((shares - 100).abs() <= 1).all()
    counts = torch.tensor([0.0] * 70 + [1.0] * 20 + [5.0] * 10)
    assert deciles(counts).tolist() == [0.5] * 7 + [3.0] * 2
    assert (bin_index(torch.full((3,), 4.0), deciles(torch.full((20,), 4.0))) == 0).all()


def test_edges_come_from_training_alone_and_from_all_series_where_one_has_too_few(prepared_project: Path) -> None:
    prepared = load_prepared(prepared_project)
    edges, shared = series_edges(prepared)
    assert edges.shape == (7, 9)
    end = next(fold["end"] for fold in prepared.meta["folds"] if fold["name"] == "train")
    start = int(prepared.panel.offsets[0])
    first = int(prepared.meta["first_step"][0])
    torch.testing.assert_close(edges[0], deciles(prepared.panel.rows[start : start + end - first, 0]))
    short = prepared.ids.tolist().index("short")
    assert end - int(prepared.meta["first_step"][short]) < 10, "the short series starts after training"
    assert torch.equal(edges[short], shared)
    assert shared[0] < 60 < 100 < shared[-1]


@pytest.mark.parametrize("n", [10, 11, 97, 1000, 1001])
def test_deciles_are_order_statistics_as_torch_names_them(n: int) -> None:
    values = torch.randint(0, 40, (n,), generator=torch.Generator().manual_seed(n)).double() / 7
    lower = torch.quantile(values, DECILES, interpolation="lower")
    edges, distinct = deciles(values), values.unique()
    above = torch.cat([distinct[1:], distinct[-1:] + 1e-6 * distinct[-1:].clamp(min=1.0)])
    assert torch.equal(edges, (lower + above[torch.searchsorted(distinct, lower)]) / 2)
