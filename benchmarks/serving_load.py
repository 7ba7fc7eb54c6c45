"""Mixed load at saturation: good and bad requests, two switches of the champion and a stop, every answer compared."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
import pandas as pd

from benchmarks import serving_stand
from benchmarks.serving_bodies import Ask, Windows
from benchmarks.serving_clients import Connection
from benchmarks.serving_faults import faults
from benchmarks.serving_stand import STOP_SECONDS, Service, Stand
from tasks.bundle import Bundle
from tasks.future import with_future_rows
from tasks.ingest import validate_panel
from tasks.serving.frames import answers_of

Answers = Mapping[str, Mapping[str, Any]]
"""The right answer to every key: the name of a series of the panel, of a window, or of a stream and its step."""

LOAD_GOALS = {"wrong": 0.0, "lost": 0.0, "errors_5xx": 0.0, "memory_growth": 0.10, "exit_code": 0.0}
KINDS, SHARES = ("series", "ids", "observations", "bad"), (0.55, 0.20, 0.20, 0.05)
WINDOWS, MOST_SERIES, PUSHES = 150, 20, 20
SETTLE_SECONDS = 10.0
RTOL, ATOL = 1e-5, 1e-6


@dataclass(frozen=True)
class Sent:
    """A request and its end: ``status`` is 0 where there was no answer, and ``body`` then says why.

    ``refused`` is that no connection could be had, so that nothing was sent.
    """

    kind: str
    keys: tuple[str, ...]
    status: int
    body: bytes
    begun: float
    ended: float
    refused: bool = False


@dataclass(frozen=True)
class Material:
    """What clients ask about: windows and their names, streams (one a client), series of the panel, faulty requests."""

    windows: Windows
    names: Sequence[str]
    streams: Windows
    ids: Sequence[str]
    faults: Mapping[str, Ask]

    @classmethod
    def of(cls, frame: pd.DataFrame, bundle: Bundle, megabytes: float, clients: int) -> Material:
        windows = Windows.draw(frame, bundle.encoding, WINDOWS, seed=2)
        streams = Windows.draw(frame, bundle.encoding, clients, seed=3, room=PUSHES)
        names, seen = [], set()
        for index in range(len(windows)):  # one window of each series is asked about under the name the model knows
            known = windows.name(index)
            names.append(f"window {index:03d}" if known in seen else known)
            seen.add(known)
        ids = frame["unique_id"].unique().tolist()
        return cls(windows, names, streams, ids, faults(windows, ids, megabytes))

    def answers(self, bundle: Bundle, panel: pd.DataFrame) -> Answers:
        """What a bundle says, asked directly and all at once, of everything that clients may ask."""
        tables = [self.windows.table(index, name) for index, name in enumerate(self.names)]
        for stream in range(len(self.streams)):
            tables += [self.streams.table(stream, step_key(stream, step), step) for step in range(PUSHES + 1)]
        frame, _ = validate_panel(pd.concat(tables, ignore_index=True), bundle.params, for_training=False)
        found = {}
        for rows, prefix in (
            (with_future_rows(panel, bundle.encoding), "panel "),
            (with_future_rows(frame, bundle.encoding), ""),
        ):
            for answer in answers_of(bundle.forecast(rows), bundle.encoding.schema.horizon):
                found[prefix + answer["unique_id"]] = answer
        return found


def step_key(stream: int, step: int) -> str:
    return f"stream {stream:03d} step {step:03d}"


class Client(threading.Thread):
    """Asks for this and that, one request after the other, until nobody listens any more."""

    def __init__(self, number: int, port: int, material: Material) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.number, self.material, self.step = number, material, 0
        self.connection, self.random = Connection(port), random.Random(number)
        self.sent: list[Sent] = []
        self._pushes: dict[int, Ask] = {}

    def run(self) -> None:
        while not (self.sent and self.sent[-1].refused):
            (kind,) = self.random.choices(KINDS, SHARES)
            keys, ask = getattr(self, f"_{kind}")()
            done = self._asked(kind, keys, ask)
            self.sent.append(done)
            if kind == "observations":
                self.step = (self.step + 1) % (PUSHES + 1) if done.status == 200 else 0
        self.connection.close()

    def _asked(self, kind: str, keys: tuple[str, ...], ask: Ask) -> Sent:
        begun, connected = time.perf_counter(), False
        try:
            self.connection.connect()
            connected = True
            status, body, _ = self.connection.ask(ask)
            return Sent(kind, keys, status, body, begun, time.perf_counter())
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            problem = f"{type(error).__name__}: {error}".encode()
            return Sent(kind, keys, 0, problem, begun, time.perf_counter(), refused=not connected)

    def _series(self) -> tuple[tuple[str, ...], Ask]:
        windows, names = self.material.windows, self.material.names
        most = min(MOST_SERIES, len(windows))
        chosen = self.random.sample(range(len(windows)), self.random.randint(1, most))
        keys = tuple(names[index] for index in chosen)
        return keys, windows.ask("ours", "/v1/forecast", chosen, keys)

    def _ids(self) -> tuple[tuple[str, ...], Ask]:
        ids = self.material.ids
        chosen = self.random.sample(ids, self.random.randint(1, min(MOST_SERIES, len(ids))))
        return tuple(f"panel {name}" for name in chosen), Ask("/v1/forecast", orjson.dumps({"ids": chosen}))

    def _observations(self) -> tuple[tuple[str, ...], Ask]:
        """The whole history first, then a row at a time and what becomes known of the future with it."""
        place = self.number % len(self.material.streams)
        if self.step not in self._pushes:
            self._pushes[self.step] = self._push(place, self.step)
        return (step_key(place, self.step),), self._pushes[self.step]

    def _push(self, place: int, step: int) -> Ask:
        streams = self.material.streams
        rows = streams.table(place, f"client {self.number}", step)
        if step:
            rows = rows.iloc[[streams.steps + step - 1, -1]]
        body = {**streams.series(rows), "restart": step == 0}
        return Ask("/v1/observations", orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))

    def _bad(self) -> tuple[tuple[str, ...], Ask]:
        name = self.random.choice(list(self.material.faults))
        return (name,), self.material.faults[name]


def difference(answer: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """What an answer has other than the right one, '' where they are the same: columns, times, flags, numbers but for rounding.

    Rounding is that of a column's largest value: a bound that crosses zero has the error of the bounds beside it.
    """
    if answer.keys() != right.keys():
        return f"columns {sorted(answer.keys() ^ right.keys())}"
    exact = ("ds", "cutoff", "is_ood", "abstain")
    for name in exact:
        if answer[name] != right[name]:
            return f"{name} {answer[name]} for {right[name]}"
    for name in sorted(right.keys() - {"unique_id", *exact}):
        found, asked = (np.atleast_1d(np.array(each[name], dtype=np.float64)) for each in (answer, right))
        error = ATOL + RTOL * np.nanmax(np.abs(asked), initial=0.0)
        if found.shape != asked.shape or not np.allclose(found, asked, rtol=0.0, atol=error, equal_nan=True):
            return f"{name} {found.tolist()} for {asked.tolist()}"
    return ""


def wrong(sent: Sent, right: Mapping[str, Answers]) -> str:
    """What is wrong with an answer below 500, '' where it is right."""
    try:
        content = orjson.loads(sent.body)
        if sent.kind == "bad":
            return "" if sent.status >= 400 and content["detail"] else f"{sent.keys[0]} was answered {sent.status}"
        if sent.status != 200:
            return f"{sent.kind} was answered {sent.status}: {content['detail']}"
        version, forecasts = right[content["model"]["version"]], content["forecasts"]
        if len(forecasts) != len(sent.keys):
            return f"{len(forecasts)} forecasts for {len(sent.keys)} series"
        for key, each in zip(sent.keys, forecasts, strict=True):
            if told := difference(each, version[key]):
                return f"{sent.kind}: of {key} version {content['model']['version']} told {told}"
        return ""
    except (ValueError, KeyError) as error:
        return f"{sent.kind} was answered {sent.status} with {sent.body[:100]!r}: {error!r}"


def verdict(sent: Sequence[Sent], right: Mapping[str, Answers], stopped: float) -> dict[str, Any]:
    """Counts of what was sent, and what went wrong with it; ``stopped`` is when the service was asked to stop."""
    answered = [each for each in sent if each.status]
    faulty = [text for each in answered if each.status < 500 and (text := wrong(each, right))]
    lost, fives = (
        [f"{each.kind} {each.ended - stopped:+.2f} s from the stop: {each.status} {each.body[:200]!r}" for each in some]
        for some in (
            [each for each in sent if not each.status and not (each.refused and each.begun > stopped)],
            [each for each in answered if each.status >= 500],
        )
    )
    before = [each for each in answered if each.ended <= stopped]
    taken = np.array([each.ended - each.begun for each in before if each.kind == "series"]) * 1e3
    by_fault: dict[str, Counter[int]] = {}
    for each in sent:
        if each.kind == "bad" and each.status:
            by_fault.setdefault(each.keys[0], Counter())[each.status] += 1
    return {
        "requests": len(sent),
        "requests_per_s": len(before) / (stopped - min(each.begun for each in sent)),
        "wrong": len(faulty),
        "lost": len(lost),
        "errors_5xx": len(fives),
        "examples": [*faulty[:5], *lost[:5], *fives[:5]],
        "answered_after_stop": len(answered) - len(before),
        "p50_ms_series": float(np.percentile(taken, 50)),
        "p99_ms_series": float(np.percentile(taken, 99)),
        "by_kind": Counter(each.kind for each in sent),
        "by_version": Counter(orjson.loads(each.body)["model"]["version"] for each in answered if each.status == 200),
        "bad_by_fault": by_fault,
    }


def mixed_load(stand: Stand, bundle: Bundle, panel: pd.DataFrame, seconds: float, clients: int) -> dict[str, Any]:
    """Load `weatherglass serve` for ``seconds`` and stop it under load; see `verdict` for what is told."""
    other = stand.other()
    material = Material.of(panel, bundle, stand.params.serving.body_megabytes, clients)
    right = {stand.champion: material.answers(bundle, panel)}
    right[other] = material.answers(Bundle.load(stand.root / "other/bundle"), panel)
    with serving_stand.ours(stand) as service:
        workers = [Client(number, service.port, material) for number in range(clients)]
        begun, used = time.perf_counter(), time.process_time()
        for worker in workers:
            worker.start()
        found = _course(service, seconds, partial(stand.point, other), partial(stand.point, stand.champion))
        found["client_share"] = (time.process_time() - used) / (time.perf_counter() - begun)
        stopped = time.perf_counter()
        service.process.terminate()
        found["exit_code"] = service.process.wait(STOP_SECONDS)
        found["stop_seconds"] = time.perf_counter() - stopped
        for worker in workers:
            worker.join(STOP_SECONDS)
    stand.point(stand.champion)
    sent = sorted((each for worker in workers for each in worker.sent), key=lambda each: each.begun)
    return {"seconds": seconds, "clients": clients, **verdict(sent, right, stopped), **found}


def _course(service: Service, seconds: float, first: Callable[[], None], second: Callable[[], None]) -> dict[str, Any]:
    """Switch the champion at a third and at two thirds of the time, and watch the memory."""
    begun = time.perf_counter()
    due = [(min(SETTLE_SECONDS, seconds / 4), None), (seconds / 3, first), (seconds * 2 / 3, second), (seconds, None)]
    memory, most = [], 0
    for at, action in due:
        while (left := begun + at - time.perf_counter()) > 0:
            time.sleep(min(left, 0.5))
            most = max(most, service.memory())
        memory.append(service.memory())
        if action is not None:
            action()
    settled, last = memory[0], memory[-1]
    megabytes = {
        "settled": settled,
        "before_first_switch": memory[1],
        "before_second_switch": memory[2],
        "end": last,
        "most": most,
    }
    return {
        "memory_growth": last / settled - 1.0,
        "memory_mb": {name: round(value / 1e6, 1) for name, value in megabytes.items()},
    }
