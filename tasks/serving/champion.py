"""The champion that answers, and the thread that follows its alias."""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.uncertainty.adaptive import Method
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.forecast import PANEL, ingested_panel, live_intervals
from tasks.future import with_future_rows
from tasks.registry import load_version, version_behind
from tasks.serving.bodies import static_columns
from tasks.serving.frames import Answer, answers_of

Seen = tuple[str, str, int | None]
"""Version, digest of its bundle, and when the panel was written."""


@dataclass(frozen=True)
class Champion:
    """A loaded version, and what it says of each series of the panel; ``panel_error`` is why there is no panel."""

    name: str
    version: str
    alias: str
    digest: str
    bundle: Bundle
    panel: Mapping[str, Answer] = field(repr=False)
    panel_error: str | None
    loaded_at: dt.datetime

    def about(self) -> dict[str, Any]:
        """What `GET /v1/model` tells."""
        encoding = self.bundle.encoding
        return {
            "name": self.name,
            "version": self.version,
            "alias": self.alias,
            "digest": self.digest,
            "loaded_at": self.loaded_at.isoformat(timespec="seconds"),
            "families": sorted(set(self.bundle.families)),
            "members": len(self.bundle.members),
            "horizon": encoding.schema.horizon,
            "frequency": encoding.frequency,
            "known_future": list(encoding.known_future),
            "past_only": list(encoding.past_only),
            "static": list(static_columns(encoding)),
            "ids": len(self.panel),
            "ids_missing_because": self.panel_error,
            "guarantee": dict(self.bundle.card),
        }


class ChampionWatch:
    """Holds the champion of a registry's alias and looks every ``seconds`` whether alias or panel have moved.

    A new champion is loaded and asked for the whole panel before it takes the old one's place, so no request waits for
    it; one that cannot be loaded (its files are not those that were registered) is left, and the old one goes on.
    ``told`` gets a sentence whenever something changes.
    """

    def __init__(
        self, root: Path, name: str, alias: str, adaptive: Method, seconds: float, told: Callable[[str], None]
    ) -> None:
        self.root, self.name, self.alias, self.adaptive = root, name, alias, adaptive
        self.seconds, self.told = seconds, told
        self.current: Champion | None = None
        self.failures, self.loads, self.problem = 0, 0, "no look at the registry has been taken yet"
        self._seen: Seen | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champion", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30.0)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self.seconds)

    def look(self) -> None:
        """Take one look; whatever goes wrong is told once and counted, and the champion stays."""
        try:
            version, digest = version_behind(self.name, self.alias)
            seen = version, digest, _written(self.root / PANEL)
            if seen == self._seen:
                self.problem = ""
                return
            self.current = self._loaded(version, digest)
            self._seen, self.problem = seen, ""
            self.loads += 1
            self.told(f"{self.name} version {version} answers as @{self.alias}")
            give_back()
        except Exception as error:
            self.failures += 1
            sentence = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__} while loading the champion: {error}"
            )
            if sentence != self.problem:
                self.told(sentence)
            self.problem = sentence

    def _loaded(self, version: str, digest: str) -> Champion:
        before = self.current
        same = before is not None and (before.version, before.digest) == (version, digest)
        bundle = before.bundle if before is not None and same else load_version(self.name, version, digest)
        panel, problem = self._panel(bundle, version, digest)
        now = dt.datetime.now(dt.UTC)
        return Champion(self.name, version, self.alias, digest, bundle, panel, problem, now)

    def _panel(self, bundle: Bundle, version: str, digest: str) -> tuple[dict[str, Answer], str | None]:
        """What the bundle says of each series, as `weatherglass forecast` does, or why it says nothing."""
        try:
            live = live_intervals(self.root, f"{self.name}-{version}", digest, bundle, self.adaptive)
            frame = with_future_rows(ingested_panel(self.root), bundle.encoding)
            table = bundle.forecast(frame, live)
        except (UserError, KeyError) as error:
            return {}, str(error) if isinstance(error, UserError) else f"the panel has no column {error}"
        return {answer["unique_id"]: answer for answer in answers_of(table, bundle.encoding.schema.horizon)}, None


def give_back() -> None:
    """Free what a former champion leaves in cycles, and hand freed memory back to the system where there is glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
