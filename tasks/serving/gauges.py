"""What the service counts, for Prometheus; a registry of its own, so that two services of a process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tasks.serving.frames import Answer

if TYPE_CHECKING:
    from tasks.serving.batcher import Part
    from tasks.serving.champion import ChampionWatch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Gauges:
    """Requests, their time, batches, and what the forecasts were; ``told`` writes a line to the log."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told
        self.registry = CollectorRegistry()
        common: Any = {"registry": self.registry}
        self.requests = Counter("weatherglass_requests", "Requests answered.", ["route", "code"], **common)
        self.seconds = Histogram("weatherglass_request_seconds", "Time to the answer.", ["route"], buckets=SECONDS, **common)
        self.open = Gauge("weatherglass_requests_open", "Requests being answered.", **common)
        self.wait = Histogram("weatherglass_queue_seconds", "Time in the queue.", buckets=SECONDS, **common)
        self.batch = Histogram("weatherglass_batch_series", "Series forecast at once.", buckets=SERIES, **common)
        self.work = Histogram("weatherglass_forecast_seconds", "Time a batch took its worker.", buckets=SECONDS, **common)
        self.workers = Gauge("weatherglass_workers", "Processes that forecast.", **common)
        self.restarts = Counter("weatherglass_worker_restarts", "Processes replaced after they had ended.", **common)
        self.forecasts = Counter("weatherglass_forecasts", "Series forecast.", **common)
        self.flagged = Counter("weatherglass_forecasts_ood", "Forecasts flagged as out of distribution.", **common)
        self.withheld = Counter("weatherglass_forecasts_abstained", "Forecasts to abstain from.", **common)
        self.champion = Gauge("weatherglass_champion", "1 for the version that answers.", ["model", "version"], **common)
        self.loads = Gauge("weatherglass_champion_loads", "Times that champion or panel were loaded.", **common)
        self.failures = Gauge("weatherglass_champion_failures", "Looks at the registry that failed.", **common)

    def batched(self, batch: list[Part]) -> None:
        now = perf_counter()
        for part in batch:
            self.wait.observe(now - part.waiting.since)
        self.batch.observe(sum(len(part) for part in batch))

    def answered(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self.forecasts.inc()
            self.flagged.inc(bool(answer["is_ood"]))
            self.withheld.inc(bool(answer["abstain"]))

    def text(self, watch: ChampionWatch) -> bytes:
        """Everything in Prometheus' text format."""
        self.champion.clear()
        self.workers.set(0 if watch.current is None else watch.current.crew.workers)
        if watch.current is not None:
            self.champion.labels(watch.current.name, watch.current.version).set(1)
        self.loads.set(watch.loads)
        self.failures.set(watch.failures)
        return generate_latest(self.registry)
