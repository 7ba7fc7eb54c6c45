"""Hourly data across clock changes, and data that shrank or was rewritten between two ingests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.errors import UserError
from tasks.ingest import ingest
from tasks.params import Params

Call = Callable[..., Any]
PARAMS = """
data: {source: file, path: hourly.csv, frequency: h, horizon: 6, known_future: [], past_only: [], holidays: null}
"""


def hourly(root: Path, start: str, written: Callable[[pd.DatetimeIndex], Any]) -> Params:
    """A project with two series of 60 days from ``start`` on, in Berlin, with their times as ``written`` writes them."""
    ds = pd.date_range(start, periods=60 * 24, freq="h", tz="Europe/Berlin")
    y = np.random.default_rng(1).normal(10, 1, len(ds))
    parts = [pd.DataFrame({"unique_id": name, "ds": written(ds), "y": y}) for name in ("park", "station")]
    pd.concat(parts).to_csv(root / "hourly.csv", index=False)
    (root / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return Params.load(root=root)


@pytest.mark.parametrize(
    ("change", "start", "told"),
    [
        ("a repeated hour", "2024-10-01", r"Row \d+ repeats unique_id 'park' at 2024-10-27 02:00:00"),
        ("a missing hour", "2024-03-01", r"The row of unique_id 'park' at 2024-03-31 02:00:00 is missing"),
    ],
)
def test_a_clock_change_in_local_times(change: str, start: str, told: str, tmp_path: Path, fault: Call) -> None:
    with fault(f"hourly local times with {change}", "one sentence names series, time and the remedy"):
        params = hourly(tmp_path, start, lambda ds: ds.tz_localize(None))
        with pytest.raises(UserError, match=told) as caught:
            ingest(params, tmp_path)
        assert "if clocks changed then, write times in UTC or with their offset" in str(caught.value)
        assert "\n" not in str(caught.value)
    with fault(f"the same over {change}, in UTC and with offsets", "both work and are the same panel"):
        panels = []
        for written in (lambda ds: ds.tz_convert(None), lambda ds: ds.map(lambda time: time.isoformat(sep=" "))):
            folder = ingest(hourly(tmp_path, start, written), tmp_path)
            panels.append(pd.read_parquet(folder / "panel.parquet"))
        pd.testing.assert_frame_equal(*panels)
        assert len(panels[0]) == 2 * 60 * 24


def test_data_that_shrank_and_was_rewritten(disturbed: Any, fault: Call) -> None:
    path = disturbed.root / "data/raw/hourly.csv"
    table = pd.read_csv(path)
    table.loc[table.index[100:103], "y"] += 1.5
    table[table["unique_id"] != "short"].iloc[5:].to_csv(path, index=False)
    with fault(
        "rows of the past gone and others rewritten", "a warning with their numbers, first series and time; kept in MLflow"
    ):
        done = disturbed.run("flows", "ingest")
        assert done.returncode == 0, done.stderr[-3000:]
        (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
        assert "of 3480 rows of history" in warning
        assert "115 are gone (first: unique_id 'a' at 2024-02-06)" in warning
        assert "3 have other values (first: unique_id 'a' at 2024-02-10 04:00:00)" in warning
    again = disturbed.run("flows", "ingest")
    assert again.returncode == 0 and "warning" not in again.stderr
