"""Columns become numbers by what the training rows say, and by nothing that comes after them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import encoding as encoding_module
from tasks.calendar import calendar_features
from tasks.encoding import Encoding, mean_and_deviation, series_starts
from tasks.params import Params, derive_settings

STEPS, HORIZON = 300, 3
DATA: dict[str, Any] = {
    "source": "file",
    "path": "panel.csv",
    "horizon": HORIZON,
    "known_future": ["promo", "still"],
    "past_only": ["rain"],
    "static": ["kind", "size"],
}


def panel_table() -> pd.DataFrame:
    """Two series of days with three future rows each, and a third that begins after training."""
    rng = np.random.default_rng(3)
    parts = []
    for name, kind, size, steps in (("x", "mall", 2.0, STEPS), ("y", "corner", 6.0, STEPS), ("z", "kiosk", 4.0, 40)):
        ds = pd.date_range(end="2021-01-03", periods=steps + HORIZON)
        frame = pd.DataFrame({"unique_id": name, "ds": ds, "y": rng.normal(size=len(ds))})
        frame["promo"], frame["still"], frame["rain"] = rng.normal(5, 3, len(ds)), 7.0, rng.gamma(2.0, size=len(ds))
        frame["kind"], frame["size"] = kind, size
        frame.loc[steps:, ["y", "rain"]] = np.nan
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def fitted(frame: pd.DataFrame, **data: Any) -> tuple[Encoding, np.ndarray]:
    params = Params.model_validate({"data": DATA | data})
    train = (frame["ds"] < "2020-11-01").to_numpy() & frame["y"].notna().to_numpy()
    return Encoding.fit(frame, params, derive_settings(params, [STEPS, STEPS, 40]), train), train


def test_covariates_are_standardised_by_the_training_rows_alone() -> None:
    frame = panel_table()
    encoding, train = fitted(frame)
    panel = encoding.panel(frame)
    promo = panel.rows[:, 1 + encoding.schema.known.index("promo")].numpy()[train]
    np.testing.assert_allclose([promo.mean(), promo.std()], [0.0, 1.0], atol=1e-5)
    still = panel.rows[:, 1 + encoding.schema.known.index("still")]
    assert still.abs().max() == 0, "a constant column says nothing and must not overflow"

    later = frame.copy()
    later.loc[~train, ["promo", "rain"]] = 1e6
    assert fitted(later)[0] == encoding


def test_values_first_seen_after_training_share_the_code_of_the_unknown() -> None:
    frame = panel_table()
    encoding, _ = fitted(frame)
    names = [name for name, _ in encoding.schema.static]
    static = encoding.panel(frame).static
    assert names == ["unique_id", "kind"]
    assert static.tolist() == [[1, 2], [2, 1], [0, 0]], "no network has been trained on z, a kiosk"
    assert [count for _, count in encoding.schema.static] == [3, 3]


def test_a_static_number_is_a_real_and_future_rows_are_empty() -> None:
    frame = panel_table()
    encoding, _ = fitted(frame)
    panel = encoding.panel(frame)
    assert "size" in encoding.schema.known
    assert panel.offsets.tolist() == [0, 303, 606, 649]
    assert panel.observed.tolist() == [300, 300, 40]
    future = torch.tensor(frame["y"].isna().tolist())
    assert panel.rows[future, 0].isnan().all()
    rain = panel.rows[:, encoding.row_columns.index("rain")]
    assert (rain[future] == 0).all()
    assert (rain[~future] != 0).any()
    assert not panel.rows[:, 1:].isnan().any()


def test_an_encoding_survives_json() -> None:
    frame = panel_table()
    encoding, _ = fitted(frame, holidays="US")
    again = Encoding.from_state(json.loads(json.dumps(encoding.state())))
    assert again == encoding
    first, second = encoding.panel(frame), again.panel(frame)
    for name in ("rows", "static", "offsets", "observed"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)
    for name in ("reals", "codes", "first"):
        torch.testing.assert_close(getattr(first.calendar, name), getattr(second.calendar, name), rtol=0, atol=0)


def test_the_calendar_tells_of_every_row_what_its_time_tells() -> None:
    frame = panel_table()
    encoding, _ = fitted(frame, holidays="US")
    panel = encoding.panel(frame)
    features = calendar_features(pd.DatetimeIndex(frame["ds"]), 86_400.0, "US")
    step = torch.cat(
        [begin + torch.arange(int(rows)) for begin, rows in zip(panel.calendar.first, panel.offsets.diff(), strict=True)]
    )
    assert encoding.schema.known[-len(features.reals) :] == tuple(features.reals)
    np.testing.assert_array_equal(panel.calendar.reals[step].numpy(), np.stack(list(features.reals.values()), axis=1))
    codes = [values for values, _ in features.categories.values()]
    np.testing.assert_array_equal(panel.calendar.codes[step].numpy(), np.stack(codes, axis=1))
    assert len(panel.calendar.reals) < len(frame) / 2, "kept once for all series"


def test_a_count_has_a_least_value() -> None:
    assert fitted(panel_table())[0].minimum is None
    assert fitted(panel_table(), count=True)[0].minimum == 0.0


def test_series_begin_where_the_name_changes() -> None:
    frame = pd.DataFrame({"unique_id": ["a", "a", "b", "c", "c"]})
    assert series_starts(frame).tolist() == [0, 2, 3]
    assert series_starts(frame.astype("string")).tolist() == [0, 2, 3]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_moments_do_not_depend_on_parts_and_are_those_of_all_values(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    values = np.random.default_rng(4).normal(1e6, 3.0, 2500)
    values[::9] = np.nan
    known = values[~np.isnan(values)]
    assert mean_and_deviation([values]) == (known.mean(), known.std()), "one block: to the last digit"
    monkeypatch.setattr(encoding_module, "BLOCK", 64)
    whole, parts = mean_and_deviation([values]), mean_and_deviation(np.split(values, range(size, 2500, size)))
    assert whole == parts
    np.testing.assert_allclose(whole, (known.mean(), known.std()), rtol=0, atol=np.spacing(1e6))
    assert mean_and_deviation([]) == mean_and_deviation([values[:1]]) == (0.0, 0.0)
