"""Times of requests are read at once, and as they would be one by one."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.serving.frames import _iso_times, table_of


@pytest.mark.parametrize(
    "texts",
    [
        ["2016-08-14", "2016-08-15", "2016-02-29"],
        ["2016-08-14T13:00:00", "2016-08-14T14:30:59"],
        ["2016-08-14 13:00:00", "2016-08-14T14:00:00"],
        ["1678-01-01", "2261-12-31"],
    ],
)
def test_times_that_are_all_written_alike(texts: list[str | int]) -> None:
    found = _iso_times(texts)
    assert found is not None and found.dtype == np.dtype("datetime64[ns]")
    assert found.tolist() == [int(np.datetime64(str(text), "ns").astype(np.int64)) for text in texts]


@pytest.mark.parametrize(
    "texts",
    [
        ["2016-08-14", "2016-08-14T13:00:00"],
        ["2016-08-14", 3],
        ["2016-08-14", True],
        [1, 2],
        ["2016-08-1x", "2016-08-15"],
        ["2016-08:14"],
        ["2016-13-14"],
        ["2016-02-30"],
        ["２016-08-14"],
        ["2016/08/14"],
        ["2016-08-14X13:00:00"],
        ["1677-12-31"],
        ["2262-01-01"],
        ["", ""],
        ["+016-08-14", "2016-08-14"],
    ],
)
def test_others_are_left_to_be_read_one_by_one(texts: list[str | int]) -> None:
    assert _iso_times(texts) is None


def test_series_are_put_one_after_the_other() -> None:
    parts = [
        {"unique_id": "a", "ds": np.array([1, 2]), "y": np.array([0.5, np.nan]), "region": "north", "size": 2},
        {"unique_id": "b", "ds": np.array([7]), "y": np.array([1.5]), "region": "south", "size": 2.5},
    ]
    table = table_of(parts)
    assert table["unique_id"].tolist() == ["a", "a", "b"] and table["region"].tolist() == ["north", "north", "south"]
    assert table["ds"].tolist() == [1, 2, 7] and table["size"].tolist() == [2.0, 2.0, 2.5]
    assert table.index.tolist() == [0, 1, 2]
