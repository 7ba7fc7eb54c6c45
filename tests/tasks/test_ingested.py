"""The panel read by columns and blocks gives what the whole table in memory gives, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import ingested
from tasks.encoding import Encoding, series_starts
from tasks.ingested import IngestedPanel
from tasks.params import Params, derive_settings
from tasks.prepare import ARRAYS, CALENDAR, leading_rows, write_panel

LENGTHS = {"a": 40, "b": 1, "c": 33, "d": 200, "e": 2}
PARAMS = Params.model_validate(
    {
        "data": {"horizon": 2, "known_future": ["promo"], "past_only": ["rain"], "static": ["kind", "size"], "holidays": "US"},
        "features": {"context": 4, "lags": []},
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five series of unequal length, a future row at the end of each but the shortest, in row groups of 50 rows."""
    random, parts = np.random.default_rng(1), []
    for number, (name, steps) in enumerate(LENGTHS.items()):
        ds = pd.date_range("2019-12-20", periods=steps).as_unit("ns")
        part = pd.DataFrame({"unique_id": name, "ds": ds, "y": random.normal(size=steps), "promo": random.normal(9, 2, steps)})
        part["rain"], part["kind"], part["size"] = random.gamma(2, size=steps), ["mall", "shop"][number % 2], float(number)
        if steps > 1:
            part.loc[steps - 1, ["y", "rain"]] = np.nan
        parts.append(part)
    pd.concat(parts, ignore_index=True).to_parquet(tmp_path / "panel.parquet", index=False, row_group_size=50)
    return tmp_path / "panel.parquet"


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_blocks_are_whole_series_in_order(path: Path, rows: int) -> None:
    table, whole = IngestedPanel(path), pd.read_parquet(path)
    blocks = list(table.blocks(rows))
    pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), whole)
    names = [name for block in blocks for name in block["unique_id"].unique()]
    assert names == list(LENGTHS) and len(table) == len(whole)
    assert len(blocks) > 1 and max(map(len, blocks)) < rows + max(LENGTHS.values())


@pytest.mark.parametrize("block", [3, 64, 1000])
def test_series_are_those_of_the_whole_table(path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingested, "BLOCK", block)
    table, whole = IngestedPanel(path), pd.read_parquet(path)
    starts = series_starts(whole)
    np.testing.assert_array_equal(series_starts(table), starts)
    pd.testing.assert_frame_equal(table.first, whole.iloc[starts][["unique_id", "ds", "kind"]])
    assert table.observed.tolist() == whole.groupby("unique_id")["y"].count().tolist()
    assert [name for name in whole if table.is_number(str(name))] == ["y", "promo", "rain", "size"]


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_columns_are_those_of_the_whole_table(path: Path, rows: int) -> None:
    table, whole = IngestedPanel(path), pd.read_parquet(path)
    batches = list(table.batches(["ds", "rain", "rain"], rows))
    assert max(len(batch["ds"]) for batch in batches) <= rows
    for name in ("ds", "rain"):
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), whole[name].to_numpy())
    odd = np.arange(len(whole)) % 3 == 1
    np.testing.assert_array_equal(np.concatenate(list(table.chosen("rain", odd))), whole["rain"].to_numpy()[odd])


@pytest.mark.parametrize("counts", [[3, 0, 4, 1], [0, 0, 0, 0], [3, 2, 5, 1]])
def test_leading_rows_are_the_first_of_each_series(counts: list[int]) -> None:
    lengths = [3, 2, 5, 1]
    expected = [position < count for length, count in zip(lengths, counts, strict=True) for position in range(length)]
    assert leading_rows(np.array([0, 3, 5, 10]), np.array(counts), 11).tolist() == expected


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_a_panel_written_by_blocks_is_that_of_the_whole_table(path: Path, tmp_path: Path, rows: int) -> None:
    table, whole = IngestedPanel(path), pd.read_parquet(path)
    train = (whole["ds"] < "2020-01-20").to_numpy() & whole["y"].notna().to_numpy()
    settings = derive_settings(PARAMS, list(LENGTHS.values()))
    encoding = Encoding.fit(table, PARAMS, settings, train)
    assert encoding == Encoding.fit(whole, PARAMS, settings, train)
    panel, expected = write_panel(encoding, table, tmp_path, rows), encoding.panel(whole)
    for name in (*ARRAYS, *CALENDAR):
        own, other = (getattr(each if name in ARRAYS else each.calendar, name).numpy() for each in (panel, expected))
        np.save(tmp_path / "expected.npy", other)
        assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes(), name
        np.testing.assert_array_equal(own, other)
    lengths = panel.offsets.diff().tolist()
    steps = np.concatenate(
        [begin + np.arange(rows) for begin, rows in zip(panel.calendar.first.tolist(), lengths, strict=True)]
    )
    np.testing.assert_array_equal(np.load(tmp_path / "times.npy")[steps], whole["ds"].to_numpy())
