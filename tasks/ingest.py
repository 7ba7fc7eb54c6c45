"""Ingest: a long table becomes a checked, regular panel, or one sentence says why it cannot."""

from __future__ import annotations

import datetime as dt
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tasks.errors import UserError
from tasks.files import atomic_dir, file_md5, write_json
from tasks.history_change import history_change
from tasks.panel_columns import as_text, label, typed_columns
from tasks.params import Params, derive_settings
from tasks.sources import read_chicago, read_table

__all__ = ["ingest", "read_table", "to_stderr", "validate_panel"]

CLOCKS_CHANGE_BEFORE = 4
"""Hour of the day before which clocks are set forward or back, wherever they are."""


def to_stderr(sentence: str) -> None:
    """Print a warning."""
    print(f"warning: {sentence}", file=sys.stderr)


def ingest(params: Params, root: Path, warn: Callable[[str], None] = to_stderr) -> Path:
    """Read the source that ``params.data`` names and write ``root/data/ingested``: ``panel.parquet`` and ``meta.json``.

    The panel has ``unique_id`` (text), ``ds`` (datetime64[ns] or int64), ``y`` (float64) and the covariates, sorted by
    series and time, regular, with ``y`` empty in the future rows at the end of a series. Where the panel that was there
    before tells another past, ``warn`` is given the sentence that says so.

    Raises
    ------
    UserError
        When the data breaks a rule of ``validate_panel`` or cannot be read.
    """
    from tasks.ingest_blocks import ingest_blocks

    data = params.data
    folder = root / "data" / "ingested"
    with atomic_dir(folder) as temporary:
        path = temporary / "panel.parquet"
        notes = ingest_blocks(root / str(data.path), params, path) if data.source == "file" else None
        if notes is None:  # a table of moderate size, or one that must be seen whole
            panel, notes = validate_panel(_read(params, root), params)
            panel.to_parquet(path, index=False)
            del panel
        if (folder / "meta.json").exists() and (change := history_change(folder, pd.read_parquet(path), params)) is not None:
            warn(change)
        meta = notes | {
            "source": data.source,
            "path": data.path,
            "source_md5": None if data.path is None else file_md5(root / data.path),
            "frequency": data.frequency,
            "horizon": data.horizon,
            "roles": {role: list(getattr(data, role)) for role in ("known_future", "past_only", "static")},
            "columns": {"unique_id": data.id_column, "ds": data.time_column, "y": data.target_column},
            "count": data.count,
            "holidays": data.holidays,
            "sha256": _sha256(path),
        }
        write_json(temporary / "meta.json", meta)
    return folder


def _read(params: Params, root: Path) -> pd.DataFrame:
    data = params.data
    return read_chicago(params) if data.source == "chicago" else read_table(root / str(data.path), params)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def validate_panel(frame: pd.DataFrame, params: Params, for_training: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check a table from ``read_table`` and make it a regular panel.

    Rows after the last target of a series are future rows: ``y`` and past-only columns are empty there, known-future
    columns are filled, and at most ``horizon`` of them are kept. Rows before the first target are left out.

    Parameters
    ----------
    frame : columns ``unique_id, ds, y`` and the covariates, in any order of rows.
    params : column roles, frequency, ``gaps`` and (in training) ``until`` are taken from here.
    for_training : False for new history to forecast from: ``until`` is not applied, and a series may be constant and
        of any length.

    Returns
    -------
    The panel, and notes that JSON can hold: counts, first and last date of the target, steps filled by series, series
    dropped, series too short for a window of their own, and the fewest future rows of a series.

    Raises
    ------
    UserError
        Naming the column and row, or the series and time, and what would be right.
    """
    panel, part = regular_panel(frame, params, for_training)
    return panel, notes_of([part], params, for_training)


class Part(NamedTuple):
    """What is noted of some series: rows of history of each (by name), first and last time of the target, and the rest."""

    lengths: pd.Series
    first: Any
    last: Any
    filled: dict[str, int]
    dropped: list[str]
    future_rows: int
    static_kinds: dict[str, str]


def regular_panel(frame: pd.DataFrame, params: Params, for_training: bool) -> tuple[pd.DataFrame, Part]:
    """Whole series of a table, checked and regular, and what is noted of them; raises as `validate_panel` does."""
    panel, static_kinds = typed_columns(frame, params)
    panel = _sorted(panel)
    _refuse_duplicates(panel, params)
    _refuse_changing_statics(panel, params)
    panel["step"] = _steps(panel, params)
    until = params.data.until if for_training else None
    if until is not None:
        panel.loc[panel["ds"] > _last_moment(until), "y"] = np.nan
    panel, dropped = _split_history(panel, params, until is not None)
    panel, filled = _fill_gaps(panel, params)
    history = panel.loc[panel["y"].notna(), ["unique_id", "ds", "y"]]
    lengths = history.groupby("unique_id", sort=True)["y"].size()
    future_rows = int((panel.groupby("unique_id")["y"].size() - lengths).min())
    if for_training:
        _refuse_constant(history, params)
    part = Part(lengths, history["ds"].min(), history["ds"].max(), filled, dropped, future_rows, static_kinds)
    columns = ["unique_id", "ds", "y", *params.data.covariates]
    return panel[columns].reset_index(drop=True), part


def notes_of(parts: list[Part], params: Params, for_training: bool = True) -> dict[str, Any]:
    """What `validate_panel` notes of a panel that was checked in ``parts``; raises UserError where it is too short."""
    lengths = pd.concat([part.lengths for part in parts])
    short: list[str] = []
    if for_training:
        settings = derive_settings(params, lengths.tolist())
        short = lengths.index[lengths < settings.context + settings.horizon].tolist()
    return {
        "n_series": len(lengths),
        "n_rows": int(lengths.sum()),
        "first": as_text(min(part.first for part in parts)),
        "last": as_text(max(part.last for part in parts)),
        "gaps_filled": {name: count for part in parts for name, count in part.filled.items()},
        "dropped_series": [name for part in parts for name in part.dropped],
        "short_series": short,
        "future_rows": min(part.future_rows for part in parts),
        "static_kinds": parts[0].static_kinds,
    }


def _sorted(panel: pd.DataFrame) -> pd.DataFrame:
    """Sort by series and time, rows of one time in the order of the table; no copy where they lie so."""
    ids, ds = panel["unique_id"], panel["ds"].to_numpy()
    start = _starts(ids)
    names = ids[start].to_numpy()
    if (names[1:] > names[:-1]).all() and ((ds[1:] >= ds[:-1]) | start[1:]).all():
        return panel
    return panel.sort_values(["unique_id", "ds"], kind="stable")


def _starts(ids: pd.Series) -> np.ndarray:
    """Where a row has another series than the one before it, bool ``(n,)``."""
    return (ids != ids.shift()).to_numpy(bool, na_value=True)


def _refuse_duplicates(panel: pd.DataFrame, params: Params) -> None:
    ds = panel["ds"]
    twice = panel.index[(ds == ds.shift()).to_numpy() & ~_starts(panel["unique_id"])]
    if len(twice):
        row = panel.loc[twice.min()]
        raise UserError(
            f"Row {twice.min()} repeats {_where(row, params)}; a series has one row a time"
            f"{_clocks(row['ds'], params)} ({len(twice)} such {'row' if len(twice) == 1 else 'rows'})."
        )


def _refuse_changing_statics(panel: pd.DataFrame, params: Params) -> None:
    start = np.flatnonzero(_starts(panel["unique_id"]))
    first = np.repeat(start, np.diff(start, append=len(panel))) if params.data.static else start
    for column in params.data.static:
        values = panel[column]
        codes = pd.factorize(values)[0]
        other = panel.index[codes != codes[first]]
        if len(other):
            row, elsewhere = panel.loc[other.min()], values.iloc[first[panel.index.get_loc(other.min())]]
            raise UserError(
                f"Column {column}, row {other.min()} holds {row[column]!r} where {_where(row, params)} has "
                f"{elsewhere!r} elsewhere; a static column has one value a series."
            )


def _refuse_constant(history: pd.DataFrame, params: Params) -> None:
    y = history.groupby("unique_id")["y"]
    spread, size = y.nunique(), y.size()
    constant = spread.index[(spread == 1) & (size > 1)]
    if len(constant):
        name = constant[0]
        raise UserError(
            f"Column {label('y', params)} of {label('unique_id', params)} {name!r} is {y.first()[name]:g} throughout; "
            f"a series must vary to be learnt from, so leave it out ({len(constant)} such series)."
        )


def _steps(panel: pd.DataFrame, params: Params) -> np.ndarray:
    """Return each row's position on the frequency's grid, int64; positions of one series differ by whole steps."""
    frequency = params.data.frequency
    if isinstance(frequency, int):
        return panel["ds"].to_numpy()
    offset = pd.tseries.frequencies.to_offset(frequency)
    if isinstance(offset, pd.offsets.Tick | pd.offsets.Day):
        step = pd.Timedelta(offset.n, "D") if isinstance(offset, pd.offsets.Day) else pd.Timedelta(offset)
        position = panel["ds"].astype("int64")
        width = int(step / pd.Timedelta(1, "ns"))
        known = pd.Series(True, index=panel.index)
    else:
        start, end = panel["ds"].min().normalize(), panel["ds"].max()
        grid = pd.date_range(start, end, freq=offset.base).as_unit("ns")
        position = pd.Series(grid.get_indexer(pd.DatetimeIndex(panel["ds"])), index=panel.index)
        width, known = offset.n, position >= 0
    since = position - position.where(known).groupby(panel["unique_id"]).transform("min").fillna(0).astype("int64")
    wrong = panel.index[~known | (since % width != 0)]
    if len(wrong):
        row = panel.loc[wrong.min()]
        raise UserError(
            f"Row {wrong.min()}, {_where(row, params)}, is off the grid of data.frequency {frequency}"
            f"{_looks_like(panel, row['unique_id'], frequency)}."
        )
    return (since // width).to_numpy()


def _looks_like(panel: pd.DataFrame, name: str, frequency: str) -> str:
    times = pd.DatetimeIndex(panel.loc[panel["unique_id"] == name, "ds"].unique())[:50]
    guess = pd.infer_freq(times) if len(times) >= 3 else None
    return f"; the series looks like {guess}" if guess and guess != frequency else "; mend the row or the frequency"


def _last_moment(until: dt.date | int) -> Any:
    """Return the last time of the target to use: a date means its whole day."""
    if isinstance(until, dt.date) and not isinstance(until, dt.datetime):
        return pd.Timestamp(until) + pd.Timedelta(1, "D") - pd.Timedelta(1, "ns")
    return until if isinstance(until, int) else pd.Timestamp(until)


def _split_history(panel: pd.DataFrame, params: Params, until_applies: bool) -> tuple[pd.DataFrame, list[str]]:
    """Drop rows before the first target and beyond the horizon, and blank what a future row cannot know."""
    observed = panel["step"].where(panel["y"].notna()).groupby(panel["unique_id"])
    first, last = observed.transform("min"), observed.transform("max")
    silent = panel.loc[last.isna(), "unique_id"].unique().tolist()
    if silent and (not until_applies or last.isna().all()):
        before = f" up to data.until {params.data.until}" if until_applies else ""
        raise UserError(
            f"{label('unique_id', params)} {silent[0]!r} has no value in column {label('y', params)}{before}; each "
            f"series needs some ({len(silent)} such series)."
        )
    panel = panel.assign(future=panel["step"] > last)
    kept = (panel["step"] >= first) & (panel["step"] <= last + params.data.horizon)
    panel = panel if kept.all() else panel[kept]
    if params.data.past_only and panel["future"].any():
        panel.loc[panel["future"], list(params.data.past_only)] = np.nan
    return panel, silent


def _fill_gaps(panel: pd.DataFrame, params: Params) -> tuple[pd.DataFrame, dict[str, int]]:
    """Find missing steps, targets and past-only values inside the history; refuse or fill them as data.gaps says.

    Missing future rows are added where nothing needs to be known of them, and refused otherwise.
    """
    data = params.data
    watched = ["y", *data.past_only]
    stride = panel.groupby("unique_id")["step"].diff().fillna(1)
    after_future = stride.where(panel["future"], 1) > 1
    if data.known_future and after_future.any():
        row = panel[after_future].iloc[0]
        raise UserError(
            f"A future row before {_where(row, params)} is missing; future rows follow the last "
            f"{label('y', params)} without a gap, with {', '.join(data.known_future)} filled."
        )
    lost = (stride.where(~panel["future"], 1) - 1).groupby(panel["unique_id"]).sum()
    empty = (panel[watched].isna().any(axis=1) & ~panel["future"]).groupby(panel["unique_id"]).sum()
    missing = (lost + empty).astype("int64")
    count = panel.groupby("unique_id")["y"].count()
    sparse = lost.index[lost > count]
    if len(sparse):
        raise UserError(
            f"{label('unique_id', params)} {sparse[0]!r} lacks {int(lost[sparse[0]])} steps of data.frequency "
            f"{data.frequency} and has {int(count[sparse[0]])}; is the frequency right?"
        )
    filled = {str(name): int(number) for name, number in missing.items() if number}
    if filled and data.gaps == "error":
        raise UserError(_first_gap(panel, stride, watched, sum(filled.values()), len(filled), params))
    broken = set(filled) | set(panel.loc[after_future, "unique_id"])
    if not broken:
        return panel, filled
    parts = [_regular(part, params) if name in broken else part for name, part in panel.groupby("unique_id", sort=True)]
    return pd.concat(parts, ignore_index=True), filled


def _first_gap(panel: pd.DataFrame, stride: pd.Series, watched: list[str], total: int, series: int, params: Params) -> str:
    mend = "set data.gaps to interpolate, zero or forward in params.yaml, or mend the data"
    count = f"{total} {'step' if total == 1 else 'steps'} in {series} series"
    for column in watched:
        hole = panel.index[panel[column].isna() & ~panel["future"]]
        if len(hole):
            row = panel.loc[hole.min()]
            return (
                f"Column {label(column, params)}, row {hole.min()} ({_where(row, params)}) is empty inside its series; "
                f"{mend} ({count})."
            )
    after = panel[stride.where(~panel["future"], 1) > 1].iloc[0]
    earlier = panel[(panel["unique_id"] == after["unique_id"]) & (panel["ds"] < after["ds"])].iloc[-1]
    frequency = params.data.frequency
    step = frequency if isinstance(frequency, int) else pd.tseries.frequencies.to_offset(frequency)
    gone = after.copy()
    gone["ds"] = earlier["ds"] + step
    return f"The row of {_where(gone, params)} is missing; {mend}{_clocks(gone['ds'], params)} ({count})."


def _clocks(time: Any, params: Params) -> str:
    """What else may be the matter with a repeated or missing time: a clock change, in times that do not tell their zone."""
    frequency = params.data.frequency
    within_day = isinstance(frequency, str) and isinstance(pd.tseries.frequencies.to_offset(frequency), pd.offsets.Tick)
    if not within_day or time.hour >= CLOCKS_CHANGE_BEFORE:
        return ""
    return "; if clocks changed then, write times in UTC or with their offset, as 2024-10-27 02:00+01:00"


def _regular(part: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Return one series with every step present and filled as data.gaps says; future values stay empty."""
    data = params.data
    first, last = part["ds"].iloc[0], part["ds"].iloc[-1]
    if isinstance(data.frequency, int):
        grid: Any = pd.RangeIndex(first, last + 1)
    else:
        grid = pd.date_range(first, last, freq=data.frequency).as_unit("ns")
    end = part.loc[part["y"].notna(), "ds"].iloc[-1]
    whole = part.set_index("ds").reindex(grid)
    whole["unique_id"] = part["unique_id"].iloc[0]
    for column in data.static:
        whole[column] = part[column].iloc[0]
    history = whole.index <= end
    for column in ("y", *data.past_only, *data.known_future):
        values = whole.loc[history, column]
        if data.gaps == "zero":
            values = values.fillna(0.0)
        elif data.gaps == "forward":
            values = values.ffill()
        else:
            values = _interpolated(values, whole_numbers=data.count and column == "y")
        if values.isna().any():
            raise UserError(
                f"Column {label(column, params)} of {label('unique_id', params)} {whole['unique_id'].iloc[0]!r} is "
                f"empty at {as_text(values.index[values.isna()][0])} with no value to fill from "
                f"(data.gaps {data.gaps}); give its first value."
            )
        whole.loc[history, column] = values
    whole["future"] = ~history
    return whole.rename_axis("ds").reset_index()


def _interpolated(values: pd.Series, whole_numbers: bool) -> pd.Series:
    """Fill along straight lines between neighbours, and with the nearest value at the ends."""
    known = np.flatnonzero(values.notna())
    if not len(known):
        return values
    line = np.interp(np.arange(len(values)), known, values.iloc[known].to_numpy())
    return values.fillna(pd.Series(np.round(line) if whole_numbers else line, index=values.index))


def _where(row: pd.Series, params: Params) -> str:
    return f"{label('unique_id', params)} {row['unique_id']!r} at {as_text(row['ds'])}"
