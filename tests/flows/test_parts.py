"""Parts on workers: taken in order, few at a time, tried again where a worker fails, and a runner that is not there is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import pytest
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows import runners
from flows.parts import AHEAD, run_in_order
from tasks.errors import UserError
from tasks.forecast_parts import Champion, PartSpec
from tasks.params import Params

WORKERS, PARTS = 2, 9


class Threads(ThreadPoolTaskRunner):
    """Threads that are sent what a cluster's workers are sent."""

    def submit(self, *given: Any, **options: Any) -> Any:
        context = FlowRunContext.get()
        assert context is not None
        cloudpickle.loads(cloudpickle.dumps(context.flow))
        return super().submit(*given, **options)


@pytest.fixture(autouse=True)
def two_threads(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads in place of a cluster's workers."""
    monkeypatch.setattr(runners, "task_runner", lambda params, parts: Threads(max_workers=WORKERS))
    monkeypatch.setattr(runners, "RETRY_SECONDS", [0.0, 0.0])
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield


def work(folder: Path, on_worker: Callable[[PartSpec], None]) -> tuple[list[int], int]:
    """Numbers of the parts in the order in which they were taken, and how many were there at a time."""
    champion, taken, most = Champion(folder, "tiny", "1", "", None), list[int](), [0]

    def specs() -> Iterator[PartSpec]:
        for number in range(PARTS):
            most[0] = max(most[0], number + 1 - len(taken))
            yield PartSpec(champion, number, 0)

    params = Params.model_validate({"runner": "dask", "train": {"workers": WORKERS}})
    run_in_order("parts", params, specs(), on_worker, lambda spec: taken.append(spec.number), WORKERS)
    return taken, most[0]


def test_tables_come_in_order_and_few_parts_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[int]()

    def on_worker(spec: PartSpec) -> None:
        time.sleep(0.3 if spec.number == 0 else 0.0)
        ended.append(spec.number)

    taken, most = work(tmp_path, on_worker)
    assert taken == list(range(PARTS))
    assert ended != taken, "the first one ended after others"
    assert most <= AHEAD * WORKERS


def test_a_part_is_tried_again_where_a_worker_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [0] * PARTS

    def on_worker(spec: PartSpec) -> None:
        tries[spec.number] += 1
        if spec.number == 4 and tries[4] < 3:
            raise OSError("stale file handle")

    assert work(tmp_path, on_worker)[0] == list(range(PARTS))
    assert tries == [3 if number == 4 else 1 for number in range(PARTS)]


@pytest.mark.parametrize(("error", "tries"), [(UserError("series a has 1 value"), 1), (OSError("no space"), 3)])
def test_a_mistake_is_told_at_once_and_a_failure_after_three_tries(
    error: Exception, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()

    def on_worker(spec: PartSpec) -> None:
        if spec.number == 1:
            seen.append(spec.number)
            raise error

    told = "^series a has 1 value$" if isinstance(error, UserError) else "^part_1: OSError: no space$"
    with pytest.raises(UserError if isinstance(error, UserError) else RuntimeError, match=told):
        work(tmp_path, on_worker)
    assert len(seen) == tries


def test_a_cluster_that_does_not_answer_is_told_before_any_work(
    weatherglass: Callable[..., NamedTuple],
    new_project: Callable[[Path], Path],
    edit_params: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda name: object())
    root = new_project(tmp_path / "project")
    edit_params(root, {"runner": "ray", "runner_address": "127.0.0.1:1"})
    told = (
        "runner_address is 127.0.0.1:1, where no ray cluster answers (Connection refused): start it, or set runner_address: "
        "null for one on this machine."
    )
    code, out, error = weatherglass(root, "forecast")
    assert (code, out) == (2, "") and error.endswith(f"{told}\n")
