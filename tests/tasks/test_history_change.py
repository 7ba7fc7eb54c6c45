"""A past that changes between two ingests is told with its numbers; a future that comes true is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tasks.ingest import ingest
from tasks.params import Params

Call = Callable[..., None]


@pytest.fixture
def read_again(new_project: Callable[[Path], Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Ingest the tiny project's table, then what ``change`` makes of it; returns what was warned of."""
    root = new_project(tmp_path / "project")
    path = root / "data/raw/hourly.csv"
    table = pd.read_csv(path)

    def read(change: Callable[[pd.DataFrame], pd.DataFrame]) -> list[str]:
        warned: list[str] = []
        for each in (table, change(table.copy())):
            each.to_csv(path, index=False)
            ingest(Params.load(root=root), root, warned.append)
        return warned

    return read


def test_rows_that_are_gone_and_rows_that_are_others_are_counted(read_again: Callable[..., list[str]]) -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[[50, 51], "y"] += 0.5
        return table[table["unique_id"] != "short"].iloc[7:]

    (warning,) = read_again(change)
    assert warning.startswith("of 3480 rows of history read by the last ingest, 117 are gone (first: unique_id 'a' at ")
    assert " and 2 have other values (first: unique_id 'a' at 2024-02-08 02:00:00)" in warning


def test_new_rows_and_the_same_again_are_no_change(read_again: Callable[..., list[str]]) -> None:
    def longer(table: pd.DataFrame) -> pd.DataFrame:
        last = table[table["unique_id"] == "a"].iloc[[-1]]
        return pd.concat([table, last.assign(ds="2024-03-02 00:00:00", y=21.0)])

    assert read_again(lambda table: table) == []
    assert read_again(longer) == [], "a longer series"


def test_another_source_is_not_compared(new_project: Callable[[Path], Path], tmp_path: Path, edit_params: Call) -> None:
    root, warned = new_project(tmp_path / "project"), list[str]()
    ingest(Params.load(root=root), root, warned.append)
    table = pd.read_csv(root / "data/raw/hourly.csv")
    table.assign(y=table["y"] + 1).to_csv(root / "data/raw/other.csv", index=False)
    edit_params(root, {"data.path": "data/raw/other.csv"})
    ingest(Params.load(root=root), root, warned.append)
    assert warned == []
