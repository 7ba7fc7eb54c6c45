"""A program for `tasks.serving.processes`: what is forked from it forks others, and those say what they are asked to."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

from tasks.errors import UserError
from tasks.serving.processes import answer, forks


def refuse(sentence: str) -> None:
    raise UserError(sentence)


def sleep(seconds: float) -> None:
    print("asleep", file=sys.stderr, flush=True)
    time.sleep(seconds)


def end() -> None:
    os._exit(9)


WORKS = {"echo": lambda *given: given, "refuse": refuse, "divide": lambda: 1 / 0, "end": end, "sleep": sleep}

if __name__ == "__main__":
    leader = forks(Connection(int(sys.argv[1])))
    if leader is not None:
        worker = forks(leader)
        if worker is not None:
            answer(worker, WORKS)
