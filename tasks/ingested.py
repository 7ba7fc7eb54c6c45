"""The ingested panel read as it is needed: a column at a time, or whole series in blocks; never the whole table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 2**18
"""Rows that are read at a time."""
BATCH = 2**15
"""Rows of which columns are worked on at a time: they stay in the processor's cache."""


class IngestedPanel:
    """``panel.parquet`` as ``tasks.ingest`` leaves it: sorted by ``unique_id`` and ``ds``, read when asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, pre_buffer=False)  # with it, all that was read stays in memory
        self._text = [field.name for field in self._file.schema_arrow if pa.types.is_large_string(field.type)]
        self._text += [field.name for field in self._file.schema_arrow if pa.types.is_string(field.type)]
        self._path = path

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @cached_property
    def first(self) -> pd.DataFrame:
        """The first row of each series, numbered by where it lies: ``ds`` and the columns of text."""
        names = [name for name in self._file.schema_arrow.names if name in ("unique_id", "ds", *self._text)]
        file = pq.ParquetFile(self._path, read_dictionary=self._text, pre_buffer=False)
        parts, begin, before = list[pd.DataFrame](), 0, None
        for batch in file.iter_batches(batch_size=BLOCK, columns=names):
            ids = batch["unique_id"]
            codes = ids.indices.to_numpy()
            start = np.flatnonzero(codes[1:] != codes[:-1]) + 1
            if before != ids[0].as_py():
                start = np.append(0, start)
            if len(start):
                rows = batch.take(pa.array(start))
                plain = {name: rows[name].dictionary_decode() if name in self._text else rows[name] for name in names}
                parts.append(pa.table(plain).to_pandas().set_axis(begin + start, axis=0))
            begin, before = begin + len(batch), ids[-1].as_py()
        return pd.concat(parts)

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers."""
        kind = self._file.schema_arrow.field(name).type
        return pa.types.is_floating(kind) or pa.types.is_integer(kind)

    @property
    def starts(self) -> np.ndarray:
        """Row at which each series begins, int64 ``(n_series,)``."""
        return self.first.index.to_numpy(np.int64)

    @cached_property
    def observed(self) -> np.ndarray:
        """Rows of each series that have a target, int64 ``(n_series,)``; ingest puts them before those that have none."""
        missing, begin, place = [np.empty(0, dtype=np.int64)], 0, self._file.schema_arrow.names.index("y")
        for number in range(self._file.num_row_groups):
            group = self._file.metadata.row_group(number)
            known = group.column(place).statistics
            if known is None or not known.has_null_count or known.null_count:
                values = self._file.read_row_group(number, columns=["y"])["y"].to_numpy()
                missing.append(begin + np.flatnonzero(np.isnan(values)))
            begin += group.num_rows
        series = np.searchsorted(self.starts, np.concatenate(missing), side="right") - 1
        return np.diff(self.starts, append=len(self)) - np.bincount(series, minlength=len(self.starts))

    def batches(self, names: Sequence[str], rows: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Columns of numbers and times in order, at most ``rows`` rows of each at a time; NaN and NaT where empty."""
        for batch in self._file.iter_batches(batch_size=rows, columns=list(dict.fromkeys(names))):
            yield {name: batch[name].to_numpy(zero_copy_only=False) for name in names}

    def chosen(self, name: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Values of a column of numbers in the ``rows`` (bool ``(n,)``) asked for, float64, in order, a batch at a time."""
        begin = 0
        for batch in self.batches([name]):
            values = batch[name]
            yield values[rows[begin : begin + len(values)]].astype(np.float64, copy=False)
            begin += len(values)

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
