"""Parts of a large forecast that several processes make side by side; the table is that of one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

import pandas as pd

from tasks.bundle import Bundle

Part = tuple[pd.DataFrame, int]
"""Histories and future rows of whole batches of series, and how many series of the table lie before them."""


class Pending(Protocol):
    """A part under way."""

    def result(self) -> pd.DataFrame: ...


class Spread(NamedTuple):
    """What begins a part elsewhere, and how many may be under way, which bounds memory."""

    submit: Callable[[pd.DataFrame, int], Pending]
    most: int


@dataclass(frozen=True)
class Packed:
    """The files of a bundle as bytes by name, to be sent to a process that does not see its folder."""

    name: str
    digest: str
    files: dict[str, bytes] = field(compare=False, repr=False)

    @classmethod
    def of(cls, folder: Path, name: str, digest: str) -> Packed:
        """Of a bundle's folder; ``digest`` is that which it was registered with, or empty."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        return cls(name, digest, files)

    @lru_cache(maxsize=1)  # noqa: B019  # of a worker's process, which forecasts by one bundle
    def bundle(self) -> Bundle:
        """Loaded, every file checked first, and kept for the next part."""
        with TemporaryDirectory(prefix="weatherglass-") as folder:
            for name, content in self.files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return Bundle.load(Path(folder), self.name, self.digest or None)


_given: Packed | None = None


def begin(packed: Packed) -> None:
    """Make this process ready for `forecast_here`."""
    global _given
    _given = packed


def forecast_here(frame: pd.DataFrame, before: int) -> pd.DataFrame:
    """A part, by the bundle that `begin` has given to this process."""
    assert _given is not None
    return forecast_part(_given, frame, before)


def forecast_part(packed: Packed, frame: pd.DataFrame, before: int) -> pd.DataFrame:
    """The forecast table of a part, with one thread, in whose order sums are those of any other process."""
    import torch

    torch.set_num_threads(1)
    return packed.bundle().forecast(frame, before=before)


def in_order(
    parts: Iterable[Part], spread: Spread, here: Callable[[pd.DataFrame, int], pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """Tables of the parts in their order, at most ``spread.most`` of them under way.

    Where a process of this machine dies, its parts and all later ones are forecast ``here``.
    """
    waiting: deque[tuple[Part, Pending | None]] = deque()

    def begun(part: Part) -> Pending | None:
        try:
            return spread.submit(*part)
        except BrokenProcessPool:
            return None

    def ended(part: Part, pending: Pending | None) -> pd.DataFrame:
        try:
            return here(*part) if pending is None else pending.result()
        except BrokenProcessPool:
            return here(*part)

    for part in parts:
        waiting.append((part, begun(part)))
        if len(waiting) >= spread.most:
            yield ended(*waiting.popleft())
    while waiting:
        yield ended(*waiting.popleft())
