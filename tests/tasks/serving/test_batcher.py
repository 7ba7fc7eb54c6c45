"""What is put together, what is divided, and what becomes of a batch whose worker is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tasks.params_serving import Serving
from tasks.serving.batcher import Batcher
from tasks.serving.bodies import Refusal
from tasks.serving.gauges import Gauges
from tasks.serving.processes import Failed, Lost


class Worker:
    waits = True


class Crew:
    """Workers that do what ``work`` does; a lost one is replaced as long as there are ``spare`` ones."""

    def __init__(self, work: Callable[..., Any], workers: int = 1, invariant: bool = True, spare: int = 9) -> None:
        self.work, self.spare, self.broken = work, spare, False
        self.idle = deque(Worker() for _ in range(workers))
        self.busy, self.coming = set[Any](), 0
        self.contract = SimpleNamespace(batch_invariant=invariant)

    @property
    def deserted(self) -> bool:
        return self.broken and not self.idle and not self.busy and not self.coming

    def forecast(self, worker: Any, requests: list[Any], seconds: float) -> Any:
        return self.work(self, worker, requests)

    def replaced(self, worker: Any) -> Any:
        if not self.spare:
            self.broken = True
            return None
        self.spare -= 1
        return Worker()


def champion(crew: Crew) -> Any:
    return SimpleNamespace(crew=crew, contract=crew.contract)


def request(size: int, name: str = "s") -> list[Any]:
    return [((index,), {"ds": [], "unique_id": f"{name}{index}"}) for index in range(size)]


def answered(crew: Crew, worker: Any, requests: list[Any]) -> list[Any]:
    return [[{"of": rows["unique_id"], "by": crew} for _, rows in each] for each in requests]


class Gate:
    """Work that waits to be let through, and notes the sizes of what it was given."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.seen = threading.Event(), threading.Event(), list[list[int]]()

    def __call__(self, crew: Crew, worker: Any, requests: list[Any]) -> Any:
        self.seen.append([len(each) for each in requests])
        self.begun.set()
        assert self.go_on.wait(10)
        return answered(crew, worker, requests)


def batches(gate: Gate, most: int, asked: list[tuple[Any, int]]) -> list[list[int]]:
    """Sizes of the requests of each batch, all asked for while the first is computed."""

    async def run() -> None:
        work = Batcher(Serving(batch=most), Gauges(print), lambda: None)
        work.start()
        calls = [asyncio.ensure_future(work.forecast(who, request(size))) for who, size in asked[:1]]
        await asyncio.to_thread(gate.begun.wait)
        calls += [asyncio.ensure_future(work.forecast(who, request(size))) for who, size in asked[1:]]
        await asyncio.sleep(0)
        gate.go_on.set()
        for (who, size), answers in zip(asked, await asyncio.gather(*calls), strict=True):
            assert [each["of"] for each in answers] == [f"s{index}" for index in range(size)]
            assert all(each["by"] is who.crew for each in answers)
        work.stop()
        work.join()

    asyncio.run(run())
    return gate.seen


def test_what_waits_is_forecast_together_up_to_the_most() -> None:
    gate = Gate()
    one = champion(Crew(gate))
    assert batches(gate, 6, [(one, 1), (one, 1), (one, 2), (one, 3), (one, 2), (one, 1)]) == [[1], [1, 2, 3], [2, 1]]


def test_a_request_of_more_than_the_most_is_divided() -> None:
    gate = Gate()
    one = champion(Crew(gate))
    assert batches(gate, 6, [(one, 1), (one, 14), (one, 3)]) == [[1], [6], [6], [2, 3]]


def test_champions_are_kept_apart_and_so_is_what_company_would_change() -> None:
    gate = Gate()
    one, other, sampling = (champion(Crew(gate, invariant=invariant)) for invariant in (True, True, False))
    asked = [(one, 1), (one, 1), (one, 1), (other, 1), (sampling, 20), (sampling, 1)]
    assert sorted(batches(gate, 6, asked)) == [[1], [1], [1], [1, 1], [20]]


def test_idle_workers_share_what_is_waiting() -> None:
    """A request of many series that comes alone is divided among them, a small one is not."""

    def sizes(count: int) -> list[int]:
        seen, both = list[int](), threading.Barrier(2 if count > 8 else 1)

        def work(crew: Crew, worker: Any, requests: list[Any]) -> Any:
            seen.extend(len(each) for each in requests)
            both.wait(10)  # the two are at work at once
            return answered(crew, worker, requests)

        async def run() -> list[Any]:
            batcher = Batcher(Serving(), Gauges(print), lambda: None)
            batcher.start()
            answers = await batcher.forecast(champion(Crew(work, workers=2)), request(count))
            batcher.stop()
            return [each["of"] for each in answers]

        assert asyncio.run(run()) == [f"s{index}" for index in range(count)]
        return sorted(seen)

    assert sizes(8) == [8]
    assert sizes(41) == [20, 21]


def results(crew: Crew, *requests: list[Any]) -> tuple[list[Any], list[str], int]:
    """What requests get that are asked at once, what is told, and how often the crew is said to be broken."""
    told, broken = list[str](), list[int]()

    async def run() -> list[Any]:
        batcher = Batcher(Serving(), Gauges(told.append), lambda: broken.append(1))
        batcher.start()
        one = champion(crew)
        calls = [batcher.forecast(one, each) for each in requests]
        got = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        batcher.stop()
        return got

    return asyncio.run(run()), told, len(broken)


def test_a_batch_whose_worker_is_lost_is_tried_again_each_request_by_itself() -> None:
    seen = list[list[str]]()

    def work(crew: Crew, worker: Any, requests: list[Any]) -> Any:
        seen.append([rows["unique_id"] for each in requests for _, rows in each])
        if any(name.startswith("bad") for name in seen[-1]):
            raise Lost("has ended")
        return answered(crew, worker, requests)

    (good, bad, other), told, broken = results(Crew(work), request(1, "good"), request(1, "bad"), request(1, "other"))
    assert seen == [["good0", "bad0", "other0"], ["good0"], ["bad0"], ["other0"]]
    assert [good[0]["of"], other[0]["of"]] == ["good0", "other0"]
    assert isinstance(bad, Refusal) and bad.status == 503 and "so did the one that tried it again" in bad.sentence
    assert told == ["a process that forecasts has ended; another takes its place"] * 2 and broken == 0


def test_where_no_worker_can_be_had_requests_are_told_so() -> None:
    def work(crew: Crew, worker: Any, requests: list[Any]) -> Any:
        raise Lost("has ended")

    got, _, broken = results(Crew(work, spare=0), request(1), request(2))
    assert all(isinstance(each, Refusal) and each.status == 503 and "no process forecasts" in each.sentence for each in got)
    assert broken == 1


def test_the_first_refusal_of_a_divided_request_is_its_own() -> None:
    def work(crew: Crew, worker: Any, requests: list[Any]) -> Any:
        return [Refusal(422, each[0][0], f"from {each[0][0][0]}") for each in requests]

    (refusal,), _, _ = results(Crew(work, workers=2), request(40))
    assert (refusal.place, refusal.sentence) == ((0,), "from 0")


def test_a_defect_is_told_and_the_worker_goes_on() -> None:
    def work(crew: Crew, worker: Any, requests: list[Any]) -> Any:
        if len(requests[0]) == 2:
            raise Failed("ZeroDivisionError: division by zero")
        return answered(crew, worker, requests)

    crew = Crew(work, invariant=False)
    (bad, good), told, _ = results(crew, request(2), request(1))
    assert bad.status == 500 and good[0]["of"] == "s0"
    assert told == ["a forecast failed: ZeroDivisionError: division by zero"]


def test_what_waits_at_the_end_is_told_so() -> None:
    async def run() -> list[Any]:
        work = Batcher(Serving(), Gauges(print), lambda: None)  # never started: nothing is computed
        crew = Crew(answered)
        calls = [asyncio.ensure_future(work.forecast(champion(crew), request(1))) for _ in range(2)]
        await asyncio.sleep(0)
        work.stop()
        return await asyncio.gather(*calls, return_exceptions=True)

    for told in asyncio.run(run()):
        assert isinstance(told, Refusal) and told.status == 503


def test_a_refusal_goes_through_a_connection() -> None:
    import pickle

    refusal = pickle.loads(pickle.dumps(Refusal(422, ("body", "series", 3), "why")))
    assert (refusal.status, refusal.place, refusal.sentence) == (422, ("body", "series", 3), "why")
