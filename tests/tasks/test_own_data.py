"""The examples of docs/your-own-data.md: tables as the package has them become panels, and params.yaml names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from examples import own_data
from tasks.params import Params

ROOT = Path(__file__).parents[2]
PACKAGED = {
    "tourism": pd.DataFrame(
        {"Quarter": ["1998 Q1", "1998 Q2"], "Region": "Adelaide", "State": "SA", "Purpose": "Business", "Trips": [1.5, 2.5]}
    ),
    "ansett": pd.DataFrame(
        {"Week": ["1989 W01", "1989 W52"], "Airports": "ADL-PER", "Class": "First", "Passengers": [193, 254]}
    ),
}  # fmt: skip
TIMES = {"tourism": ["1998-01-01", "1998-04-01"], "ansett": ["1989-01-02", "1989-12-25"]}  # ISO weeks begin on Mondays


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_a_table_is_written_and_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.setattr(own_data, "read", PACKAGED.__getitem__)
    path = own_data.write(name, tmp_path)
    params = Params.load(root=tmp_path)
    table = pd.read_csv(path)
    assert table[params.data.time_column].tolist() == TIMES[name]
    assert {params.data.id_column, params.data.target_column, *params.data.static} <= set(table.columns)
    assert params.train == Params.load(root=ROOT).train  # other blocks are as they were
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    assert text.count("\ndata:\n") == 1 and "\nfolds:" in text
