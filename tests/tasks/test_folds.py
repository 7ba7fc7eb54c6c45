"""Folds lie in time without sharing a target, and serve their own purpose alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from models.calendar import Calendar
from models.panel import Panel, PanelSchema, Windows
from tasks.folds import (
    PURPOSES,
    Fold,
    FoldLeak,
    claim,
    drawn,
    fold_table,
    fold_windows,
    lay_folds,
    lint_folds,
    overlapping_stride,
)
from tasks.settings import FOLDS, Settings

SETTINGS = Settings(
    horizon=5, season_length=3, context=12, lags=(8,), calendar=False,
    early_stopping=10, temperature=11, ood=15, conformal=17, test=23, cutoff_every=5, gap=4,
)  # fmt: skip
END = 240
FIRST = np.array([0, 30, 0, 190])
OBSERVED = np.array([240, 210, 222, 50])  # the third series ends 18 steps early, the fourth begins within the folds


def panel() -> Panel:
    schema = PanelSchema((), (), (("unique_id", 5),), (), SETTINGS.lags, SETTINGS.context, SETTINGS.horizon, 3)
    lengths = torch.from_numpy(OBSERVED)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.arange(int(lengths.sum()), dtype=torch.float32)[:, None]
    return Panel(schema, rows, Calendar.none(offsets), torch.zeros(4, 1, dtype=torch.int64), offsets, lengths)


def target_steps(fold: Fold, settings: Settings = SETTINGS) -> tuple[np.ndarray, np.ndarray]:
    """Series ``(n,)`` and target steps ``(n, H)`` on the common axis of a fold's windows."""
    windows = fold_windows(fold, panel(), FIRST, settings)
    series = windows.series.numpy()
    return series, (FIRST[series] + windows.cutoff.numpy())[:, None] + np.arange(settings.horizon)


def test_folds_have_their_lengths_and_a_gap_between_them() -> None:
    folds = lay_folds(SETTINGS, END)
    assert [fold.name for fold in folds] == ["train", *FOLDS]
    assert [fold.end - fold.start for fold in folds[1:]] == [10, 11, 15, 17, 23]
    assert [later.start - earlier.end for earlier, later in pairwise(folds)] == [SETTINGS.gap] * 5
    assert (folds[0].start, folds[-1].end) == (0, END)
    assert fold_table(folds)[-1] == {"name": "test", "start": 217, "end": 240}


def test_no_target_step_is_in_two_folds_and_every_target_is_known() -> None:
    seen: dict[int, str] = {}
    for fold in lay_folds(SETTINGS, END):
        series, steps = target_steps(fold)
        assert len(series) > 0
        assert steps.min() >= fold.start
        assert steps.max() < fold.end
        assert (steps < (FIRST + OBSERVED)[series][:, None]).all()
        for step in np.unique(steps).tolist():
            assert seen.setdefault(step, fold.name) == fold.name


def test_test_cutoffs_stand_on_one_grid_that_ends_with_the_panel() -> None:
    series, steps = target_steps(lay_folds(SETTINGS, END)[-1])
    assert steps[series == 0][:, 0].tolist() == [220, 225, 230, 235]
    assert steps[series == 2].size == 0, "it ends before a whole horizon of the test fold has passed"
    assert steps[series == 3][:, 0].tolist() == [220, 225, 230, 235], "a series that training has not seen is tested"


def test_calibration_cutoffs_share_one_grid_that_meets_every_phase_of_the_season() -> None:
    series, steps = target_steps(lay_folds(SETTINGS, END)[-2])
    cutoffs = [steps[series == index][:, 0] for index in (0, 1, 2)]
    assert len({int(first) % overlapping_stride(SETTINGS) for values in cutoffs for first in values}) == 1
    for season, cutoff_every, horizon in ((24, 6, 6), (7, 14, 14), (12, 12, 12), (1, 1, 1), (24, 24, 24)):
        settings = replace(SETTINGS, season_length=season, cutoff_every=cutoff_every, horizon=horizon)
        stride = overlapping_stride(settings)
        assert 1 <= stride <= max(1, cutoff_every // 2)
        assert {step * stride % season for step in range(season)} == set(range(season))


def test_training_takes_every_cutoff_with_enough_history() -> None:
    train = lay_folds(SETTINGS, END)[0]
    windows = fold_windows(train, panel(), FIRST, SETTINGS)
    least = 2 * SETTINGS.season_length
    assert windows.cutoff[windows.series == 0].tolist() == list(range(least, train.end - SETTINGS.horizon + 1))
    assert windows.cutoff[windows.series == 1].tolist() == list(range(least, train.end - 30 - SETTINGS.horizon + 1))
    assert not (windows.series == 3).any()


def test_windows_are_drawn_alike_from_all_series_and_cutoffs_and_stay_in_order() -> None:
    series, cutoff = (each.flatten() for each in torch.meshgrid(torch.arange(500), torch.arange(10, 16), indexing="ij"))
    windows = Windows(series, cutoff)
    few = drawn(windows, 1200, seed=3)
    place = few.series * 6 + few.cutoff - 10
    assert len(few) == 1200 and (place.diff() > 0).all()
    counts = torch.bincount(few.cutoff - 10)
    assert ((counts - 200).abs() < 4 * (200 * (5 / 6) * (1800 / 2999)) ** 0.5).all(), "hypergeometric, four deviations"
    assert torch.equal(drawn(windows, 1200, seed=3).series, few.series)
    assert not torch.equal(drawn(windows, 1200, seed=4).series, few.series)
    assert drawn(windows, 3000, seed=1) is windows and drawn(windows, None, seed=1) is windows


@pytest.mark.parametrize(("fold", "purpose"), list(product(["train", *FOLDS], sorted(set().union(*PURPOSES.values())))))
def test_a_fold_serves_its_own_purpose_alone(fold: str, purpose: str) -> None:
    if purpose in PURPOSES[fold]:
        assert claim(fold, purpose) == fold
    else:
        with pytest.raises(FoldLeak, match=f"'{fold}' must not be used to {purpose}"):
            claim(fold, purpose)


def test_temperature_conformal_and_test_never_share_a_fold() -> None:
    assert PURPOSES["temperature"].isdisjoint(PURPOSES["conformal"])
    owners = [name for name, uses in PURPOSES.items() for _ in uses]
    assert len(owners) == len(set().union(*PURPOSES.values())), "a purpose has one fold"


def test_the_linter_refuses_overlap_disorder_and_an_empty_training_fold() -> None:
    folds = lay_folds(SETTINGS, END)
    with pytest.raises(FoldLeak, match="'ood' ends at step"):
        lint_folds([replace(fold, end=fold.end + 1) if fold.name == "ood" else fold for fold in folds], SETTINGS.gap)
    with pytest.raises(FoldLeak, match="they must be"):
        lint_folds([folds[0], folds[2], folds[1], *folds[3:]], SETTINGS.gap)
    with pytest.raises(FoldLeak, match="at least one step"):
        lay_folds(SETTINGS, SETTINGS.reserved)
