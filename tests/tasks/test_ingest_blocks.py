"""A table ingested by blocks of series beside the same table ingested whole: the same bytes, notes and complaints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import ingest_blocks as blocks
from tasks.errors import UserError
from tasks.files import file_md5
from tasks.ingest import ingest, read_table, validate_panel
from tasks.ingested import RowGroups
from tasks.params import Params

Change = Callable[[pd.DataFrame], pd.DataFrame]
ROLES = {"known_future": ["promo"], "past_only": ["rain"], "static": ["kind", "size"]}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LARGE", 100)
    monkeypatch.setattr(RowGroups, "ROWS", 200)


def params_for(**data: Any) -> Params:
    names = {"id_column": "store", "time_column": "day", "target_column": "sales"}
    return Params.model_validate({"data": {"source": "file", "path": "sales.parquet", "horizon": 3, **names, **ROLES, **data}})


def sales(stores: int = 6) -> pd.DataFrame:
    """Stores of 150 days and more, three future rows each, the second without its days 60 to 64."""
    random, parts = np.random.default_rng(1), []
    for number in range(stores):
        steps = 150 + 20 * number
        day = pd.date_range("2020-01-01", periods=steps + 3)
        part = pd.DataFrame({"note": "not used", "day": day, "sales": random.gamma(2, size=steps + 3), "store": f"s{number}"})
        part["promo"], part["rain"] = random.normal(size=(2, steps + 3))
        part["kind"], part["size"] = ["mall", "shop"][number % 2], float(number)
        part.loc[steps:, ["sales", "rain"]] = np.nan
        parts.append(part.drop(index=range(60, 65)) if number == 1 else part)
    return pd.concat(parts, ignore_index=True)


def as_whole(folder: Path, params: Params) -> dict[str, Any]:
    panel, notes = validate_panel(read_table(folder / "sales.parquet", params), params)
    panel.to_parquet(folder / "whole.parquet", index=False, row_group_size=RowGroups.ROWS)
    return notes


@pytest.mark.parametrize("rows", [1, 90, 400, 10_000])
@pytest.mark.parametrize("data", [{"gaps": "interpolate"}, {"gaps": "zero", "until": "2020-05-20"}])
def test_blocks_give_the_bytes_and_notes_of_the_whole_table(tmp_path: Path, rows: int, data: dict[str, Any]) -> None:
    sales().to_parquet(tmp_path / "sales.parquet", index=False, row_group_size=170)
    params = params_for(**data)
    notes = blocks.ingest_blocks(tmp_path / "sales.parquet", params, tmp_path / "blocks.parquet", rows)
    assert notes == as_whole(tmp_path, params) and notes["gaps_filled"] == {"s1": 5}
    assert file_md5(tmp_path / "blocks.parquet") == file_md5(tmp_path / "whole.parquet")


def test_a_series_without_a_target_up_to_the_date_is_dropped_alike(tmp_path: Path) -> None:
    late = sales()
    late.loc[late["store"] == "s3", "day"] += pd.Timedelta(1000, "D")
    late.to_parquet(tmp_path / "sales.parquet", index=False)
    params = params_for(gaps="forward", until="2020-05-20")
    notes = blocks.ingest_blocks(tmp_path / "sales.parquet", params, tmp_path / "blocks.parquet", 400)
    assert notes is not None and notes["dropped_series"] == ["s3"] and notes == as_whole(tmp_path, params)
    assert file_md5(tmp_path / "blocks.parquet") == file_md5(tmp_path / "whole.parquet")
    alone = blocks.ingest_blocks(tmp_path / "sales.parquet", params, tmp_path / "alone.parquet", 100)
    assert alone is None, "a block without any target is left to who sees the whole"


def test_whole_numbers_of_time_are_read_in_blocks_too(tmp_path: Path) -> None:
    frame = sales()
    frame["day"] = (frame["day"] - frame["day"].min()).dt.days
    frame.to_parquet(tmp_path / "sales.parquet", index=False)
    params = params_for(frequency=1, gaps="forward")
    notes = blocks.ingest_blocks(tmp_path / "sales.parquet", params, tmp_path / "blocks.parquet", 300)
    assert notes == as_whole(tmp_path, params)
    assert file_md5(tmp_path / "blocks.parquet") == file_md5(tmp_path / "whole.parquet")


SEEN_WHOLE: dict[str, Change] = {
    "out of order": lambda frame: frame.iloc[::-1],
    "a series in two places": lambda frame: pd.concat([frame.iloc[10:], frame.iloc[:10]]),
    "days as text": lambda frame: frame.assign(day=frame["day"].dt.strftime("%Y-%m-%d")),
    "names as numbers": lambda frame: frame.assign(store=frame["store"].str[1:].astype(int)),
    "targets as whole numbers": lambda frame: frame.assign(sales=frame["sales"].fillna(1).astype(int)),
    "days as the index": lambda frame: frame.set_index("day"),
    "sizes as text that may be numbers": lambda frame: frame.assign(size=["7" if s == "s0" else "big" for s in frame["store"]]),
}


@pytest.mark.parametrize("name", SEEN_WHOLE)
def test_a_table_that_must_be_seen_whole_is_left_to_it(tmp_path: Path, name: str) -> None:
    SEEN_WHOLE[name](sales()).to_parquet(tmp_path / "sales.parquet")
    params = params_for(gaps="forward")
    assert blocks.ingest_blocks(tmp_path / "sales.parquet", params, tmp_path / "blocks.parquet", 100) is None
    assert not (tmp_path / "blocks.parquet").exists()
    folder = ingest(params, tmp_path)
    assert pd.read_parquet(folder / "panel.parquet")["unique_id"].nunique() == 6


FAULTS: dict[str, Change] = {
    "empty inside its series": lambda frame: frame.assign(sales=frame["sales"].where(frame.index != 700)),
    "repeats": lambda frame: pd.concat([frame, frame.iloc[[-1]]]),
    "one value a series": lambda frame: frame.assign(kind=frame["kind"].where(frame.index != 900, "kiosk")),
    "must vary": lambda frame: frame.assign(sales=frame["sales"].where(frame["store"] != "s5", frame["sales"] * 0)),
    "no column 'rain'": lambda frame: frame.drop(columns="rain"),
    "finite": lambda frame: frame.assign(promo=frame["promo"].where(frame.index != 800, np.inf)),
}


@pytest.mark.parametrize("told", FAULTS)
def test_what_is_wrong_is_told_as_by_who_sees_the_whole(tmp_path: Path, told: str) -> None:
    frame = sales()[lambda table: table["store"] != "s1"].reset_index(drop=True)  # which has a gap
    FAULTS[told](frame).to_parquet(tmp_path / "sales.parquet", index=False)
    params = params_for()
    with pytest.raises(UserError, match=told) as by_blocks:
        ingest(params, tmp_path)
    with pytest.raises(UserError) as whole:
        as_whole(tmp_path, params)
    assert str(by_blocks.value) == str(whole.value)
    assert not (tmp_path / "data/ingested").exists()


def test_ingest_takes_the_blocks_and_still_says_that_the_past_was_rewritten(tmp_path: Path) -> None:
    frame = sales()
    frame.to_parquet(tmp_path / "sales.parquet", index=False)
    folder = ingest(params_for(gaps="forward"), tmp_path)
    as_whole(tmp_path, params_for(gaps="forward"))
    assert file_md5(folder / "panel.parquet") == file_md5(tmp_path / "whole.parquet")
    frame.loc[5, "sales"] += 1
    frame.to_parquet(tmp_path / "sales.parquet", index=False)
    said: list[str] = []
    ingest(params_for(gaps="forward"), tmp_path, said.append)
    assert len(said) == 1 and "1 have other values" in said[0]
