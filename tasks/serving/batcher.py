"""Requests that are waiting are forecast together, so that a network's fixed cost is shared, by every worker that is idle."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from tasks.params_serving import Serving
from tasks.serving.bodies import Refusal
from tasks.serving.champion import Champion
from tasks.serving.crew import Crew
from tasks.serving.frames import Answer, Request
from tasks.serving.gauges import Gauges
from tasks.serving.processes import Failed, Lost, Process

LEAST_SHARE = 8
"""Series below which a batch is not divided further: a network's fixed cost would be paid twice for little."""
MOST_THREADS = 64  # made as they are needed: one for each worker that is asked
STOPPED = Refusal(503, (), "the service has stopped; ask again")
LOST = Refusal(503, (), "the process that forecast this has ended, and so did the one that tried it again; ask again later")
NOBODY = Refusal(503, (), "no process forecasts at the moment; ask again in some seconds")
FAILED = Refusal(500, (), "the forecast failed; the service's log says why")


@dataclass(eq=False)
class Waiting:
    """A request, the champion that it was checked against, and where its answers go.

    ``results`` has what has come of its parts, by their first series.
    """

    champion: Champion
    request: Request
    answers: asyncio.Future[list[Answer] | Refusal]
    since: float = field(default_factory=perf_counter)
    results: dict[int, list[Answer] | Refusal] = field(default_factory=dict)
    left: int = 0

    def __post_init__(self) -> None:
        self.left = len(self.request)

    def give(self, part: Part, result: list[Answer] | Refusal) -> None:
        """Take the result of a part; the last one ends the waiting, with the first refusal where there is one."""
        self.results[part.start] = result
        self.left -= len(part)
        if self.left or self.answers.done():
            return
        in_order = [self.results[start] for start in sorted(self.results)]
        refusal = next((each for each in in_order if isinstance(each, Refusal)), None)
        self.answers.set_result(refusal or [answer for each in in_order for answer in each])  # type: ignore[union-attr]


@dataclass(frozen=True)
class Part:
    """Series ``[start, stop)`` of a request; ``again`` where the worker that had them is lost."""

    waiting: Waiting
    start: int
    stop: int
    again: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def request(self) -> Request:
        return self.waiting.request[self.start : self.stop]


class Batcher:
    """A queue of requests, from which idle workers get batches.

    While batches are computed the next gathers: under load they grow to ``limits.batch`` series, and a request that comes
    alone waits for nobody. Idle workers share what is waiting, if need be the series of one request. Requests are put
    together, and divided, where their champion is the same and is one whose forecast of a window does not depend on the
    others. What a worker had that is lost is tried once more, each request by itself, so that one that is too much for a
    process takes no other with it. ``broken`` is called where no worker can take a lost one's place.
    """

    def __init__(self, limits: Serving, gauges: Gauges, broken: Callable[[], None]) -> None:
        self.limits, self.gauges, self.broken = limits, gauges, broken
        self.queue: deque[Part] = deque()
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="worker")
        self._task: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    def stop(self) -> None:
        """Give no more work, and 503 to what is in work or waiting still."""
        for task in (self._task, *self._running):
            if task is not None:
                task.cancel()
        self._give(self.queue, [STOPPED] * len(self.queue))
        self.queue.clear()

    def join(self) -> None:
        """Wait for the threads that asked workers; these have ended."""
        self._threads.shutdown(wait=True)

    async def forecast(self, champion: Champion, request: Request) -> list[Answer]:
        """The answers of one request; Refusal where it has none, with 503 where too many are waiting."""
        if len(self.queue) >= self.limits.waiting:
            sentence = f"{len(self.queue)} requests are waiting (serving.waiting); come again in a second"
            raise Refusal(503, (), sentence)
        waiting = Waiting(champion, request, asyncio.get_running_loop().create_future())
        self.queue.append(Part(waiting, 0, len(request)))
        self._changed.set()
        result = await waiting.answers
        if isinstance(result, Refusal):
            raise Refusal(result.status, result.place, result.sentence)  # one of its own: it may be that of many
        return result

    async def tend(self, crew: Crew) -> None:
        """Replace the idle workers of a crew that have ended."""
        ended = [worker for worker in crew.idle if not worker.waits]
        for worker in ended:
            crew.idle.remove(worker)  # all of them before anybody else may take one
        for worker in ended:
            await self._replace(crew, worker, "has ended")

    async def _work(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self.queue:
                crew = self.queue[0].waiting.champion.crew
                if crew.deserted:
                    part = self.queue.popleft()
                    part.waiting.give(part, NOBODY)
                    continue
                if not crew.idle:
                    break
                worker = crew.idle.popleft()
                if not worker.waits:
                    self._spawn(self._replace(crew, worker, "has ended"))
                elif batch := self._next(1 + len(crew.idle)):
                    self._spawn(self._run(crew, worker, batch), batch)
                else:
                    crew.idle.appendleft(worker)

    def _spawn(self, work: Coroutine[Any, Any, None], batch: Sequence[Part] = ()) -> None:
        """Let a task work; where it is cancelled, ``batch`` is told so, and a worker that is busy ends with its crew."""

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            if task.cancelled():
                self._give(batch, [STOPPED] * len(batch))

        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(ended)

    async def _run(self, crew: Crew, worker: Process, batch: list[Part]) -> None:
        """Let a worker forecast a batch, and give what comes of it."""
        crew.busy.add(worker)
        self.gauges.batched(batch)
        requests, loop, begun = [part.request for part in batch], asyncio.get_running_loop(), perf_counter()
        results: Iterable[list[Answer] | Refusal]
        try:
            seconds = self.limits.forecast_seconds
            results = await loop.run_in_executor(self._threads, crew.forecast, worker, requests, seconds)
        except Lost as lost:
            crew.busy.discard(worker)
            self._try_again(batch)
            await self._replace(crew, worker, str(lost))
            return
        except Exception as error:  # a defect of ours: it is told, and the service goes on
            name = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            self.gauges.told(f"a forecast failed: {name}{error}")
            results = [FAILED] * len(batch)
        self.gauges.work.observe(perf_counter() - begun)
        crew.busy.discard(worker)
        crew.idle.append(worker)
        self._give(batch, results)
        self._changed.set()

    @staticmethod
    def _give(batch: Iterable[Part], results: Iterable[list[Answer] | Refusal]) -> None:
        for part, result in zip(batch, results, strict=True):
            part.waiting.give(part, result)

    def _try_again(self, batch: list[Part]) -> None:
        for part in reversed(batch):
            if part.again:
                part.waiting.give(part, LOST)
            else:
                self.queue.appendleft(Part(part.waiting, part.start, part.stop, again=True))

    async def _replace(self, crew: Crew, worker: Process, why: str) -> None:
        """Put a new worker in the place of one that is lost."""
        self.gauges.told(f"a process that forecasts {why}; another takes its place")
        crew.coming += 1
        try:
            new = await asyncio.get_running_loop().run_in_executor(self._threads, crew.replaced, worker)
        finally:
            crew.coming -= 1
        if new is not None:
            self.gauges.restarts.inc()
            crew.idle.append(new)
        elif crew.broken:
            self.gauges.told("no process can take its place; the champion is loaded again")
            self.broken()
        self._changed.set()

    def _next(self, idle: int) -> list[Part]:
        """A batch from the head of the queue, for one of ``idle`` workers; what nobody waits for any more is left out."""
        while self.queue and self.queue[0].waiting.answers.done():
            self.queue.popleft()
        if not self.queue:
            return []
        head = self.queue[0]
        champion = head.waiting.champion
        if head.again or not champion.contract.batch_invariant:
            return [self.queue.popleft()]
        total = sum(len(part) for part in self.queue if part.waiting.champion is champion)
        room = min(self.limits.batch, max(LEAST_SHARE, -(-total // idle)))
        batch: list[Part] = []
        while self.queue and room:
            part = self.queue[0]
            if part.waiting.answers.done():
                self.queue.popleft()
                continue
            if part.again or part.waiting.champion is not champion or (batch and len(part) > room):
                break
            self.queue.popleft()
            if len(part) > room:
                middle = part.start + room
                self.queue.appendleft(Part(part.waiting, middle, part.stop))
                part = Part(part.waiting, part.start, middle)
            batch.append(part)
            room -= len(part)
        return batch
