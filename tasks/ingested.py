"""The ingested panel read as it is needed: a column at a time, or whole series in blocks; never the whole table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 2**18
"""Rows that are read at a time."""


class IngestedPanel:
    """``panel.parquet`` as ``tasks.ingest`` leaves it: sorted by ``unique_id`` and ``ds``, read when asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self._text = [field.name for field in self._file.schema_arrow if pa.types.is_large_string(field.type)]
        self._text += [field.name for field in self._file.schema_arrow if pa.types.is_string(field.type)]
        self._path = path

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self._file.schema_arrow.names

    def __getitem__(self, name: str) -> pd.Series:
        """One column, whole; text as categories, since a long table repeats few values."""
        text = [name] if name in self._text else []
        return pq.read_table(self._path, columns=[name], read_dictionary=text).to_pandas()[name]

    def blocks(self, rows: int = BLOCK) -> Iterator[pd.DataFrame]:
        """The table in parts of whole series, in order, some ``rows`` rows each, or one series where that is longer."""
        return series_blocks(self._file, "unique_id", None, rows)


def series_blocks(file: pq.ParquetFile, ids: str, columns: list[str] | None, rows: int = BLOCK) -> Iterator[pd.DataFrame]:
    """``columns`` (all where None) of a table whose series, told apart by column ``ids``, lie one after the other.

    Yields parts of whole series of some ``rows`` rows each, or one series where that is longer, each numbered from 0.
    """
    kept: list[pd.DataFrame] = []
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        kept.append(batch.to_pandas())
        if kept[0][ids].iloc[0] == kept[-1][ids].iloc[-1]:
            continue  # one series so far
        frame = pd.concat(kept, ignore_index=True)
        names = frame[ids]
        last = int((names != names.shift()).to_numpy(bool, na_value=True).nonzero()[0][-1])
        kept = [frame.iloc[last:]]
        yield frame.iloc[:last]
    if kept:
        yield pd.concat(kept, ignore_index=True)


class RowGroups:
    """Writes frames, one after the other, to the Parquet file that ``to_parquet(path, index=False)`` makes of all of them."""

    ROWS = 2**20
    """Rows of a group, Arrow's own default."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, list[pa.Table]()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RowGroups:
        return self

    def add(self, frame: pd.DataFrame) -> None:
        self._waiting.append(pa.Table.from_pandas(frame, preserve_index=False))
        while sum(map(len, self._waiting)) >= self.ROWS:
            self._write(self.ROWS)

    def _write(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=self.ROWS)
        self._waiting = [table.slice(rows)] if len(table) > rows else []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._waiting:
            self._write(self.ROWS)
        if self._writer is not None:
            self._writer.close()
