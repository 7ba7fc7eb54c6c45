"""The columns of a long table: their types, ranges and nullability, checked against a pandera schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tasks.errors import UserError
from tasks.params import Params

LARGEST = 1e30
"""Values beyond this overflow in 32-bit arithmetic."""
_FINITE = "a finite number of at most 1e30 in size"
_COUNT = "a whole number of 0 or more (data.count is true)"


def label(column: str, params: Params) -> str:
    """Return the user's name of a panel column."""
    data = params.data
    return {"unique_id": data.id_column, "ds": data.time_column, "y": data.target_column}.get(column, column)


def as_text(time: Any) -> str | int:
    """Return a time as people write it: a date without its midnight, or a whole number."""
    if isinstance(time, pd.Timestamp):
        return str(time.date() if time == time.normalize() else time)
    return int(time)


def typed_columns(frame: pd.DataFrame, params: Params) -> tuple[pd.DataFrame, dict[str, str]]:
    """Convert every column to its type and check its values.

    Returns
    -------
    The frame, indexed by row number from 1, with ``unique_id`` text, ``ds`` datetime64[ns] or int64, numbers float64
    and static columns float64 or text; and which of the two each static column is ("number" or "category").

    Raises
    ------
    UserError
        Naming the column and row of the first value that does not fit.
    """
    data = params.data
    if frame.empty:
        raise UserError("The table has no rows; it must hold at least one row a step.")
    table = frame.set_axis(pd.RangeIndex(1, len(frame) + 1), axis=0)
    typed = pd.DataFrame(index=table.index)
    typed["unique_id"] = _names(table["unique_id"], data.id_column)
    typed["ds"] = typed_times(table["ds"], params)
    for column in ("y", *data.known_future, *data.past_only):
        typed[column] = _numbers(table[column], label(column, params))
    kinds = {}
    for column in data.static:
        numbers = by_value(table[column], lambda values: pd.to_numeric(values, errors="coerce").astype("float64"))
        category = bool((numbers.isna() & table[column].notna()).any())
        _refuse_empty(table[column], column)
        typed[column] = table[column].astype("str") if category else numbers
        kinds[column] = "category" if category else "number"
    _check_schema(typed, params, kinds)
    return typed, kinds


def _check_schema(typed: pd.DataFrame, params: Params, kinds: dict[str, str]) -> None:
    """Raise for the first value that does not fit; the schema is asked only of a table that does not plainly fit."""
    data = params.data
    needed = [*data.known_future, *(column for column, kind in kinds.items() if kind == "number")]
    may_be_empty = ["y", *data.past_only]
    if data.count or not all(
        plainly_fits(typed[column].to_numpy(), nullable=column in may_be_empty) for column in (*needed, *may_be_empty)
    ):
        check_by_schema(typed, params, kinds)


def plainly_fits(values: np.ndarray, nullable: bool) -> bool:
    """Whether all of ``values`` (float64) are at most `LARGEST` in size, and none is empty unless ``nullable``; no copies."""
    least, most = (np.fmin, np.fmax) if nullable else (np.minimum, np.maximum)  # the latter pass an empty value on
    low, high = least.reduce(values), most.reduce(values)
    return bool(low >= -LARGEST and high <= LARGEST)


def check_by_schema(typed: pd.DataFrame, params: Params, kinds: dict[str, str]) -> None:
    """Check a typed table against a pandera schema; what `plainly_fits` lets through it lets through too.

    Raises UserError for the first row with a value that does not fit.
    """
    import pandera.pandas as pa

    finite = pa.Check(lambda values: values.abs() <= LARGEST, error=_FINITE)
    count = pa.Check(lambda values: (values >= 0) & (values == np.floor(values)), error=_COUNT)
    data = params.data
    columns = {
        "unique_id": pa.Column("str"),
        "ds": pa.Column("int64" if data.frequency == 1 else "datetime64[ns]"),
        "y": pa.Column(float, [finite, count] if data.count else [finite], nullable=True),
    }
    columns |= {column: pa.Column(float, finite) for column in data.known_future}
    columns |= {column: pa.Column(float, finite, nullable=True) for column in data.past_only}
    for column, kind in kinds.items():
        columns[column] = pa.Column("str") if kind == "category" else pa.Column(float, finite)
    try:
        pa.DataFrameSchema(columns).validate(typed, lazy=True)
    except pa.errors.SchemaErrors as errors:
        first = errors.failure_cases.sort_values("index", kind="stable").iloc[0]
        column, row, found = first["column"], int(first["index"]), first["failure_case"]
        right = "filled in every row" if first["check"] == "not_nullable" else first["check"]
        shown = "is empty" if first["check"] == "not_nullable" else f"holds {found:g}"
        raise UserError(f"Column {label(column, params)}, row {row} {shown}; it must be {right}.") from None


def _names(column: pd.Series, name: str) -> pd.Series:
    _refuse_empty(column, name)
    return column.astype("str")


def _refuse_empty(column: pd.Series, name: str) -> None:
    blank = column.isna()
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
        blank |= by_value(column.astype("str"), lambda values: (values.str.strip() == "").astype("float64")) == 1.0
    empty = column.index[blank]
    if len(empty):
        raise UserError(f"Column {name}, row {empty[0]} is empty; it must be filled in every row.")


def by_value(column: pd.Series, work: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """``work(column)``, numbers, done once for each value where they are text, of which a long table repeats few."""
    if not isinstance(column.dtype, pd.StringDtype):
        return work(column)
    codes, values = pd.factorize(column)
    found = work(pd.Series(values, dtype=column.dtype)).to_numpy(np.float64)
    return pd.Series(np.append(found, np.nan)[codes], index=column.index)  # an empty value has the code -1


def _numbers(column: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce") if column.dtype != bool else column
    numbers = numbers.astype("float64")
    wrong = column.index[numbers.isna() & column.notna()]
    if len(wrong):
        raise UserError(f"Column {name}, row {wrong[0]} holds {column[wrong[0]]!r}; it must be a number or empty.")
    return numbers


def typed_times(column: pd.Series, params: Params) -> pd.Series:
    """Return whole numbers (int64) with frequency 1, else times (datetime64[ns]) without a zone.

    Times with a zone become UTC where steps are shorter than a day, and keep their own date otherwise.
    """
    name, frequency = params.data.time_column, params.data.frequency
    _refuse_empty(column, name)
    dates = pd.api.types.is_datetime64_any_dtype(column)
    if isinstance(frequency, int):
        if dates:
            whole = pd.Series(np.nan, column.index)
        else:  # whole numbers stay as they are; text, booleans and the rest are read as text
            text = column if pd.api.types.is_integer_dtype(column) else column.astype("str")
            whole = pd.to_numeric(text, errors="coerce")
        wrong = column.index[whole.isna() | (whole % 1 != 0) | (whole.abs() > 2**53)]
        if len(wrong):
            raise UserError(
                f"Column {name}, row {wrong[0]} holds {str(column[wrong[0]])!r}; with data.frequency 1 it must be a "
                "whole number (dates need an alias such as D)."
            )
        return whole.astype("int64")
    within_day = isinstance(pd.tseries.frequencies.to_offset(frequency), pd.offsets.Tick)
    times = column if dates else _parsed(column.astype("str"), name, within_day)
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        times = times.dt.tz_convert(None) if within_day else times.dt.tz_localize(None)
    far = times.index[(times < pd.Timestamp("1678-01-01")) | (times > pd.Timestamp("2261-12-31"))]
    if len(far):
        raise UserError(f"Column {name}, row {far[0]} holds {times[far[0]]}; it must lie between 1678 and 2261.")
    return times.astype("datetime64[ns]")


def _parsed(text: pd.Series, name: str, utc: bool) -> pd.Series:
    from pandas.tseries.api import guess_datetime_format

    right = "write dates as 2016-08-14 or 2016-08-14 13:00, or set data.frequency to 1 for whole numbers"
    pattern = guess_datetime_format(text.iloc[0])
    if pattern is None:
        raise UserError(f"Column {name}, row {text.index[0]} holds {text.iloc[0]!r}, not a date; {right}.")
    try:
        times = pd.to_datetime(text, format=pattern, errors="coerce", utc=utc and "%z" in pattern)
    except ValueError:
        raise UserError(f"Column {name} mixes time zones; write all times in one zone.") from None
    wrong = text.index[times.isna()]
    if len(wrong):
        raise UserError(
            f"Column {name}, row {wrong[0]} holds {text[wrong[0]]!r}, not a date written like the first, "
            f"{text.iloc[0]!r}; write all dates in one way, best as 2016-08-14."
        )
    return times
