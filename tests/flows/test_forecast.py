"""`weatherglass forecast` tells a table that comes in parts as it tells it whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from flows import environment
from flows.forecast import run_forecast


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Three series of two steps, which a champion that is none forecasts in two parts."""
    import tasks.forecast
    import tasks.tracking_store

    times = pd.to_datetime(["2024-01-01", "2024-01-02"] * 3)
    whole = pd.DataFrame({"unique_id": [*"aabbcc"], "ds": times, "median": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]})
    whole["is_ood"], whole["abstain"] = [True, True, False, False, True, True], [False, False, False, False, True, True]
    bundle = SimpleNamespace(name="tiny version 1", encoding=SimpleNamespace(schema=SimpleNamespace(horizon=2)))
    parts = [whole.iloc[:4], whole.iloc[4:].reset_index(drop=True)]
    params = SimpleNamespace(runner="local", registry=SimpleNamespace(name="tiny"), monitor=SimpleNamespace(adaptive="aci"))
    monkeypatch.setattr(environment, "opened", lambda root: (root, params))
    monkeypatch.setattr(tasks.tracking_store, "initialise", lambda: None)
    monkeypatch.setattr(tasks.forecast, "forecast_tables", lambda *given: (iter(parts), bundle))
    return whole


def run(root: Path, output: Path | None, as_json: bool) -> int:
    return run_forecast(root, output, None, None, "champion", as_json)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_has_all_parts_and_the_counts_are_of_all(
    whole: pd.DataFrame, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"forecast.{ending}"
    assert run(tmp_path, path, as_json=False) == 0
    read: Any = pd.read_parquet if ending == "parquet" else pd.read_csv
    pd.testing.assert_frame_equal(read(path).astype({"ds": whole["ds"].dtype}), whole)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.strip() == (
        f"tiny version 1: 3 series x 2 steps to {path}; 2 flagged as out of distribution, 1 to abstain from"
    )


def test_json_is_one_list(whole: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, None, as_json=True) == 0
    told = capsys.readouterr().out
    assert told == whole.to_json(orient="records", date_format="iso") and len(json.loads(told)) == 6


def test_without_a_file_the_first_series_is_shown(
    whole: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, None, as_json=False) == 0
    assert capsys.readouterr().out.rstrip("\n") == whole.head(2).to_string(index=False)
