"""The prepared panel: contiguous arrays on disk, mapped into memory, and the windows of every fold."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.panel import Panel, Windows
from tasks.arrays import ArrayFile
from tasks.encoding import Encoding
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import claim, fold_table, fold_windows, lay_folds
from tasks.ingested import BATCH, IngestedPanel
from tasks.params import Params
from tasks.settings import derive_settings

INGESTED = Path("data/ingested")
PREPARED = Path("data/prepared")
ARRAYS = ("rows", "codes", "static", "offsets", "observed")


@dataclass(frozen=True)
class Prepared:
    """A panel with its encoding, the ids and time axis that its indices stand for, and the windows of each fold."""

    panel: Panel
    encoding: Encoding
    ids: np.ndarray
    ds: np.ndarray
    windows: dict[str, Windows]
    meta: dict[str, Any]

    def fold(self, name: str, purpose: str) -> Windows:
        """Windows of a fold, for a purpose that is the fold's own (see ``tasks.folds.PURPOSES``)."""
        return self.windows[claim(name, purpose)]

    def cutoff_time(self, windows: Windows) -> np.ndarray:
        """Time of the last known step of each window, ``(n,)``."""
        return self.ds[(self.panel.offsets[windows.series] + windows.cutoff - 1).numpy()]

    def target_time(self, windows: Windows) -> np.ndarray:
        """Times of each window's horizon, ``(n, H)``."""
        start = (self.panel.offsets[windows.series] + windows.cutoff).numpy()
        return self.ds[start[:, None] + np.arange(self.panel.schema.horizon)]

    def cutoff_step(self, windows: Windows) -> torch.Tensor:
        """Cutoffs on the panel's common time axis, int64 ``(n,)``."""
        return torch.tensor(self.meta["first_step"])[windows.series] + windows.cutoff


def time_step(ds: pd.Series, frequency: str | int) -> np.ndarray:
    """Position of each time on the panel's common grid, int64, 0 for the earliest."""
    if isinstance(frequency, int):
        return (ds - ds.min()).to_numpy().astype(np.int64)
    grid = pd.date_range(ds.min(), ds.max(), freq=frequency)
    return grid.get_indexer(pd.DatetimeIndex(ds)).astype(np.int64)


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
        windows = {fold.name: fold_windows(fold, panel, first_step, settings) for fold in folds}
        for name, chosen in windows.items():
            with ArrayFile(folder / f"windows_{name}.npy", 2) as written:
                for values in (chosen.series, chosen.cutoff):
                    written.add(values.numpy()[None])
        write_json(folder / "encoding.json", encoding.state())
        write_json(
            folder / "meta.json",
            {
                "settings": settings.__dict__,
                "folds": fold_table(folds),
                "windows": {name: len(chosen) for name, chosen in windows.items()},
                "first_step": first_step,
                "ids": table.first["unique_id"].astype(str).tolist(),
                "frequency": params.data.frequency,
            },
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
    """Write what ``encoding.panel`` makes of the whole table, ``ARRAYS`` as ``.npy``, some ``rows`` rows at a time.

    ``ds.npy`` has the times of all rows. Returns the panel mapped from these files.
    """
    with ExitStack() as files:
        names = ("rows", "codes", "ds")
        written = [files.enter_context(ArrayFile(folder / f"{name}.npy", len(table))) for name in names]
        for batch in table.batches(encoding.row_columns, rows):
            for file, values in zip(written, (*encoding.values(batch), batch["ds"]), strict=True):
                file.add(values)
    np.save(folder / "static.npy", encoding.static_codes(table.first))
    np.save(folder / "offsets.npy", np.append(table.starts, len(table)).astype(np.int64))
    np.save(folder / "observed.npy", table.observed)
    return Panel(encoding.schema, *_mapped(folder))


def _mapped(folder: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS]


def load_prepared(root: Path) -> Prepared:
    """Map ``data/prepared`` into memory."""
    folder = root / PREPARED
    encoding = Encoding.from_state(read_json(folder / "encoding.json"))
    meta = read_json(folder / "meta.json")
    windows = {}
    for fold in meta["folds"]:
        pairs = torch.from_numpy(np.load(folder / f"windows_{fold['name']}.npy", mmap_mode="c"))
        windows[fold["name"]] = Windows(pairs[0], pairs[1])
    ds = np.load(folder / "ds.npy", mmap_mode="r")
    return Prepared(Panel(encoding.schema, *_mapped(folder)), encoding, np.array(meta["ids"], dtype=object), ds, windows, meta)
