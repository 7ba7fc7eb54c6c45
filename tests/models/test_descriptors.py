"""Descriptors: near zero for history like that before, moved by what each is named for, blind to scale and to the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.calendar import Calendar
from models.panel import Panel, PanelSchema, Windows
from models.uncertainty import descriptors as module
from models.uncertainty.descriptors import DESCRIPTORS, block_length, descriptors
from models.uncertainty.perturb import perturbed_panel

NAMES = list(DESCRIPTORS)
SCHEMA = PanelSchema((), (), (), (), (), context=28, horizon=7, season_length=7)


def make_panel(series: int = 4, length: int = 700, seed: int = 0, schema: PanelSchema = SCHEMA) -> Panel:
    """A weekly course, a level of each series, growth and white noise; the last horizon's rows are the future."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    course = np.array([3.0, 3.2, 3.1, 3.0, 3.4, 1.0, 0.5])[t % 7]
    values = [(index + 2) * (course + 4 + 0.001 * t + rng.normal(0, 0.3, length)) for index in range(series)]
    rows = torch.from_numpy(np.concatenate(values).astype(np.float32))[:, None]
    offsets = torch.arange(series + 1) * length
    observed = torch.full((series,), length - schema.horizon)
    static = torch.zeros((series, 0), dtype=torch.int64)
    return Panel(schema, rows, Calendar.none(offsets), static, offsets, observed)


def make_windows(panel: Panel, first: int = 200, stride: int = 11) -> Windows:
    cutoffs = torch.arange(first, int(panel.observed[0]), stride)
    return Windows(torch.arange(panel.n_series).repeat_interleave(len(cutoffs)), cutoffs.repeat(panel.n_series))


def rewritten(panel: Panel, rows: Tensor) -> Panel:
    return replace(panel, rows=rows)


def moved(name: str, size: float = 1.0) -> dict[str, Tensor]:
    """Each descriptor of perturbed windows in robust standard deviations of the clean ones'."""
    panel = make_panel()
    windows = make_windows(panel)
    clean = descriptors(panel, windows)
    values = descriptors(*perturbed_panel(panel, windows, SCHEMA.reference + SCHEMA.context, name, size, 3))
    centre = clean.median(0).values
    spread = (clean - centre).abs().median(0).values.mul(1.4826).clamp(min=0.02)
    return dict(zip(NAMES, ((values - centre) / spread).T, strict=True))


@pytest.mark.parametrize(
    ("name", "column", "sign"),
    [
        ("level", "level", 1),
        ("level", "level step", 1),
        ("level", "edge step", 1),
        ("variance", "residual scale", 1),
        ("variance", "seasonal difference", 1),
        ("variance", "season autocorrelation", -1),
        ("frequency", "profile shape", 1),
        ("frequency", "residual scale", 1),
        ("trend break", "trend", 1),
        ("trend break", "late half", 1),
        ("dropout", "zeros", 1),
        ("dropout", "below range", 1),
        ("dropout", "repeats", 1),
        ("foreign", "seasonal strength", -1),
        ("foreign", "spectral share", -1),
    ],
)
def test_a_change_moves_the_descriptor_that_is_named_for_it(name: str, column: str, sign: int) -> None:
    assert float((sign * moved(name)[column]).median()) > 2


def test_descriptors_of_ordinary_history_are_near_zero() -> None:
    panel = make_panel()
    centre = dict(zip(NAMES, descriptors(panel, make_windows(panel)).median(0).values.tolist(), strict=True))
    extremes = {
        "largest step",
        "largest jump",
        "largest residual",
        "above range",
        "below range",
        "level step",
        "level",
        "earlier strength",
    }
    assert all(abs(value) < 0.25 for name, value in centre.items() if name not in extremes), centre


def test_units_do_not_matter() -> None:
    panel = make_panel()
    windows = make_windows(panel)
    small = descriptors(rewritten(panel, panel.rows * 2.0**-10), windows)
    torch.testing.assert_close(small, descriptors(panel, windows), rtol=1e-6, atol=1e-6)


def test_the_future_and_other_series_do_not_matter() -> None:
    panel = make_panel()
    windows = Windows(torch.tensor([1]), torch.tensor([400]))
    before = descriptors(panel, windows)
    rows = panel.rows.clone()
    start = int(panel.offsets[1]) + 400
    rows[start:] = 1e4
    rows[: int(panel.offsets[1])] = -1e4
    torch.testing.assert_close(descriptors(rewritten(panel, rows), windows), before, rtol=0, atol=0)


def test_a_window_cut_out_for_perturbing_has_the_descriptors_of_its_place() -> None:
    panel = make_panel()
    windows = make_windows(panel)
    alone = perturbed_panel(panel, windows, SCHEMA.reference + SCHEMA.context, "level", 0.0, 0)
    torch.testing.assert_close(descriptors(*alone), descriptors(panel, windows))


def test_without_earlier_history_there_is_nothing_to_tell() -> None:
    panel = make_panel()
    windows = Windows(torch.tensor([0, 0, 0, 0]), torch.tensor([2, 28, 41, 42]))
    told = ~descriptors(panel, windows).isnan().all(1)
    assert told.tolist() == [False, False, False, True], "two blocks of seven before the context of 28"


def test_a_few_more_steps_of_history_do_not_look_like_a_change() -> None:
    """Of many series alike, the spread of each descriptor grows by no more than half from one cutoff to the next but one."""
    panel = make_panel(series=1500, length=260)
    spreads = []
    for cutoff in range(56, 252, 7):
        windows = Windows(torch.arange(panel.n_series), torch.full((panel.n_series,), cutoff))
        values = descriptors(panel, windows)
        spreads.append(values.quantile(0.9, dim=0) - values.quantile(0.1, dim=0))
    growth = torch.stack(spreads[2:]) / torch.stack(spreads[:-2])
    assert {name: float(most) for name, most in zip(NAMES, growth.nan_to_num().amax(0), strict=True) if most > 1.6} == {}


@pytest.mark.parametrize("season", [1, 7, 14, 28])
def test_any_season_gives_finite_descriptors_or_none(season: int) -> None:
    schema = replace(SCHEMA, season_length=season)
    assert block_length(schema) == (season if season in (7, 14) else 7)
    panel = make_panel(schema=schema)
    values = descriptors(panel, make_windows(panel, first=300))
    assert not values.isinf().any()
    assert not values.isnan().any()


def test_a_constant_series_is_like_itself() -> None:
    panel = make_panel()
    flat = rewritten(panel, torch.full_like(panel.rows, 5.0))
    values = descriptors(flat, make_windows(flat))
    assert torch.isfinite(values).all()
    assert float(values[:, NAMES.index("residual scale")].abs().max()) < 1e-6


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = make_panel()
    windows = make_windows(panel)
    whole = descriptors(panel, windows)
    monkeypatch.setattr(module, "CELLS", 5 * SCHEMA.reference)
    torch.testing.assert_close(descriptors(panel, windows), whole, rtol=1e-9, atol=1e-9)
    assert descriptors(panel, windows[slice(0, 0)]).shape == (0, len(NAMES))
