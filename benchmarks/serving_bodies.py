"""Histories to ask a service about: windows of the panel, and the same rows in every form that a service reads."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pandas as pd

from tasks.encoding import Encoding
from tasks.errors import UserError
from tasks.serving.bodies import static_columns

NAME = "@" * 12
"""Stands for a series' name in a fragment until a request gives it one of the same length."""
JSON, PARQUET = "application/json", "application/vnd.apache.parquet"


@dataclass(frozen=True)
class Ask:
    """One request, ready to be sent."""

    path: str
    body: bytes
    content_type: str = JSON


@dataclass(frozen=True)
class Windows:
    """Histories of ``steps`` steps that end at cutoffs drawn at random, each with the known future of ``horizon`` steps.

    ``frame`` is a panel, sorted, with what it knows of the future at the end of each series; ``ends`` are the numbers of
    the rows of ``frame`` at which histories end.
    """

    frame: pd.DataFrame
    encoding: Encoding
    steps: int
    ends: np.ndarray
    _fragments: dict[tuple[int, str], bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(cls, frame: pd.DataFrame, encoding: Encoding, count: int, seed: int, room: int = 0) -> Windows:
        """At most ``count`` windows of all series alike, each with ``room`` observed steps after it; UserError where none fits.

        A history is the shortest that the model reads whole: its context before its longest lag.
        """
        schema = encoding.schema
        steps = schema.context + max(schema.lags, default=0)
        number = frame.groupby("unique_id", sort=False).cumcount().to_numpy()
        left = frame.groupby("unique_id", sort=False).cumcount(ascending=False).to_numpy()
        after = schema.horizon + room
        fits = np.flatnonzero(frame["y"].notna().to_numpy() & (number >= steps - 1) & (left >= after))
        if not len(fits):
            raise UserError(
                f"no series of the panel has {steps + after} steps; a history that the champion reads whole has {steps}."
            )
        random = np.random.default_rng(seed)
        return cls(frame, encoding, steps, random.choice(fits, size=min(count, len(fits)), replace=False))

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """Name of the window's series in the panel."""
        return str(self.frame["unique_id"].iloc[self.ends[index]])

    def table(self, index: int, name: str, later: int = 0) -> pd.DataFrame:
        """Rows of a window that ends ``later`` steps later, the beginning being the same."""
        end = int(self.ends[index]) + later + 1
        rows = self.frame.iloc[end - later - self.steps : end + self.encoding.schema.horizon].reset_index(drop=True)
        rows.loc[self.steps + later :, ["y", *self.encoding.past_only]] = np.nan
        return rows.assign(unique_id=name)

    def series(self, rows: pd.DataFrame) -> dict[str, Any]:
        """Rows of one series as the service reads them."""
        names = (*self.encoding.known_future, *self.encoding.past_only)
        return {
            "unique_id": str(rows["unique_id"].iloc[0]),
            "ds": times(rows["ds"]),
            "y": nulls(rows["y"]),
            "covariates": {name: nulls(rows[name]) for name in names},
            "static": {name: rows[name].iloc[0] for name in static_columns(self.encoding)},
        }

    def columns(self) -> list[str]:
        static = static_columns(self.encoding)
        return ["unique_id", "ds", "y", *self.encoding.known_future, *self.encoding.past_only, *static]

    def fragment(self, index: int, form: str) -> bytes:
        """A window's part of a body in a ``form``, made once, its series named `NAME`."""
        if (index, form) not in self._fragments:
            self._fragments[index, form] = self._made(self.table(index, NAME), form)
        return self._fragments[index, form]

    def _made(self, rows: pd.DataFrame, form: str) -> bytes:
        if form == "ours":
            return orjson.dumps(self.series(rows), option=orjson.OPT_SERIALIZE_NUMPY)
        plain = rows.assign(ds=times(rows["ds"]))[self.columns()]
        columns = [nulls(plain[name]) if plain[name].dtype.kind == "f" else plain[name].tolist() for name in plain]
        return orjson.dumps(list(zip(*columns, strict=True)))[1:-1]

    def ask(self, form: str, path: str, chosen: Sequence[int], names: Sequence[str]) -> Ask:
        """One request about the ``chosen`` windows, with ``names`` for their series, in any ``form``."""
        if form == "parquet":
            stream = io.BytesIO()
            tables = [self.table(index, name) for index, name in zip(chosen, names, strict=True)]
            pd.concat(tables)[self.columns()].to_parquet(stream, index=False)
            return Ask(path, stream.getvalue(), PARQUET)
        parts = [
            self.fragment(index, form).replace(NAME.encode(), name.encode()) for index, name in zip(chosen, names, strict=True)
        ]
        if form == "ours":
            return Ask(path, b'{"series":[' + b",".join(parts) + b"]}")
        header = orjson.dumps(self.columns())
        return Ask(path, b'{"dataframe_split":{"columns":' + header + b',"data":[' + b",".join(parts) + b"]}}")


def distinct(windows: Windows, form: str, path: str, series: int, seed: int = 0) -> Iterator[Ask]:
    """Requests about ``series`` windows each, without end and no two alike: every series of every request has its own name."""
    random, number = np.random.default_rng(seed), 0
    while True:
        chosen = random.choice(len(windows), size=series, replace=len(windows) < series).tolist()
        names = [f"s{seed % 1000:03d}{number + place:08d}" for place in range(series)]
        number += series
        yield windows.ask(form, path, chosen, names)


def times(values: pd.Series) -> list[Any]:
    """Times as JSON has them."""
    return values.tolist() if values.dtype.kind != "M" else values.dt.strftime("%Y-%m-%dT%H:%M:%S").tolist()


def nulls(values: pd.Series) -> list[float | None]:
    """Numbers, None in place of NaN."""
    return [None if np.isnan(value) else value for value in values.astype(np.float64).tolist()]
