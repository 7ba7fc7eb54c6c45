"""The champion that answers, and the thread that follows its alias."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.uncertainty.adaptive import Method
from tasks.errors import UserError
from tasks.forecast import PANEL
from tasks.registry import stored_bundle, version_behind
from tasks.serving.bodies import Refusal, static_columns
from tasks.serving.contract import Contract
from tasks.serving.crew import Crew, end_all
from tasks.serving.frames import Answer
from tasks.serving.memory import give_back
from tasks.serving.processes import Lost, Nursery, Process

STOP_SECONDS = 30.0
Seen = tuple[str, str, int | None]
"""Version, digest of its bundle, and when the panel was written."""


@dataclass(frozen=True)
class Champion:
    """A version, who forecasts by it, and what it says of each series of the panel; ``panel_error`` is why there is none."""

    name: str
    version: str
    alias: str
    digest: str
    crew: Crew = field(repr=False)
    panel: Mapping[str, Answer] = field(repr=False)
    panel_error: str | None
    loaded_at: dt.datetime

    @property
    def contract(self) -> Contract:
        return self.crew.contract

    def about(self) -> dict[str, Any]:
        """What `GET /v1/model` tells."""
        contract, encoding = self.contract, self.contract.encoding
        return {
            "name": self.name,
            "version": self.version,
            "alias": self.alias,
            "digest": self.digest,
            "loaded_at": self.loaded_at.isoformat(timespec="seconds"),
            "families": list(contract.families),
            "members": contract.members,
            "horizon": encoding.schema.horizon,
            "frequency": encoding.frequency,
            "known_future": list(encoding.known_future),
            "past_only": list(encoding.past_only),
            "static": list(static_columns(encoding)),
            "ids": len(self.panel),
            "ids_missing_because": self.panel_error,
            "guarantee": dict(contract.card),
        }


class ChampionWatch:
    """Holds the champion of a registry's alias and looks every ``seconds`` whether alias or panel have moved.

    A new champion is loaded by processes of its own and asked for the whole panel before it takes the old one's place, so no
    request waits for it; the old one's processes end with the last request that holds them. One that cannot be loaded (its
    files are not those that were registered) is left, and the old one goes on. Processes are forked from ``first``, or from
    one that is started at the first look. ``told`` gets a sentence whenever something changes.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        alias: str,
        adaptive: Method,
        workers: int,
        seconds: float,
        told: Callable[[str], None],
        first: Nursery | None = None,
    ) -> None:
        self.root, self.name, self.alias, self.adaptive, self.workers = root, name, alias, adaptive, workers
        self.seconds, self.told = seconds, told
        self.current: Champion | None = None
        self.failures, self.loads, self.problem = 0, 0, "no look at the registry has been taken yet"
        self._seen: Seen | None = None
        self._first, self._shared = first, first is not None
        self._loading: Process | None = None
        self._changing = threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champion", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follow no more, and end all processes."""
        self._stop.set()
        self._wake.set()
        until = time.monotonic() + STOP_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            if (loading := self._loading) is not None:
                loading.kill()  # whoever waits for it goes on
            self._thread.join(0.1)
        end_all(None if self.current is None else self.current.crew, None if self._shared else self._first)

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    @contextmanager
    def held(self) -> Iterator[Champion]:
        """The champion that answers now, whose processes stay while the block lasts; Refusal 503 where there is none yet."""
        with self._changing:
            champion = self.current
            if champion is None:
                raise Refusal(503, (), f"no champion is loaded yet: {self.problem}")
            champion.crew.hold()
        try:
            yield champion
        finally:
            champion.crew.let_go()

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._wake.wait(self.seconds)
            self._wake.clear()

    def look(self) -> None:
        """Take one look; whatever goes wrong is told once and counted, and the champion stays."""
        try:
            version, digest = version_behind(self.name, self.alias)
            seen = version, digest, _written(self.root / PANEL)
            if seen == self._seen and self._is_whole():
                self.problem = ""
                return
            self._change(self._loaded(version, digest))
            self._seen, self.problem = seen, ""
            self.loads += 1
            self.told(f"{self.name} version {version} answers as @{self.alias}")
            give_back()
        except Exception as error:
            if self._stop.is_set():
                return
            self.failures += 1
            sentence = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__} while loading the champion: {error}"
            )
            if sentence != self.problem:
                self.told(sentence)
            self.problem = sentence

    def _change(self, champion: Champion) -> None:
        with self._changing:
            before, self.current = self.current, champion
        if before is not None and before.crew is not champion.crew:
            before.crew.retire()

    def _is_whole(self) -> bool:
        """Whether the champion's processes are such that workers can be forked still."""
        return self.current is not None and not self.current.crew.broken and self.current.crew.leader.waits

    def _loaded(self, version: str, digest: str) -> Champion:
        before = self.current
        same = before is not None and (before.version, before.digest) == (version, digest) and self._is_whole()
        crew = before.crew if before is not None and same else self._crew(version, digest)
        try:
            with self._at_work(crew.leader.fork()) as process:  # one of its own, whose memory goes with it
                name = f"{self.name}-{version}"
                panel, problem = process.ask("panel", self.root, name, digest, self.adaptive)
                process.let_go()
        except BaseException:
            if not same:
                crew.end()
            raise
        return Champion(self.name, version, self.alias, digest, crew, panel, problem, dt.datetime.now(dt.UTC))

    def _crew(self, version: str, digest: str) -> Crew:
        with stored_bundle(self.name, version) as folder:
            try:
                with self._at_work(self._nursery().fork()) as leader:
                    return Crew.load(leader, folder, f"{self.name} version {version}", digest or None, self.workers)
            except Lost as lost:
                raise UserError(f"the process that loads {self.name} version {version} {lost}.") from None

    @contextmanager
    def _at_work(self, process: Process) -> Iterator[Process]:
        """Let `stop` end a process that something is waited for from; it is ended where the block fails."""
        self._loading = process
        try:
            if self._stop.is_set():
                raise Lost("is not needed any more")
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            self._loading = None

    def _nursery(self) -> Nursery:
        if self._first is None or self._first.started.poll() is not None:
            self._first, self._shared = Nursery(), False
        return self._first


def _written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
