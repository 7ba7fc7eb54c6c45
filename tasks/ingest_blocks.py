"""Ingest of a table too large to be held: whole series at a time, with the result of `tasks.ingest` to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.ingest import Part, notes_of, regular_panel
from tasks.ingested import BLOCK, RowGroups, series_blocks
from tasks.params import Params

LARGE = 2**20
"""Rows above which a table is read in blocks where it can be."""


def ingest_blocks(source: Path, params: Params, target: Path, rows: int = BLOCK) -> dict[str, Any] | None:
    """Do what `read_table`, `validate_panel` and ``to_parquet`` do, some ``rows`` rows of whole series at a time.

    Writes ``target`` to the byte as they do and returns their notes. None, and no file, where the table is not a Parquet
    file of more than `LARGE` rows with series one after the other in order of their names, text for these and times as
    times, and where something is wrong with it: whoever sees it whole says what.
    """
    file = _in_order(source, params)
    if file is None:
        return None
    data = params.data
    names = {data.id_column: "unique_id", data.time_column: "ds", data.target_column: "y"}
    columns, parts, before = [*names, *data.covariates], list[Part](), ""
    try:
        with RowGroups(target) as written:
            for block in series_blocks(file, data.id_column, columns, rows):
                panel, part = regular_panel(block[columns].rename(columns=names), params, for_training=True)
                names_here = [*part.lengths.index, *part.dropped]
                if not before < min(names_here) or (parts and part.static_kinds != parts[0].static_kinds):
                    raise UserError("The series are not in order, or a static column has numbers for some and text for others.")
                before = max(names_here)
                written.add(panel)
                parts.append(part)
        return notes_of(parts, params)
    except UserError:
        target.unlink(missing_ok=True)
        return None


def _in_order(source: Path, params: Params) -> pq.ParquetFile | None:
    """A Parquet file that `ingest_blocks` may take, by what its schema tells, else None."""
    try:
        file = pq.ParquetFile(source, pre_buffer=False)  # with it, all that was read stays in memory
    except (pa.ArrowException, OSError):
        return None
    data, schema = params.data, file.schema_arrow
    named = [data.id_column, data.time_column, data.target_column, *data.covariates]
    if file.metadata.num_rows <= LARGE or any(schema.names.count(name) != 1 for name in named):
        return None
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    kinds = {name: schema.field(name).type for name in named}
    text, number = (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)), pa.types.is_floating
    time = pa.types.is_integer if data.frequency == 1 else pa.types.is_timestamp
    fits = text(kinds[data.id_column]) and time(kinds[data.time_column])
    fits &= all(number(kinds[name]) for name in (data.target_column, *data.known_future, *data.past_only))
    fits &= all(number(kinds[name]) or text(kinds[name]) for name in data.static)
    return file if fits and not any(isinstance(name, str) for name in index) else None
