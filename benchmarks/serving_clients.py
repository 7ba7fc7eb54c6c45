"""Clients of a service: threads of this process, each with one connection that it keeps, and what they measure."""

from __future__ import annotations

import gc
import http.client
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving_bodies import Ask
from benchmarks.serving_stand import Service

TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Measured:
    """Latencies in seconds of requests that were all answered with 200, and how long they took together."""

    latencies: np.ndarray
    wall: float
    client_share: float
    service_cores: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.wall

    def milliseconds(self, percent: float) -> float:
        """A percentile of the latencies."""
        return float(np.percentile(self.latencies, percent) * 1e3)


@dataclass
class Connection:
    """A kept connection; `ask` sends a request and returns its status, its body and the seconds until it was there."""

    port: int
    _kept: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self._kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)

    def ask(self, ask: Ask) -> tuple[int, bytes, float]:
        begun = time.perf_counter()
        with suppress(BrokenPipeError, ConnectionResetError):  # a service may refuse a body before it has come
            self._kept.request("POST", ask.path, ask.body, {"content-type": ask.content_type})
        response = self._kept.getresponse()
        body = response.read()
        return response.status, body, time.perf_counter() - begun

    def connect(self) -> None:
        """Connect where there is no connection; ConnectionRefusedError where nobody listens."""
        if self._kept.sock is None:
            self._kept.connect()

    def close(self) -> None:
        self._kept.close()


def drive(service: Service, asks: Iterable[Ask], clients: int) -> Measured:
    """Send prebuilt requests by ``clients`` at once, each sending its next when it has the answer.

    Raises RuntimeError where one is not answered with 200.
    """
    waiting, latencies, problems = deque(asks), [], []
    start = threading.Barrier(clients + 1)

    def work() -> None:
        connection = Connection(service.port)
        connection.connect()
        start.wait()
        try:
            while True:
                status, body, taken = connection.ask(waiting.popleft())
                latencies.append(taken)
                if status != 200:
                    raise RuntimeError(f"{service.path} answered {status}: {body[:300].decode(errors='replace')}")
        except IndexError:
            connection.close()
        except Exception as error:
            problems.append(error)
            waiting.clear()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    gc.collect()
    start.wait()
    begun, used, theirs = time.perf_counter(), time.process_time(), service.cpu_seconds()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begun
    share, cores = (time.process_time() - used) / wall, (service.cpu_seconds() - theirs) / wall
    if problems:
        raise RuntimeError(f"a request to {service.path} failed") from problems[0]
    return Measured(np.array(latencies), wall, share, cores)
