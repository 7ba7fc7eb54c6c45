"""Columns of a long table: the quick looks beside the slow ones that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.errors import UserError
from tasks.panel_columns import LARGEST, by_value, check_by_schema, plainly_fits
from tasks.params import Params

VALUES = [0.0, -LARGEST, LARGEST, np.nextafter(LARGEST, np.inf), -np.nextafter(LARGEST, np.inf), np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", ["y", "promo", "rain", "size"])
def test_what_plainly_fits_is_what_the_schema_lets_through(value: float, column: str) -> None:
    data: dict[str, Any] = {"known_future": ["promo"], "past_only": ["rain"], "static": ["size"], "frequency": 1}
    params = Params.model_validate({"data": data})
    numbers = {name: [1.0, 2.0, 3.0] for name in ("y", "promo", "rain", "size")}
    typed = pd.DataFrame({"unique_id": ["a"] * 3, "ds": [1, 2, 3], **numbers})
    typed.loc[1, column] = value
    fits = plainly_fits(typed[column].to_numpy(), nullable=column in ("y", "rain"))
    if fits:
        check_by_schema(typed, params, {"size": "number"})
    else:
        with pytest.raises(UserError, match=rf"Column {column}, row 1 "):
            check_by_schema(typed, params, {"size": "number"})


@pytest.mark.parametrize(
    "values", [["1", "x", " 2.5", "", None, "1", "9007199254740993"], ["é", " ", "\t", "é"], [None, None], ["3", "4", "3"]]
)
def test_work_done_once_a_value_gives_what_it_gives_row_by_row(values: list[str | None]) -> None:
    column = pd.Series(values, index=pd.RangeIndex(1, len(values) + 1), dtype="str")

    looked_at: list[int] = []

    def number(texts: pd.Series) -> pd.Series:
        looked_at.append(len(texts))
        return pd.to_numeric(texts, errors="coerce").astype("float64")

    pd.testing.assert_series_equal(by_value(column, number), number(column))
    assert looked_at == [column.nunique(), len(column)]
