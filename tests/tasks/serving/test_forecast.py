"""What the service answers is what `weatherglass forecast` says, alone or in company."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from tasks.bundle import FORECAST_COLUMNS
from tasks.forecast import forecast_table

Body = Callable[..., dict[str, Any]]
NUMBERS = [name for name in FORECAST_COLUMNS if name not in ("unique_id", "ds", "cutoff", "is_ood", "abstain", "model")]
OF_A_WINDOW = ("ood_score", "ood_pvalue")


@pytest.fixture(scope="module")
def table(project: Path) -> pd.DataFrame:
    return forecast_table(project, "weatherglass", "champion")[0]


def forecasts(client: TestClient, path: str = "/v1/forecast", **body: Any) -> list[dict[str, Any]]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == {"name": "weatherglass", "version": "1"}
    return list(answer.json()["forecasts"])


def same(forecast: dict[str, Any], rows: pd.DataFrame, rtol: float) -> None:
    """Compare a forecast with a series' rows of a table."""
    assert forecast["ds"] == rows["ds"].dt.strftime("%Y-%m-%dT%H:%M:%S").tolist()
    assert pd.Timestamp(forecast["cutoff"]) == rows["cutoff"].iloc[0]
    for name in ("is_ood", "abstain"):
        assert forecast[name] is bool(rows[name].iloc[0])
    for name in NUMBERS:
        expected = rows[name].iloc[0] if name in OF_A_WINDOW else rows[name].to_numpy()
        np.testing.assert_allclose(forecast[name], expected, rtol=rtol, atol=0.0 if rtol == 0.0 else 1e-6, err_msg=name)


def test_series_of_the_panel_are_forecast_as_the_command_does(client: TestClient, table: pd.DataFrame) -> None:
    names = ["c", "a", "short"]
    answers = forecasts(client, ids=names)
    assert [each["unique_id"] for each in answers] == names
    for name, answer in zip(names, answers, strict=True):
        same(answer, table[table["unique_id"] == name], rtol=0.0)


def test_a_history_is_forecast_as_the_panels(client: TestClient, table: pd.DataFrame, body: Body) -> None:
    for name in ("a", "short"):
        (answer,) = forecasts(client, series=[body(name)])
        same(answer, table[table["unique_id"] == name], rtol=1e-5)


def test_requests_that_are_forecast_together_do_not_mix(project: Path, start: Callable[..., Any], body: Body) -> None:
    """One name with several histories, all at once: each gets its own forecast."""
    asked = [[body("a", steps)] for steps in (400, 401, 402)] + [[body("b", 300), body("a", 300)], [body("a", 300)]]
    with start(project) as (_, client, _):
        alone = [forecasts(client, series=series) for series in asked]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda series: forecasts(client, series=series), asked * 6))
        text = client.get("/metrics").text
    for number, answers in enumerate(together):
        for got, expected in zip(answers, alone[number % len(asked)], strict=True):
            assert got["unique_id"] == expected["unique_id"]
            for name in NUMBERS:
                np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    count, series = float(lines["weatherglass_batch_series_count"]), float(lines["weatherglass_batch_series_sum"])
    assert series == 42 and count < 35, "some were forecast together"
    assert float(lines["weatherglass_forecasts_total"]) == 42
    assert float(lines['weatherglass_requests_total{code="200",route="/v1/forecast"}']) == 35


def test_columns_may_be_chosen(client: TestClient) -> None:
    (answer,) = forecasts(client, ids=["a"], columns=["median", "hi-90"])
    assert list(answer) == ["unique_id", "cutoff", "ds", "is_ood", "abstain", "median", "hi-90"]


def test_the_model_tells_its_guarantee(client: TestClient, project: Path) -> None:
    about = client.get("/v1/model").json()
    assert (about["name"], about["version"], about["horizon"], about["frequency"]) == ("weatherglass", "1", 6, "h")
    assert about["families"] == ["mamba", "tcn"] and about["members"] == 4 and about["ids"] == 7
    assert about["guarantee"]["assumption"]


def test_observations_move_a_series_on(client: TestClient, body: Body) -> None:
    """Pushed row by row, a series is forecast as from its whole history; the panel's series begin with the panel's rows."""
    whole = body("b", 200)
    first = {key: value[:197] if isinstance(value, list) else value for key, value in whole.items()}
    begun = forecasts(client, "/v1/observations", **first | {"unique_id": "new", "restart": True})
    (expected,) = forecasts(client, series=[first | {"unique_id": "new"}])
    np.testing.assert_allclose(begun[0]["median"], expected["median"], rtol=1e-5)
    for step in (197, 198, 199):
        row = {"unique_id": "new", "ds": whole["ds"][step : step + 1], "y": whole["y"][step : step + 1]}
        (moved,) = forecasts(client, "/v1/observations", **row)
        assert moved["cutoff"] == whole["ds"][step]
    (expected,) = forecasts(client, series=[whole | {"unique_id": "new"}])
    for name in NUMBERS:
        np.testing.assert_allclose(moved[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    (known,) = forecasts(client, "/v1/observations", unique_id="a", ds=["2024-03-02T00:00:00"], y=[20.0])
    assert known["cutoff"] == "2024-03-02T00:00:00"


def test_observations_that_do_not_follow_leave_the_series_as_it_was(client: TestClient) -> None:
    row = {"unique_id": "d", "ds": ["2024-03-02T00:00:00"], "y": [80.0]}
    for change, place, sentence in (
        ({"ds": ["2024-03-01T23:00:00"]}, ["body", "ds", 0], "known up to 2024-03-01 23:00:00 already"),
        ({"ds": ["2024-03-02T05:00:00"]}, ["body"], "is missing; set data.gaps"),
    ):
        answer = client.post("/v1/observations", json=row | change)
        assert answer.status_code == 422
        (problem,) = answer.json()["detail"]
        assert problem["loc"] == place and sentence in problem["msg"]
    (after,) = forecasts(client, "/v1/observations", **row)
    assert after["cutoff"] == "2024-03-02T00:00:00"
    assert client.post("/v1/observations", json=row).status_code == 422, "and now it is known"
