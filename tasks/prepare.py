"""The prepared panel: contiguous arrays on disk, mapped into memory, and the windows of every fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch

from models.panel import Panel, Windows
from tasks.encoding import Encoding, series_starts
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import claim, fold_table, fold_windows, lay_folds
from tasks.ingested import BLOCK, IngestedPanel
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
    starts = series_starts(table)
    has_target = table["y"].notna().to_numpy()
    observed = np.add.reduceat(has_target, starts, dtype=np.int64)
    settings = derive_settings(params, observed.tolist())
    step = time_step(table["ds"], params.data.frequency)
    folds = lay_folds(settings, int(step[has_target].max()) + 1)
    first_step, train = step[starts], has_target & (step < folds[0].end)
    del step, has_target  # a row's share of memory counts from here on
    encoding = Encoding.fit(table, params, settings, train)
    with atomic_dir(root / PREPARED) as folder:
        panel = write_panel(encoding, table, folder)
        windows = {fold.name: fold_windows(fold, panel, first_step, settings) for fold in folds}
        np.save(folder / "ds.npy", table["ds"].to_numpy())
        for name, chosen in windows.items():
            np.save(folder / f"windows_{name}.npy", torch.stack([chosen.series, chosen.cutoff]).numpy())
        write_json(folder / "encoding.json", encoding.state())
        write_json(
            folder / "meta.json",
            {
                "settings": settings.__dict__,
                "folds": fold_table(folds),
                "windows": {name: len(chosen) for name, chosen in windows.items()},
                "first_step": first_step,
                "ids": table["unique_id"].iloc[starts].astype(str).tolist(),
                "frequency": params.data.frequency,
            },
        )
    return root / PREPARED


def write_panel(encoding: Encoding, table: IngestedPanel, folder: Path, rows: int = BLOCK) -> Panel:
    """Write what ``encoding.panel`` makes of the whole table, ``ARRAYS`` as ``.npy``, a block of series at a time.

    Returns the panel mapped from these files.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("static", "offsets", "observed")}
    written = 0
    with (folder / "rows.npy").open("wb") as values, (folder / "codes.npy").open("wb") as codes:
        for block in table.blocks(rows):
            panel = encoding.panel(block)
            if not written:
                _header(values, panel.rows.numpy(), len(table))
                _header(codes, panel.codes.numpy(), len(table))
            panel.rows.numpy().tofile(values)
            panel.codes.numpy().tofile(codes)
            for name, found in parts.items():
                found.append(getattr(panel, name).numpy())
            parts["offsets"][-1] = parts["offsets"][-1][:-1] + written
            written += len(block)
    parts["offsets"].append(np.array([written], dtype=np.int64))
    for name, found in parts.items():
        np.save(folder / f"{name}.npy", np.concatenate(found))
    return Panel(encoding.schema, *_mapped(folder))


def _header(stream: BinaryIO, block: np.ndarray, rows: int) -> None:
    """Begin the ``.npy`` file of an array with the columns of ``block`` and ``rows`` rows, as np.save does."""
    described = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False, "shape": (rows, *block.shape[1:])}
    np.lib.format.write_array_header_1_0(stream, described)


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
