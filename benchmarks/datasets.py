"""The public sets of the accuracy benchmark as long tables, with the protocols under which figures are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A long table ``unique_id, ds, y`` whose last ``test`` steps are forecast in windows of ``horizon``."""

    name: str
    frame: pd.DataFrame
    frequency: str | int
    horizon: int
    season_length: int
    test: int
    params: dict[str, Any]

    @property
    def windows(self) -> int:
        """Test windows a series."""
        return self.test // self.horizon


def read_m4_hourly(folder: Path) -> Benchmark:
    """M4 hourly: 414 series, the 48 hours after each. Its hours are anonymous, so time is counted, ending together."""
    train = pd.read_csv(_there(folder / "m4_hourly-train.csv"), index_col=0)
    test = pd.read_csv(_there(folder / "m4_hourly-test.csv"), index_col=0)
    end, parts = train.shape[1] + test.shape[1], []
    for name in train.index:
        y = np.concatenate([train.loc[name].dropna().to_numpy(), test.loc[name].to_numpy()])
        parts.append(pd.DataFrame({"unique_id": name, "ds": np.arange(end - len(y), end), "y": y}))
    params = {
        "features": {"season_length": 24, "context": 168, "lags": [48, 72, 96, 168]},
        "folds": {"early_stopping": 48, "temperature": 48, "ood": 48, "conformal": 48, "test": 48},
    }
    return Benchmark("m4_hourly", pd.concat(parts), 1, 48, 24, 48, params)


def read_etth1(folder: Path) -> Benchmark:
    """ETTh1: its 7 columns as 7 series, the last 20 windows of 48 hours, not overlapping."""
    wide = pd.read_csv(_there(folder / "ETTh1.csv"), parse_dates=["date"])
    long = wide.melt(id_vars="date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    return Benchmark("etth1", long[["unique_id", "ds", "y"]], "h", 48, 24, 960, {"folds": {"test": 960}})


DATASETS: dict[str, Callable[[Path], Benchmark]] = {"m4_hourly": read_m4_hourly, "etth1": read_etth1}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is not there; --data must name a folder that holds it (see docs/benchmarks.md).")
    return path
