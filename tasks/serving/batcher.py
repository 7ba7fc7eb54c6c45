"""Requests that are waiting are forecast together, on one thread, so that a network's fixed cost is shared."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from tasks.serving.bodies import Refusal
from tasks.serving.champion import Champion
from tasks.serving.frames import Answer, Request, forecast_together
from tasks.serving.gauges import Gauges

STOPPED = Refusal(503, (), "the service has stopped; ask again")


@dataclass(frozen=True)
class Waiting:
    """A request in the queue, the champion that it was checked against, and where its answers go."""

    champion: Champion
    request: Request
    answers: asyncio.Future[list[Answer] | Refusal]
    since: float = field(default_factory=perf_counter)


class Batcher:
    """A queue of requests and the thread that forecasts them.

    While one batch is computed the next gathers: under load batches grow to ``most`` series, and a request that comes
    alone waits for nobody. Requests are put together where their champion is the same and is one whose forecast of a
    window does not depend on the others.
    """

    def __init__(self, most: int, room: int, gauges: Gauges) -> None:
        self.most, self.room, self.gauges = most, room, gauges
        self.queue: deque[Waiting] = deque()
        self._filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forecast")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End, with 503 for what is in work or waiting still."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)
        _give(self.queue, [STOPPED] * len(self.queue))

    async def forecast(self, champion: Champion, request: Request) -> list[Answer]:
        """The answers of one request; Refusal where it has none, with 503 where too many are waiting."""
        if len(self.queue) >= self.room:
            raise Refusal(503, (), f"{len(self.queue)} requests are waiting (serving.waiting); come again in a second")
        waiting = Waiting(champion, request, asyncio.get_running_loop().create_future())
        self.queue.append(waiting)
        self._filled.set()
        result = await waiting.answers
        if isinstance(result, Refusal):
            raise Refusal(result.status, result.place, result.sentence)  # one of its own: it may be that of many
        return result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            batch = self._next()
            if not batch:
                self._filled.clear()
                continue
            self.gauges.batched(batch)
            results: list[list[Answer] | Refusal] = [STOPPED] * len(batch)
            try:
                results = await loop.run_in_executor(
                    self._thread, forecast_together, batch[0].champion.bundle, [each.request for each in batch]
                )
            except Exception as error:  # a defect of ours: it is told, and the service goes on
                self.gauges.told(f"a forecast failed: {type(error).__name__}: {error}")
                results = [Refusal(500, (), "the forecast failed; the service's log says why")] * len(batch)
            finally:
                _give(batch, results)

    def _next(self) -> list[Waiting]:
        """Requests from the head of the queue that can be forecast together, without those nobody waits for any more."""
        batch: list[Waiting] = []
        series = 0
        while self.queue:
            first = self.queue[0]
            if not first.answers.cancelled():
                together = not batch or (first.champion is batch[0].champion and first.champion.bundle.batch_invariant)
                if not together or (batch and series + len(first.request) > self.most):
                    break
                batch.append(first)
                series += len(first.request)
            self.queue.popleft()
        return batch


def _give(requests: Iterable[Waiting], results: Iterable[list[Answer] | Refusal]) -> None:
    for waiting, result in zip(requests, results, strict=True):
        if not waiting.answers.done():
            waiting.answers.set_result(result)
