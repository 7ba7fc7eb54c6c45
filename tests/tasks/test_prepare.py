"""The prepared panel is the ingested one, mapped, with windows that know where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.errors import UserError
from tasks.files import file_md5
from tasks.folds import FoldLeak
from tasks.params import Params
from tasks.prepare import load_prepared, prepare
from tasks.settings import FOLDS


@pytest.fixture
def frame(prepared_project: Path) -> pd.DataFrame:
    return pd.read_parquet(prepared_project / "data/ingested/panel.parquet")


def test_the_panel_holds_every_row_once_in_mapped_memory(prepared_project: Path, frame: pd.DataFrame) -> None:
    prepared = load_prepared(prepared_project)
    np.testing.assert_array_equal(prepared.panel.rows[:, 0].numpy(), frame["y"].to_numpy(np.float32))
    assert prepared.ids.tolist() == sorted(frame["unique_id"].unique())
    assert prepared.panel.observed.tolist() == frame.groupby("unique_id")["y"].size().tolist()
    rows = prepared_project / "data/prepared/rows.npy"
    assert rows.stat().st_size < 4 * prepared.panel.rows.numel() + 200, "no padding for series of unequal length"


def test_times_of_a_window_are_those_of_its_rows(prepared_project: Path, frame: pd.DataFrame) -> None:
    prepared = load_prepared(prepared_project)
    windows = prepared.fold("test", "evaluate")
    truth = frame.set_index(["unique_id", "ds"])["y"]
    targets, times = prepared.panel.targets(windows).numpy(), prepared.target_time(windows)
    cutoffs = prepared.cutoff_time(windows)
    for row in range(0, len(windows), 5):
        name = prepared.ids[int(windows.series[row])]
        expected = truth.loc[[(name, time) for time in times[row]]].to_numpy(np.float32)
        np.testing.assert_array_equal(targets[row], expected)
        assert times[row][0] - cutoffs[row] == np.timedelta64(1, "h")
    latest = prepared.target_time(windows)[:, -1].max()
    assert latest == frame["ds"].max().to_datetime64(), "the newest window ends with the panel"
    same_time = prepared.cutoff_step(windows)[cutoffs == cutoffs.max()]
    assert len(np.unique(same_time.numpy())) == 1, "one step of the common axis is one time in every series"


def test_a_series_too_short_to_train_on_is_still_calibrated_and_tested(prepared_project: Path) -> None:
    prepared = load_prepared(prepared_project)
    short = prepared.ids.tolist().index("short")
    assert not (prepared.windows["train"].series == short).any()
    assert (prepared.windows["test"].series == short).any()
    assert prepared.panel.static[short, 0] == 0, "the networks meet it as a series they have not seen"
    assert prepared.meta["windows"] == {name: len(prepared.windows[name]) for name in ("train", *FOLDS)}


def test_a_fold_is_not_given_for_another_purpose(prepared_project: Path) -> None:
    prepared = load_prepared(prepared_project)
    with pytest.raises(FoldLeak, match="'test' must not be used to fit conformal"):
        prepared.fold("test", "fit conformal")


def test_preparing_again_writes_the_same_bytes(prepared_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_project, root)
    before = {path.name: file_md5(path) for path in (root / "data/prepared").iterdir()}
    folder = prepare(Params.load(root=root), root)
    assert {path.name: file_md5(path) for path in folder.iterdir()} == before


def test_folds_that_do_not_fit_are_one_sentence_and_the_old_panel_stays(
    prepared_project: Path, tmp_path: Path, edit_params: Callable[..., None]
) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_project, root)
    edit_params(root, {"folds.test": 500})
    with pytest.raises(UserError, match=r"The longest series has length 600.*params\.yaml") as caught:
        prepare(Params.load(root=root), root)
    assert "\n" not in str(caught.value)
    assert (root / "data/prepared/rows.npy").exists()
    assert sorted(path.name for path in (root / "data").iterdir()) == ["ingested", "prepared", "raw"]
