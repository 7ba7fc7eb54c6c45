"""The processes of one champion, as the service sees them: one that holds it, and workers forked from that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tasks.serving.bodies import Refusal
from tasks.serving.contract import Contract
from tasks.serving.frames import Answer, Request
from tasks.serving.processes import Lost, Nursery, Process, wait_for_end


class Crew:
    """Workers that forecast by one champion, whose weights they share.

    ``idle`` holds those that wait to be asked and ``busy`` the others, ``coming`` counts those that are being forked, and
    ``broken`` is that no more can be; all belong to the event loop's thread. Who uses the crew `hold`s it: once it is
    retired, the last to let go ends it.
    """

    def __init__(self, leader: Process, contract: Contract, workers: int) -> None:
        self.contract, self.broken = contract, False
        self.leader = leader
        self.idle = deque(leader.fork() for _ in range(workers))
        self.busy: set[Process] = set()
        self.coming = 0
        self._holders, self._retired, self._ended = 0, False, False
        self._counting = threading.Lock()

    @classmethod
    def load(cls, leader: Process, folder: Path, label: str, digest: str | None, workers: int) -> Crew:
        """Let ``leader``, new from the nursery, load a bundle, verified by ``digest``, and fork ``workers``.

        Raises UserError where the bundle is damaged or not one that this version reads, Lost where the process has ended.
        """
        return cls(leader, leader.ask(folder, label, digest), workers)

    @property
    def workers(self) -> int:
        """Workers that are there."""
        return sum(worker.waits for worker in list(self.idle)) + len(self.busy)

    @property
    def deserted(self) -> bool:
        """Whether there is no worker and will be none."""
        return self.broken and not self.idle and not self.busy and not self.coming

    def forecast(self, worker: Process, requests: Sequence[Request], seconds: float) -> list[list[Answer] | Refusal]:
        """See `tasks.serving.frames.forecast_together`; done by ``worker``."""
        return worker.ask("forecast", requests, seconds=seconds)

    def replaced(self, worker: Process) -> Process | None:
        """A worker in place of one that is lost; None, and the crew is broken, where there can be none."""
        worker.kill()
        worker.let_go()
        try:
            return None if self._ended else self.leader.fork()
        except Lost:
            self.broken = True
            return None

    def hold(self) -> None:
        with self._counting:
            self._holders += 1

    def let_go(self) -> None:
        with self._counting:
            self._holders -= 1
            done = self._retired and not self._holders
        if done:
            self.end()

    def retire(self) -> None:
        """End as soon as nobody holds it."""
        with self._counting:
            self._retired = True
            done = not self._holders
        if done:
            self.end()

    def end(self) -> list[Process]:
        """Let all processes end, and those that are at work at once; returns them."""
        self._ended = True
        for worker in self.busy:
            worker.kill()  # its connection is being waited at, and is closed by who waits
        for process in (*self.idle, self.leader):
            process.let_go()
        return [*self.busy, *self.idle, self.leader]


def end_all(crew: Crew | None, first: Nursery | None) -> None:
    """End a crew's processes and the nursery, and return when they are gone."""
    if crew is not None:
        wait_for_end(crew.end())
    if first is not None:
        first.end()
