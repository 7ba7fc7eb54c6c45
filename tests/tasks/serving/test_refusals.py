"""Bad requests get a 4xx and the place of the fault; none stops the service, and none is a 500."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tasks.errors import UserError
from tasks.serving.crew import Crew

JSON = {"content-type": "application/json"}
HOURS = ["2024-01-01T00:00:00", "2024-01-01T01:00:00", "2024-01-01T02:00:00"]
GOOD: dict[str, Any] = {"unique_id": "x", "ds": HOURS, "y": [1.0, 2.0, 3.0]}


def refused(client: TestClient, content: bytes, status: int, place: list[Any], sentence: str) -> None:
    answer = client.post("/v1/forecast", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == place
    assert sentence in problem["msg"]


@pytest.mark.parametrize(
    ("content", "status", "place", "sentence"),
    [
        (b"", 400, ["body"], "must be JSON"),
        (b"{", 400, ["body"], "must be JSON"),
        (b'{"ids": ["\xff"]}', 400, ["body"], "must be JSON"),
        (b"[" * 100_000, 400, ["body"], "must be JSON"),
        (b"[]", 422, ["body"], "object"),
        (b"null", 422, ["body"], "object"),
        (b"{}", 422, ["body"], "give either ids"),
        (b'{"ids": []}', 422, ["body", "ids"], "at least 1"),
        (b'{"ids": ["nobody"]}', 404, ["body", "ids", 0], "no such series among its 7"),
        (b'{"ids": ["a", "a"]}', 422, ["body", "ids", 1], "comes twice"),
        (b'{"ids": [7]}', 422, ["body", "ids", 0], "string"),
        (b'{"ids": ["a"], "horizon": 3}', 422, ["body", "horizon"], "not permitted"),
        (b'{"ids": ["a"], "columns": ["lo-99"]}', 422, ["body", "columns", 0], "no column 'lo-99'; it has mean, median"),
    ],
)
def test_bodies_that_are_no_request(client: TestClient, content: bytes, status: int, place: list[Any], sentence: str) -> None:
    refused(client, content, status, place, sentence)


@pytest.mark.parametrize(
    ("change", "place", "sentence"),
    [
        ({"y": [1.0, 2.0]}, ["y"], "2 values for 3 times"),
        ({"y": [1.0, "2", 3.0]}, ["y", 1], "number"),
        ({"y": [1.0, True, 3.0]}, ["y", 1], "number"),
        ({"y": [1.0, 1e31, 3.0]}, ["y", 1], "less than or equal"),
        ({"y": [None, None, None]}, ["y"], "0 values; a forecast needs at least 2"),
        ({"y": [1.0, None, 3.0]}, ["ds", 1], "is empty inside its series"),
        ({"ds": [HOURS[0], HOURS[0], HOURS[1]]}, ["ds", 1], "repeats unique_id 'x' at 2024-01-01"),
        ({"ds": ["soon", HOURS[1], HOURS[2]]}, ["ds", 0], "not a date"),
        ({"ds": [HOURS[0], HOURS[1], "2024-13-01T00:00:00"]}, ["ds", 2], "not a date"),
        ({"ds": [1, 2, 3]}, ["ds", 0], "dates as text"),
        ({"ds": ["2924-01-01T00:00:00"] * 3}, ["ds", 0], ""),
        ({"ds": ["2204-01-01T00:00:00", "2204-01-01T01:00:00", "2204-01-01T02:00:00"]}, ["ds", 0], "has not come yet"),
        ({"ds": [HOURS[0], HOURS[1], "2024-01-01T02:30:00"]}, ["ds", 2], "off the grid of data.frequency h"),
        ({"unique_id": " "}, ["unique_id"], "pattern"),
        ({"unique_id": None}, ["unique_id"], "string"),
        ({"covariates": {"rain": [1.0, 2.0, 3.0]}}, ["covariates", "rain"], "it has none"),
        ({"static": {"region": "north"}}, ["static", "region"], "it has none"),
        ({"ds": HOURS[:1], "y": [1.0]}, ["y"], "1 value; a forecast needs at least 2"),
    ],
)
def test_series_that_cannot_be_forecast(client: TestClient, change: dict[str, Any], place: list[Any], sentence: str) -> None:
    content = json.dumps({"series": [GOOD | {"unique_id": "fine"}, GOOD | change]}).encode()
    refused(client, content, 422, ["body", "series", 1, *place], sentence)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none(client: TestClient, number: str) -> None:
    content = json.dumps({"series": [GOOD]}).replace("2.0", number).encode()
    refused(client, content, 422, ["body", "series", 0, "y", 1], "finite")


def test_what_is_refused_does_not_spoil_what_is_asked_with_it(client: TestClient) -> None:
    good, bad = json.dumps({"series": [GOOD]}), json.dumps({"series": [GOOD | {"y": [1.0, None, 3.0]}]})
    with ThreadPoolExecutor(12) as pool:
        asked = [bad if number % 3 else good for number in range(24)]
        codes = list(pool.map(lambda content: client.post("/v1/forecast", content=content, headers=JSON).status_code, asked))
    assert codes == [422 if number % 3 else 200 for number in range(24)]


def test_limits(project: Path, start: Callable[..., Any]) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 1000

    limits = {"series": 2, "steps": 5, "body_megabytes": 0.02}
    with start(project, limits) as (_, client, _):
        refused(client, b'{"ids": ["a", "b", "c"]}', 422, ["body", "ids"], "3 series are asked for; the most is 2")
        longer = {"unique_id": "x", "ds": HOURS * 2, "y": [1.0] * 6}
        refused(client, json.dumps({"series": [longer]}).encode(), 422, ["body", "series", 0, "ds"], "6 steps; the most is 5")
        refused(client, b" " * 20_001, 413, ["body"], "more than 0.02 MB")
        refused(client, stream(), 413, ["body"], "more than 0.02 MB")  # type: ignore[arg-type]
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = client.post("/v1/forecast", content=b'{"ids": ["a"]}', headers={"content-type": kind})
            assert answer.status_code == 415
        assert client.post("/v1/forecast", json={"ids": ["a"]}, headers={"host": "evil.example"}).status_code == 400
        assert client.get("/v1/forecast").status_code == 405
        assert client.get("/nothing").json() == {"detail": [{"loc": [], "msg": "Not Found"}]}
        assert client.post("/v1/forecast", json={"ids": ["a"]}).status_code == 200


def test_too_many_that_wait_are_told_to_come_again(project: Path, start: Callable[..., Any]) -> None:
    with start(project, {"waiting": 2, "batch": 1, "workers": 1}) as (service, client, _), ThreadPoolExecutor(10) as pool:
        (worker,) = service.watch.current.crew.idle
        worker.process.suspend()
        asked = [pool.submit(client.post, "/v1/forecast", json={"series": [GOOD]}) for _ in range(10)]
        away = [done.result() for _, done in zip(range(7), as_completed(asked, timeout=60), strict=False)]
        worker.process.resume()
        codes = [each.result().status_code for each in asked]
    assert codes.count(200) == 3 and codes.count(503) == 7, "one is at work and two wait"
    assert all(each.headers["retry-after"] == "1" and "serving.waiting" in each.json()["detail"][0]["msg"] for each in away)


def test_a_defect_is_told_and_the_service_goes_on(
    project: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(project) as (_, client, log):
        with monkeypatch.context() as patch:
            patch.setattr(Crew, "forecast", lambda *_: 1 / 0)
            assert client.post("/v1/forecast", json={"series": [GOOD]}).status_code == 500
        assert any("ZeroDivisionError" in line for line in log)
        assert client.post("/v1/forecast", json={"series": [GOOD]}).status_code == 200


def test_keys(project: Path, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the planners\nfirst-key\n\nsecond-key\n")
    monkeypatch.setenv("WEATHERGLASS_API_KEYS_FILE", str(path))
    with start(project) as (_, client, log):
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic first-key"},
            {"authorization": "Bearer"},
        ):
            answer = client.post("/v1/forecast", json={"ids": ["a"]}, headers=header)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/v1/model", headers=header).status_code == 401
        for key in ("first-key", "second-key"):
            answer = client.post("/v1/forecast", json={"ids": ["a"]}, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert "key" not in "".join(log)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds none; write one a line"), start(project):
        pass
    monkeypatch.setenv("WEATHERGLASS_API_KEYS_FILE", str(tmp_path / "no"))
    with pytest.raises(UserError, match="cannot be read: No such file or directory"), start(project):
        pass
