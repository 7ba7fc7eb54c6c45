"""Forecasts of a large panel on workers: the champion, the panel's parts and their tables lie in a folder that all see.

Parts are cut by the one who waits for the tables, where `tasks.forecast.forecast_panel` cuts them, so that a table depends on
its part alone and not on who makes it, and tables in order are those of one machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from models.uncertainty.adaptive import Method
from tasks.bundle import Bundle, Live
from tasks.files import atomic_path
from tasks.forecast import ROWS, live_intervals, panel_file, panel_parts
from tasks.ingested import IngestedPanel
from tasks.monitor_state import MONITOR
from tasks.on_worker import IN_TURN, must_see
from tasks.registry import stored_bundle, version_behind


@dataclass(frozen=True)
class Champion:
    """A registered bundle in a shared folder: its name, version and digest, and how its live intervals adapt, None for none."""

    folder: Path
    name: str
    version: str
    digest: str
    adaptive: Method | None

    def load(self) -> tuple[Bundle, Live | None]:
        """The bundle, checked against its digest, and what gives its live intervals."""
        bundle = Bundle.load(self.folder / "bundle", f"{self.name} version {self.version}", self.digest or None)
        if self.adaptive is None:
            return bundle, None
        return bundle, live_intervals(self.folder, f"{self.name}-{self.version}", self.digest, bundle, self.adaptive)


@dataclass(frozen=True)
class PartSpec:
    """A part of the panel: its number, and the number of series before it."""

    champion: Champion
    number: int
    before: int

    @property
    def name(self) -> str:
        return f"part_{self.number}"

    @property
    def frame(self) -> Path:
        """File of the part's histories and rows to forecast."""
        return self.champion.folder / f"{self.name}.parquet"

    @property
    def table(self) -> Path:
        """File of the part's forecasts."""
        return self.champion.folder / f"{self.name}.forecast.parquet"


def parts_of(root: Path, rows: int = ROWS) -> int:
    """Into how many parts the ingested panel falls, about; raises UserError where there is none."""
    return -(-len(IngestedPanel(panel_file(root))) // rows)


def share_champion(root: Path, folder: Path, name: str, alias: str, adaptive: Method | None) -> Champion:
    """Copy the bundle behind an alias to ``folder``, and with it the monitor's state, which is then one for all parts."""
    version, digest = version_behind(name, alias)
    with stored_bundle(name, version) as stored:
        shutil.copytree(stored, folder / "bundle")
    state = MONITOR / f"{name}-{version}" / "state.json"
    if adaptive is not None and (root / state).exists():
        (folder / state).parent.mkdir(parents=True)
        shutil.copyfile(root / state, folder / state)
    return Champion(folder, name, version, digest, adaptive)


def write_parts(champion: Champion, bundle: Bundle, panel: Path, cutoff: Any = None, rows: int = ROWS) -> Iterator[PartSpec]:
    """Write the parts of an ingested panel one after the other; yields each once it is there."""
    for number, (frame, before) in enumerate(panel_parts(bundle, panel, cutoff, rows)):
        spec = PartSpec(champion, number, before)
        frame.to_parquet(spec.frame, index=False)
        yield spec


def forecast_on_worker(spec: PartSpec) -> None:
    """Forecast a part in a worker's process, with one thread, as `weatherglass forecast` does on one machine.

    Raises UserError where the worker does not see the part.
    """
    import torch

    must_see(spec.frame)
    torch.set_num_threads(1)
    with IN_TURN:
        bundle, live = _loaded(spec.champion)
        table = bundle.forecast(pd.read_parquet(spec.frame), live, spec.before)
    with atomic_path(spec.table) as temporary:
        table.to_parquet(temporary, index=False)


@lru_cache(maxsize=1)
def _loaded(champion: Champion) -> tuple[Bundle, Live | None]:
    """The champion of a run, loaded once a process."""
    return champion.load()


def take_table(spec: PartSpec) -> pd.DataFrame:
    """The forecasts of a part; its files are deleted."""
    table = pd.read_parquet(spec.table)
    for path in (spec.frame, spec.table):
        path.unlink()
    return table
