"""The prepared panel: contiguous arrays on disk, mapped into memory, and the windows of every fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calendar import Calendar
from models.panel import Panel, WindowGrid, Windows
from tasks.arrays import ArrayFile
from tasks.encoding import Encoding
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import TRAIN_STRIDE, claim, drawn, fold_table, fold_windows, lay_folds
from tasks.ingested import BATCH, IngestedPanel
from tasks.params import Params
from tasks.settings import derive_settings
from tasks.time_axis import time_axis, time_step

INGESTED = Path("data/ingested")
PREPARED = Path("data/prepared")
ARRAYS = ("rows", "static", "offsets", "observed")
CALENDAR = ("reals", "codes", "first")
TIMES, GRID = "times.npy", "grid_train.npy"
READABLE = 1000
"""Series up to which files that name them all are laid out for a reader."""


@dataclass(frozen=True)
class Prepared:
    """A panel with its encoding, the ids and time axis that its indices stand for, and the windows of each fold.

    ``times`` ``(n_steps,)`` are those of the calendar's steps.
    """

    panel: Panel
    encoding: Encoding
    ids: np.ndarray
    times: np.ndarray
    windows: dict[str, Windows]
    meta: dict[str, Any]

    def fold(self, name: str, purpose: str) -> Windows:
        """Windows of a fold, for a purpose that is the fold's own (see ``tasks.folds.PURPOSES``)."""
        return self.windows[claim(name, purpose)]

    def time(self, series: torch.Tensor, row: torch.Tensor) -> np.ndarray:
        """Time of row ``row`` of each of ``series``, counted from its first; of the shape that both have together."""
        return self.times[(self.panel.calendar.first[series] + row).numpy()]

    def cutoff_time(self, windows: Windows) -> np.ndarray:
        """Time of the last known step of each window, ``(n,)``."""
        return self.time(windows.series, windows.cutoff - 1)

    def target_time(self, windows: Windows) -> np.ndarray:
        """Times of each window's horizon, ``(n, H)``."""
        steps = torch.arange(self.panel.schema.horizon)
        return self.time(windows.series[:, None], windows.cutoff[:, None] + steps)

    def cutoff_step(self, windows: Windows) -> torch.Tensor:
        """Cutoffs on the panel's common time axis, int64 ``(n,)``."""
        return torch.tensor(self.meta["first_step"])[windows.series] + windows.cutoff


def prepare(params: Params, root: Path) -> Path:
    """Encode the ingested panel and lay the folds; writes and returns ``data/prepared``.

    Raises UserError where the data is too short for the folds.
    """
    table = IngestedPanel(root / INGESTED / "panel.parquet")
    starts, observed = table.starts, table.observed
    settings = derive_settings(params, observed.tolist())
    first_step = time_step(table.first["ds"], params.data.frequency)
    folds = lay_folds(settings, int((first_step + observed).max()))
    train = leading_rows(starts, np.minimum(observed, folds[0].end - first_step).clip(min=0), len(table))
    encoding = Encoding.fit(table, params, settings, train)
    with atomic_dir(root / PREPARED) as folder:
        panel = write_panel(encoding, table, folder)
        whole = {fold.name: fold_windows(fold, panel, first_step, settings) for fold in folds}
        most = dict.fromkeys(whole, params.folds.most_windows) | {"train": None}  # which batches are drawn from
        windows = {name: drawn(found, most[name], seed) for seed, (name, found) in enumerate(whole.items())}
        grid = whole["train"]
        np.save(folder / GRID, np.stack([grid.last.numpy(), grid.count.numpy()]))
        for fold in folds[1:]:
            chosen = windows[fold.name][:]
            np.save(folder / f"windows_{fold.name}.npy", np.stack([chosen.series.numpy(), chosen.cutoff.numpy()]))
        indent = 2 if len(starts) <= READABLE else None
        write_json(folder / "encoding.json", encoding.state(), indent)
        write_json(
            folder / "meta.json",
            {
                "settings": settings.__dict__,
                "folds": fold_table(folds),
                "windows": {name: len(chosen) for name, chosen in windows.items()},
                "drawn_from": {name: len(found) for name, found in whole.items() if len(found) > len(windows[name])},
                "first_step": first_step,
                "ids": table.first["unique_id"].astype(str).tolist(),
                "frequency": params.data.frequency,
            },
            indent,
        )
    return root / PREPARED


def leading_rows(starts: np.ndarray, counts: np.ndarray, rows: int) -> np.ndarray:
    """Whether a row is among the first ``counts`` ``(n_series,)`` of the series that begin at ``starts``, bool ``(rows,)``."""
    change = np.zeros(rows + 1, dtype=np.int8)
    some = counts > 0
    change[starts[some]] += 1
    change[(starts + counts)[some]] -= 1
    return np.cumsum(change[:-1], out=change[:-1], dtype=np.int8).view(bool)


def write_panel(encoding: Encoding, table: IngestedPanel, folder: Path, rows: int = BATCH) -> Panel:
    """Write what ``encoding.panel`` makes of the whole table, a ``.npy`` an array, some ``rows`` rows at a time.

    ``times.npy`` has the times of the calendar's steps. Returns the panel mapped from these files.
    """
    with ArrayFile(folder / "rows.npy", len(table)) as written:
        for batch in table.batches(encoding.row_columns, rows):
            written.add(encoding.values(batch))
    offsets = np.append(table.starts, len(table)).astype(np.int64)
    times, first = time_axis(table.first["ds"], np.diff(offsets), encoding.frequency)
    reals, codes = (each.numpy() for each in encoding.time_features(times))
    arrays = (encoding.static_codes(table.first), offsets, table.observed, reals, codes, first)
    for name, values in zip((*ARRAYS[1:], *CALENDAR), arrays, strict=True):
        np.save(folder / f"{name}.npy", values)
    np.save(folder / TIMES, times)
    return _mapped(encoding, folder)


def _mapped(encoding: Encoding, folder: Path) -> Panel:
    arrays = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in (*ARRAYS, *CALENDAR)}
    calendar = Calendar(*(arrays.pop(name) for name in CALENDAR))
    return Panel(encoding.schema, calendar=calendar, **arrays)


def load_prepared(root: Path) -> Prepared:
    """Map ``data/prepared`` into memory."""
    folder = root / PREPARED
    encoding = Encoding.from_state(read_json(folder / "encoding.json"))
    meta = read_json(folder / "meta.json")
    grid = torch.from_numpy(np.load(folder / GRID))
    windows: dict[str, Windows] = {"train": WindowGrid(grid[0], grid[1], TRAIN_STRIDE)}
    for fold in meta["folds"][1:]:
        pairs = torch.from_numpy(np.load(folder / f"windows_{fold['name']}.npy", mmap_mode="c"))
        windows[fold["name"]] = Windows(pairs[0], pairs[1])
    ids, times = np.array(meta["ids"], dtype=object), np.load(folder / TIMES)
    return Prepared(_mapped(encoding, folder), encoding, ids, times, windows, meta)
