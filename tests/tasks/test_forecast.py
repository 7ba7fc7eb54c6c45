"""Forecasts of a large panel part by part are those of the whole panel at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.panel import Windows
from tasks.bundle import Bundle, write_bundle
from tasks.encoding import series_starts
from tasks.forecast import forecast_file, forecast_panel, whole_batches
from tasks.future import NothingYet, with_future_rows
from tasks.ingested import RowGroups
from tasks.params import Params
from tasks.predict import BATCH, predict_windows

SERIES = 2 * BATCH + 40
GATE = ["ood_score", "ood_pvalue"]


@pytest.fixture(scope="module")
def bundle(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle") / "project"
    shutil.copytree(evaluated_project, root)
    return Bundle.load(write_bundle(Params.load(root=root), root), "tiny version 1")


@pytest.fixture(scope="module")
def panel(evaluated_project: Path) -> pd.DataFrame:
    """Many series, like those of the project, of lengths that differ; one in five begins late."""
    whole = pd.read_parquet(evaluated_project / "data/ingested/panel.parquet")
    series = [part for _, part in whole.groupby("unique_id")]
    random, parts = np.random.default_rng(1), []
    for number in range(SERIES):
        part = series[number % len(series)]
        part = part.iloc[-int(random.integers(60, len(part))) if number % 5 else -40 :].assign(unique_id=f"series {number:04d}")
        parts.append(part.assign(y=part["y"] * random.uniform(0.5, 2)))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def path(panel: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("panel") / "panel.parquet"
    panel.to_parquet(path, index=False, row_group_size=10_000)
    return path


@pytest.mark.parametrize("rows", [9_000, 40_000, 10**6])
def test_parts_together_are_the_table_of_the_whole_panel(bundle: Bundle, panel: pd.DataFrame, path: Path, rows: int) -> None:
    parts = list(forecast_panel(bundle, path, rows=rows))
    assert all(len(part) % (BATCH * bundle.encoding.schema.horizon) == 0 for part in parts[:-1])
    found, expected = pd.concat(parts, ignore_index=True), bundle.forecast(with_future_rows(panel, bundle.encoding))
    others = [name for name in expected if name not in GATE]
    pd.testing.assert_frame_equal(found[others], expected[others], rtol=0, atol=0)
    pd.testing.assert_frame_equal(found[GATE], expected[GATE], rtol=1e-7, atol=1e-9)
    if rows > len(panel):
        assert len(parts) == 1
        pd.testing.assert_frame_equal(found, expected, rtol=0, atol=0)


def test_series_that_have_not_begun_are_left_out_of_every_part(bundle: Bundle, panel: pd.DataFrame, path: Path) -> None:
    cutoff = str(panel["ds"].max() - pd.Timedelta(hours=45))
    found = pd.concat(forecast_panel(bundle, path, cutoff=cutoff, rows=9_000), ignore_index=True)
    expected = bundle.forecast(with_future_rows(panel, bundle.encoding, cutoff))
    assert 0 < expected["unique_id"].nunique() < SERIES
    others = [name for name in expected if name not in GATE]
    pd.testing.assert_frame_equal(found[others], expected[others], rtol=0, atol=0)
    with pytest.raises(NothingYet, match=f"no series has a value up to 1990-01-01; the data begins at {panel['ds'].min()}"):
        list(forecast_panel(bundle, path, cutoff="1990-01-01", rows=9_000))


def test_random_states_go_on_from_part_to_part(bundle: Bundle, panel: pd.DataFrame) -> None:
    encoded = bundle.encoding.panel(with_future_rows(panel, bundle.encoding))
    windows = Windows(torch.arange(encoded.n_series), encoded.observed.clone())
    whole = predict_windows(bundle.members[0], encoded, windows, seed=3, passes=2)
    rest = predict_windows(bundle.members[0], encoded, windows[slice(BATCH, None)], seed=3, passes=2, before=BATCH)
    np.testing.assert_array_equal(rest.quantiles, whole.quantiles[BATCH:])
    again = predict_windows(bundle.members[0], encoded, windows[slice(BATCH, None)], seed=3, passes=2)
    assert (again.quantiles != rest.quantiles).any(), "without it, masks are drawn anew"


@pytest.mark.parametrize("size", [1, 3, 4, 7, 50])
def test_parts_have_whole_batches_of_series(size: int) -> None:
    lengths = np.random.default_rng(2).integers(1, 6, size=23)
    whole = pd.DataFrame({"unique_id": np.repeat([f"{index:02d}" for index in range(23)], lengths)})
    frames = [
        whole[whole["unique_id"].isin([f"{index:02d}" for index in part])].reset_index(drop=True)
        for part in np.array_split(np.arange(23), 9)
    ]
    parts = list(whole_batches(frames, size))
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
    counts = [len(series_starts(part)) for part in parts]
    assert all(count % size == 0 for count in counts[:-1]) and sum(counts) == 23
    assert all(count <= size + 3 for count in counts), "no more waits than a batch and what has just come"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_written_in_parts_has_the_bytes_of_the_whole(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowGroups, "ROWS", 8)
    times = pd.date_range("2024-01-01", periods=21, freq="8h").as_unit("ns")
    whole = pd.DataFrame({"unique_id": [f"{index // 7}" for index in range(21)], "ds": times, "median": np.arange(21) / 3})
    with forecast_file(tmp_path / f"parts.{ending}") as add:
        for start in range(0, 21, 7):
            add(whole.iloc[start : start + 7])
    if ending == "csv":
        whole.to_csv(tmp_path / "whole.csv", index=False)
    else:
        whole.to_parquet(tmp_path / "whole.parquet", index=False, row_group_size=8)
    assert (tmp_path / f"parts.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
