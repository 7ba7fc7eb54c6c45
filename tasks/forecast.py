"""Forecasts from the registered champion: the table that users receive, made and written a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from models.uncertainty.adaptive import Method
from tasks.bundle import Bundle, Live
from tasks.encoding import series_starts
from tasks.errors import UserError
from tasks.files import atomic_path
from tasks.future import NothingYet, with_future_rows
from tasks.ingest import validate_panel
from tasks.ingested import IngestedPanel, RowGroups
from tasks.monitor_state import MONITOR, Tracker
from tasks.predict import BATCH
from tasks.prepare import INGESTED
from tasks.registry import load_version, version_behind
from tasks.sampling import use_sampler
from tasks.sources import read_table

PANEL = INGESTED / "panel.parquet"
ROWS = 2**20
"""Rows of the panel that are read and forecast from at a time."""


def forecast_tables(
    root: Path,
    name: str,
    alias: str,
    data: Path | None = None,
    cutoff: str | None = None,
    adaptive: Method = "aci",
    sampler: str = "ancestral",
    compiled: bool = False,
) -> tuple[Iterator[pd.DataFrame], Bundle]:
    """Forecast from the end of every series of the ingested panel, or of ``data``, or as of ``cutoff``.

    Yields the table in parts, of whole series in order: of a large panel never more is in memory than a part needs.
    Forecasts from the end of the ingested panel have live intervals as well, where `weatherglass monitor` has begun to keep
    them by the method ``adaptive``. ``sampler`` says how members that sample paths of bins draw them, ``compiled`` whether in
    compiled steps.

    Raises UserError, some of it when parts are asked for, where there is no such model, the data is not valid, a future
    covariate is missing, or the sampler wants drafts that there are not.
    """
    version, digest = version_behind(name, alias)
    bundle = load_version(name, version, digest)
    if sampler != "ancestral":
        use_sampler(root, f"{name}-{version}", digest, bundle, sampler, compiled)
    if data is None:
        live = live_intervals(root, f"{name}-{version}", digest, bundle, adaptive) if cutoff is None else None
        return forecast_panel(bundle, panel_file(root), live, cutoff), bundle
    frame, _ = validate_panel(read_table(data, bundle.params), bundle.params, for_training=False)
    return iter([bundle.forecast(with_future_rows(frame, bundle.encoding, cutoff))]), bundle


def forecast_table(*given: Any, **options: Any) -> tuple[pd.DataFrame, Bundle]:
    """As `forecast_tables`, the table whole."""
    tables, bundle = forecast_tables(*given, **options)
    return joined(list(tables)), bundle


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of parts."""
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def forecast_panel(
    bundle: Bundle, path: Path, live: Live | None = None, cutoff: Any = None, rows: int = ROWS
) -> Iterator[pd.DataFrame]:
    """Forecast every series of an ingested panel, some ``rows`` rows at a time; yields the table in parts.

    Random states are those of the whole table at once, so that parts together are what `Bundle.forecast` makes of it. In a
    panel of more rows than that, histories are cut to what the bundle looks back to. The gate takes distances a part at a time,
    which the last digits of ``ood_score`` may show.
    """
    for frame, before in panel_parts(bundle, path, cutoff, rows):
        yield bundle.forecast(frame, live, before)


def panel_parts(bundle: Bundle, path: Path, cutoff: Any = None, rows: int = ROWS) -> Iterator[tuple[pd.DataFrame, int]]:
    """Histories and rows to forecast of an ingested panel, in parts, each with the number of series before it.

    Where the panel has more than ``rows`` rows, parts are of whole batches of series, but for the last.
    """
    before, schema = 0, bundle.encoding.schema
    table = IngestedPanel(path)
    cut = len(table) > rows and bundle.sets is None  # bins of a new series come from all of its history
    frames = _with_future(table, bundle, cutoff, schema.context + schema.reference if cut else None, rows)
    for frame in whole_batches(frames, BATCH) if len(table) > rows else [joined(list(frames))]:
        yield frame, before
        before += len(series_starts(frame))


def _with_future(table: IngestedPanel, bundle: Bundle, cutoff: Any, newest: int | None, rows: int) -> Iterator[pd.DataFrame]:
    """Histories and the rows to forecast, block by block; raises NothingYet where no block has any."""
    begins, some = list[Any](), False
    for block in table.blocks(rows):
        try:
            yield with_future_rows(block, bundle.encoding, cutoff, newest)
            some = True
        except NothingYet as nothing:
            begins.append(nothing.begins)
    if not some:
        raise NothingYet(cutoff, min(begins))


def whole_batches(frames: Iterable[pd.DataFrame], size: int) -> Iterator[pd.DataFrame]:
    """The same rows in order, in parts that have a multiple of ``size`` series, but for the last."""
    waiting, series = list[pd.DataFrame](), 0
    for frame in frames:
        waiting.append(frame)
        series += len(series_starts(frame))
        if series >= size:
            whole = joined(waiting)
            end = [*series_starts(whole), len(whole)][series // size * size]
            yield whole.iloc[:end]
            waiting, series = ([whole.iloc[end:].reset_index(drop=True)] if end < len(whole) else []), series % size
    if waiting:
        yield joined(waiting)


def panel_file(root: Path) -> Path:
    """The ingested panel's file; raises UserError where there is none."""
    if not (root / PANEL).exists():
        raise UserError(f"{PANEL} is not there; run `weatherglass run` first or give --data FILE.")
    return root / PANEL


def ingested_panel(root: Path, series: str | None = None) -> pd.DataFrame:
    """The panel as `weatherglass ingest` has left it, or one series of it; raises UserError where there is none."""
    return pd.read_parquet(panel_file(root), filters=None if series is None else [("unique_id", "==", series)])


def live_intervals(root: Path, name: str, digest: str, bundle: Bundle, adaptive: Method) -> Live | None:
    """What gives the live intervals of a version, ``name`` being ``<model>-<version>``; None where the monitor keeps none."""
    if bundle.reference is None or not (root / MONITOR / name / "state.json").exists():
        return None
    return Tracker.open(root, name, digest, bundle, bundle.reference, adaptive).interval


def check_output(output: Path) -> None:
    """Raise UserError where a forecast cannot be written to ``output``, before any work is done."""
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output is '{output}'; its name must end in .parquet or .csv.")


@contextmanager
def forecast_file(output: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield what adds a part to Parquet or CSV, by the ending of ``output``; the file is whole or not there.

    The same parts together give the same bytes. Those of Parquet are written as they come, those of CSV at the end, since how
    times are written depends on all of them.
    """
    check_output(output)
    with atomic_path(output) as temporary:
        if output.suffix == ".parquet":
            with RowGroups(temporary) as written:
                yield written.add
        else:
            tables: list[pd.DataFrame] = []
            yield tables.append
            joined(tables).to_csv(temporary, index=False)


def write_forecast(table: pd.DataFrame, output: Path) -> None:
    """Write Parquet or CSV by the ending of ``output``, atomically; the same table gives the same bytes."""
    with forecast_file(output) as add:
        add(table)
