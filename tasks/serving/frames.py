"""From the columns of requests to one table that the bundle forecasts, and from its answer to what each request asked."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.bundle import Bundle
from tasks.encoding import PART
from tasks.energy import ENERGY_COLUMNS
from tasks.errors import UserError
from tasks.future import with_future_rows
from tasks.ingest import validate_panel
from tasks.panel_columns import typed_times
from tasks.serving.bodies import Place, Refusal, Series
from tasks.serving.contract import Contract

OF_A_WINDOW = ("cutoff", "ood_score", "ood_pvalue", "is_ood", "abstain", *ENERGY_COLUMNS)
"""Columns with one value a series; the others have one a step."""
NOT_SENT = ("unique_id", "model")
DIGITS = 7
ISO_SHAPES = {len(shape): np.frombuffer(shape, dtype=np.uint8) for shape in (b"0000-00-00", b"0000-00-00T00:00:00")}
"""What times are read at once that are all of one of these lengths, with a digit for each 0; T may be a space."""
AHEAD = dt.timedelta(days=1)
"""How far an observation's time may be ahead of the clock in UTC: clocks of other zones are."""
_ROW = re.compile(r"[Rr]ow (\d+)")

Rows = dict[str, Any]
"""A series' columns by name: an array a column of a value a row, ``(n_rows,)``, and one value for name and static columns."""
Request = Sequence[tuple[Place, Rows]]
"""The series of a request: where each stands in its body, and its rows."""
Answer = dict[str, Any]


def rows_of(series: Series, place: Place, contract: Contract) -> Rows:
    """A series with times of their type; Refusal where they cannot be read or have not come yet."""
    times = _iso_times(series.ds)
    if times is None:
        numbered = pd.Series(series.ds, index=range(1, len(series.ds) + 1))
        try:
            times = typed_times(numbered, contract.params).to_numpy()
        except UserError as error:
            raise _refusal(error, [(place, {"ds": series.ds})]) from None
    y = np.array(series.y, dtype=np.float64)
    if times.dtype.kind == "M":
        latest = np.datetime64(dt.datetime.now(dt.UTC).replace(tzinfo=None) + AHEAD)
        early = np.flatnonzero(~np.isnan(y) & (times > latest))
        if len(early):
            raise Refusal(422, (*place, "ds", int(early[0])), "this time has not come yet, and y has a value for it")
    covariates = {name: np.array(values, dtype=np.float64) for name, values in series.covariates.items()}
    return {"unique_id": series.unique_id, "ds": times, "y": y} | covariates | dict(series.static)


def table_of(parts: Sequence[Rows]) -> pd.DataFrame:
    """Series one after the other as a long table, whose rows are numbered from 0."""
    lengths = [len(rows["ds"]) for rows in parts]
    return pd.DataFrame({name: _column([rows[name] for rows in parts], lengths) for name in parts[0]})


def _column(values: list[Any], lengths: list[int]) -> Any:
    """A column of series of ``lengths``: their arrays end to end, or the value of each repeated."""
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return pd.Series(values).repeat(lengths).array


def _iso_times(texts: list[str | int]) -> np.ndarray | None:
    """Times all written as 2016-08-14, or all as 2016-08-14T13:00:00, read at once; None for any others."""
    whole = "".join(texts) if set(map(type, texts)) == {str} else ""  # type: ignore[arg-type]
    lengths = set(map(len, texts)) if whole.isascii() and whole else set()  # type: ignore[arg-type]
    shape = ISO_SHAPES.get(lengths.pop()) if len(lengths) == 1 else None
    if shape is None:
        return None
    letters = np.frombuffer(whole.encode(), dtype=np.uint8).reshape(len(texts), -1)
    digit = shape == ord("0")
    marks = letters[:, ~digit]
    between = (marks == shape[~digit]) | ((marks == ord(" ")) & (shape[~digit] == ord("T")))
    if not ((letters[:, digit] - ord("0") < 10).all() and between.all()):  # what is below 0 wraps around
        return None
    try:
        times = np.array(texts, dtype="datetime64[s]")
    except ValueError:
        return None
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    return times.astype("datetime64[ns]") if years.min() >= 1678 and years.max() <= 2261 else None


def forecast_together(bundle: Bundle, requests: Sequence[Request]) -> list[list[Answer] | Refusal]:
    """Forecast the series of many requests at once: for each request its answers in order, or why there is none."""
    try:
        return list(_forecast(bundle, requests))
    except UserError:  # of one of them; ask each by itself which
        return [_alone(bundle, request) for request in requests]


def _alone(bundle: Bundle, request: Request) -> list[Answer] | Refusal:
    try:
        return _forecast(bundle, [request])[0]
    except UserError as error:
        return _refusal(error, request)


def _forecast(bundle: Bundle, requests: Sequence[Request]) -> list[list[Answer]]:
    """Names of series get a number before them, so that those of one name in two requests are two."""
    parts = [rows for request in requests for _, rows in request]
    numbered = [rows | {"unique_id": f"{n:0{DIGITS}d}{rows['unique_id']}"} for n, rows in enumerate(parts)]
    try:
        panel, _ = validate_panel(table_of(numbered), bundle.params, for_training=False)
        whole = with_future_rows(panel, bundle.encoding)
    except UserError as error:
        raise UserError(re.sub(rf"\b\d{{{DIGITS}}}(?=\S)", "", str(error))) from None
    names = whole["unique_id"].str
    table = bundle.forecast(whole.assign(unique_id=names[DIGITS:], **{PART: names[:DIGITS].astype("int64")}))
    answers = iter(answers_of(table, bundle.encoding.schema.horizon))
    return [[next(answers) for _ in request] for request in requests]


def answers_of(table: pd.DataFrame, horizon: int) -> list[Answer]:
    """One answer a series of a forecast table, whose ``n_series * horizon`` rows are in order."""
    times = {name: _texts(table[name]) for name in ("ds", "cutoff")}
    values = {name: table[name].to_numpy() for name in table.columns if name not in (*times, *NOT_SENT)}
    answers = []
    for start in range(0, len(table), horizon):
        rows = slice(start, start + horizon)
        answer: Answer = {
            "unique_id": table["unique_id"].iloc[start],
            "cutoff": times["cutoff"][start],
            "ds": times["ds"][rows],
        }
        for name, column in values.items():
            answer[name] = column[start].item() if name in OF_A_WINDOW else column[rows].tolist()
        answers.append(answer)
    return answers


def _texts(times: pd.Series) -> list[Any]:
    """Times as JSON has them: ISO 8601, or whole numbers."""
    if times.dtype.kind != "M":
        return times.tolist()
    return np.datetime_as_string(times.to_numpy().astype("datetime64[s]")).tolist()


def _refusal(error: UserError, request: Request) -> Refusal:
    """The sentence, with the place of the row that it names, where it names one; that is counted from the series' first."""
    found = _ROW.search(str(error))
    if found is None:
        return Refusal(422, request[0][0] if len(request) == 1 else ("body",), str(error))
    row = int(found[1]) - 1
    for place, rows in request:
        if row < len(rows["ds"]):
            own = f"{str(error)[: found.start(1)]}{row + 1}{str(error)[found.end(1) :]}"
            return Refusal(422, (*place, "ds", row), own)
        row -= len(rows["ds"])
    return Refusal(422, ("body",), str(error))
