"""The ingested panel read as it is needed: a column at a time, or whole series in blocks; never the whole table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.encoding import series_starts

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
        kept: list[pd.DataFrame] = []
        for batch in self._file.iter_batches(batch_size=rows):
            kept.append(batch.to_pandas())
            if kept[0]["unique_id"].iloc[0] == kept[-1]["unique_id"].iloc[-1]:
                continue  # one series so far
            frame = pd.concat(kept, ignore_index=True)
            last = int(series_starts(frame)[-1])
            kept = [frame.iloc[last:]]
            yield frame.iloc[:last]
        if kept:
            yield pd.concat(kept, ignore_index=True)
