"""A large forecast made by several processes is that of one, also where one of them dies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

from flows.spread import on_processes, spread_of
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.forecast import forecast_panel
from tasks.params import Params
from tasks.parts import Packed, Spread, in_order

ROWS = 9_000


@pytest.fixture(scope="module")
def bundle(packed: Packed) -> Bundle:
    return packed.bundle()


def test_processes_together_make_the_table_of_one(bundle: Bundle, packed: Packed, many_series: Path) -> None:
    alone = list(forecast_panel(bundle, many_series, rows=ROWS))
    spread = spread_of(Params.model_validate({}), 2)
    assert len(alone) > 2 and spread is not None
    together = list(forecast_panel(bundle, many_series, rows=ROWS, spread=lambda: spread(packed)))
    assert len(together) == len(alone)
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=0)


def test_a_mistake_in_the_data_is_told_as_by_one_process(
    bundle: Bundle, packed: Packed, many_series: Path, tmp_path: Path
) -> None:
    frame = pd.read_parquet(many_series)
    last = frame["unique_id"].iloc[-1]
    keep = (frame["unique_id"] != last) | (frame["unique_id"].shift(-1) != last)
    frame[keep].to_parquet(tmp_path / "short.parquet", index=False, row_group_size=10_000)
    with pytest.raises(UserError, match=f"series {last} has 1 value"):
        list(forecast_panel(bundle, tmp_path / "short.parquet", rows=ROWS, spread=lambda: on_processes(packed, 2)))


def test_parts_of_a_process_that_is_killed_are_made_here(bundle: Bundle, packed: Packed, many_series: Path) -> None:
    alone = list(forecast_panel(bundle, many_series, rows=ROWS))
    children = {child.pid for child in psutil.Process().children()}
    found = []
    for table in forecast_panel(bundle, many_series, rows=ROWS, spread=lambda: on_processes(packed, 1)):
        found.append(table)
        for child in psutil.Process().children():
            if child.pid not in children and "spawn_main" in " ".join(child.cmdline()):
                child.kill()
    for one, other in zip(alone, found, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=0)


def parts(count: int) -> Iterator[tuple[pd.DataFrame, int]]:
    for number in range(count):
        yield pd.DataFrame({"number": [number]}), number


def test_no_more_parts_are_under_way_than_asked_for() -> None:
    under_way: list[int] = []

    def submit(frame: pd.DataFrame, before: int) -> SimpleNamespace:
        under_way.append(before)
        assert len(under_way) <= 3

        def result() -> pd.DataFrame:
            under_way.remove(before)
            return frame

        return SimpleNamespace(result=result)

    found = list(in_order(parts(10), Spread(submit, 3), lambda frame, before: frame))
    assert [int(each["number"].iloc[0]) for each in found] == list(range(10))


@pytest.mark.parametrize("dies", [0, 4, 9])
def test_after_a_process_has_died_the_rest_is_made_here(dies: int) -> None:
    here: list[int] = []

    def broken() -> pd.DataFrame:
        raise BrokenProcessPool

    def submit(frame: pd.DataFrame, before: int) -> SimpleNamespace:
        if before > dies + 1:
            raise BrokenProcessPool
        return SimpleNamespace(result=broken if before >= dies else lambda: frame)

    def again(frame: pd.DataFrame, before: int) -> pd.DataFrame:
        here.append(before)
        return frame

    found = list(in_order(parts(10), Spread(submit, 3), again))
    assert [int(each["number"].iloc[0]) for each in found] == list(range(10))
    assert here == list(range(dies, 10))


def test_one_process_is_this_one() -> None:
    assert spread_of(Params.model_validate({}), 1) is None


def test_a_cluster_whose_packages_are_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"runner is ray, whose packages are not installed: pip install -e '\.\[ray\]'"):
        spread_of(Params.model_validate({"runner": "ray"}), 1)
