"""A champion's processes share its weights, are replaced when they are lost, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks.bundle import FORECAST_COLUMNS
from tasks.serving.processes import Nursery, Process

Body = Callable[..., dict[str, Any]]
NUMBERS = [name for name in FORECAST_COLUMNS if name not in ("unique_id", "ds", "cutoff", "is_ood", "abstain", "model")]
GOOD = {"unique_id": "x", "ds": ["2024-01-01T00:00:00", "2024-01-01T01:00:00", "2024-01-01T02:00:00"], "y": [1.0, 2.0, 3.0]}
SECONDS = 20.0


def until(holds: Callable[[], Any]) -> None:
    """Return once something holds; fails where it does not in time."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(client: Any, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")))


def processes(service: Any) -> list[Process]:
    crew = service.watch.current.crew
    return [*crew.idle, *crew.busy, crew.leader]


@pytest.fixture
def two(project: Path, start: Callable[..., Any]) -> Iterator[tuple[Any, Any, list[str]]]:
    """A service with two workers, its client and its log."""
    with start(project, {"workers": 2}) as running:
        yield running


def test_what_forks_has_one_thread_and_what_forecasts_has_one(two: Any, first: Nursery) -> None:
    service, client, _ = two
    assert client.post("/v1/forecast", json={"series": [GOOD]}).status_code == 200
    for process in (first, *processes(service)):
        assert process.process.num_threads() == 1


def test_workers_share_the_series_of_a_request(project: Path, start: Callable[..., Any], two: Any, body: Body) -> None:
    """Two workers say what one says, of each series in its place, and refuse the same row."""
    series = [body("abc"[number % 3], 100 + number) | {"unique_id": f"s{number}"} for number in range(30)]
    hole = [None if place == 7 else value for place, value in enumerate(series[20]["y"])]
    bad = [*series[:20], series[20] | {"y": hole}, *series[21:]]
    answers = []
    with start(project, {"workers": 1}) as one:
        for service, client, _ in (one, two):
            before = metric(client, "weatherglass_batch_series_count")
            answers.append([client.post("/v1/forecast", json={"series": each}).json() for each in (series, bad)])
            taken = metric(client, "weatherglass_batch_series_count") - before
            assert taken == 2 * len(service.watch.current.crew.idle)
    (alone, refused), (shared, refused_too) = answers
    assert [each["unique_id"] for each in shared["forecasts"]] == [each["unique_id"] for each in series]
    for expected, found in zip(alone["forecasts"], shared["forecasts"], strict=True):
        for name in NUMBERS:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert refused == refused_too
    (detail,) = refused["detail"]
    assert detail["loc"] == ["body", "series", 20, "ds", 7] and "row 8 " in detail["msg"]


def test_a_batch_whose_worker_is_killed_is_answered_by_another(project: Path, start: Callable[..., Any]) -> None:
    with start(project, {"workers": 1}) as (service, client, log), ThreadPoolExecutor(1) as pool:
        expected = client.post("/v1/forecast", json={"series": [GOOD]}).json()
        crew = service.watch.current.crew
        (worker,) = crew.idle
        worker.process.suspend()
        asked = pool.submit(client.post, "/v1/forecast", json={"series": [GOOD]})
        until(lambda: crew.busy)
        worker.process.kill()
        assert asked.result(SECONDS).json() == expected
        assert metric(client, "weatherglass_worker_restarts_total") == 1
        assert log[-1] == "a process that forecasts has ended; another takes its place"


def test_workers_that_are_killed_while_idle_are_replaced_before_anybody_asks(two: Any) -> None:
    service, client, _ = two
    crew = service.watch.current.crew
    killed = [worker.process for worker in crew.idle]
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, SECONDS)
    until(lambda: metric(client, "weatherglass_worker_restarts_total") == 2)
    assert client.get("/readyz").status_code == 200 and metric(client, "weatherglass_workers") == 2
    assert client.post("/v1/forecast", json={"series": [GOOD]}).status_code == 200


def test_a_batch_that_takes_too_long_is_given_up(project: Path, start: Callable[..., Any]) -> None:
    """Its worker is replaced, and by then it is tried again."""
    with start(project, {"workers": 1, "forecast_seconds": 0.5}) as (service, client, log):
        (worker,) = service.watch.current.crew.idle
        worker.process.suspend()
        assert client.post("/v1/forecast", json={"series": [GOOD]}).status_code == 200
        assert any("took more than 0.5 s and was ended" in line for line in log)


def test_a_champion_that_nothing_can_be_forked_from_is_loaded_again(two: Any) -> None:
    service, client, _ = two
    before = service.watch.current.crew
    before.leader.process.kill()
    psutil.wait_procs([before.leader.process], SECONDS)
    for worker in before.idle:
        worker.process.kill()
    until(lambda: service.watch.current.crew is not before)
    answer = client.post("/v1/forecast", json={"series": [GOOD]})
    assert answer.status_code == 200 and client.get("/readyz").status_code == 200


def test_the_end_leaves_no_process(project: Path, start: Callable[..., Any], first: Nursery) -> None:
    """Not even those at work: what they were at is answered with 503."""
    with start(project, {"workers": 2}) as (service, client, _), ThreadPoolExecutor(1) as pool:
        there = [each.process for each in processes(service)]
        for process in there:
            process.suspend()
        asked = pool.submit(client.post, "/v1/forecast", json={"series": [GOOD]})
        until(lambda: service.watch.current.crew.busy)
        there[-1].resume()  # the leader
        client.portal.call(service.batcher.stop)
        assert asked.result(SECONDS).status_code == 503
    assert not psutil.wait_procs(there, SECONDS)[1]
    assert first.waits
