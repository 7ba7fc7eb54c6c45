"""What a new ingest changes of the history that an earlier one had read: values that are gone, and values that are others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tasks.files import read_json
from tasks.panel_columns import as_text, label

if TYPE_CHECKING:
    from tasks.params import Params

KEY = ["unique_id", "ds"]


def history_change(folder: Path, panel: pd.DataFrame, params: Params) -> str | None:
    """Say in one sentence how ``panel`` differs from the one in ``folder`` where both should tell the same past.

    Rows that are new, and rows of the future, are no change. None where nothing differs, where there is no earlier panel,
    or where that came from another source, frequency or set of columns and so is not comparable.
    """
    try:
        meta, before = read_json(folder / "meta.json"), pd.read_parquet(folder / "panel.parquet")
    except (OSError, ValueError):
        return None
    data = params.data
    same = (data.source, data.path, data.frequency) == tuple(meta.get(key) for key in ("source", "path", "frequency"))
    values = ["y", *data.past_only]
    if not same or not {*KEY, *values} <= set(before.columns):
        return None
    before = before[before["y"].notna()]
    now = panel.loc[panel["y"].notna(), [*KEY, *values]]
    both = before.merge(now, on=KEY, how="left", suffixes=("", " now"), indicator=True)
    gone = both["_merge"] == "left_only"
    other = ~gone & pd.DataFrame({name: _differs(both[name], both[f"{name} now"]) for name in values}).any(axis=1)
    told = []
    for what, mask in (("are gone", gone), ("have other values", other)):
        if mask.any():
            row = both[mask].iloc[0]
            first = f"first: {label('unique_id', params)} {row['unique_id']!r} at {as_text(row['ds'])}"
            told.append(f"{mask.sum()} {what} ({first})")
    if not told:
        return None
    rows = f"of {len(before)} rows of history read by the last ingest"
    return f"{rows}, {' and '.join(told)}: was the source shortened or rewritten?"


def _differs(before: pd.Series, now: pd.Series) -> np.ndarray:
    """Where two columns of numbers differ, bool ``(n,)``; empty equals empty."""
    old, new = before.to_numpy(dtype=np.float64), now.to_numpy(dtype=np.float64)
    return ~((old == new) | (np.isnan(old) & np.isnan(new)))
