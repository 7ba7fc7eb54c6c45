"""A large forecast split by series over the workers of a cluster is that of one process, to the bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from flows.spread import spread_of
from tasks.errors import UserError
from tasks.forecast import forecast_panel
from tasks.params import Params
from tasks.parts import Packed

ROWS = 9_000


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_makes_the_table_of_one_process(runner: str, packed: Packed, many_series: Path, tmp_path: Path) -> None:
    alone = list(forecast_panel(packed.bundle(), many_series, rows=ROWS))
    spread = spread_of(Params.model_validate({"runner": runner}), 2)
    assert spread is not None and len(alone) > 2
    together = list(forecast_panel(packed.bundle(), many_series, rows=ROWS, spread=lambda: spread(packed)))
    assert len(together) == len(alone)
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=0)
    frame = pd.read_parquet(many_series)
    last = frame["unique_id"].iloc[-1]
    short = (frame["unique_id"] != last) | (frame["unique_id"].shift(-1) != last)
    frame[short].to_parquet(tmp_path / "short.parquet", index=False, row_group_size=10_000)
    with pytest.raises(UserError, match=f"series {last} has 1 value"):
        list(forecast_panel(packed.bundle(), tmp_path / "short.parquet", rows=ROWS, spread=lambda: spread(packed)))
