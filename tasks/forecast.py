"""Forecasts from the registered champion: the table that users receive."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.files import atomic_path
from tasks.future import with_future_rows
from tasks.ingest import validate_panel
from tasks.prepare import INGESTED
from tasks.registry import load_champion
from tasks.sources import read_table


def forecast_table(
    root: Path, name: str, alias: str, data: Path | None = None, cutoff: str | None = None
) -> tuple[pd.DataFrame, Bundle]:
    """Forecast from the end of every series of the ingested panel, or of ``data``, or as of ``cutoff``.

    Raises UserError where there is no such model, the data is not valid or a future covariate is missing.
    """
    bundle = load_champion(name, alias)
    if data is None:
        path = root / INGESTED / "panel.parquet"
        if not path.exists():
            raise UserError(f"{INGESTED}/panel.parquet is not there; run `weatherglass run` first or give --data FILE.")
        frame = pd.read_parquet(path)
    else:
        frame, _ = validate_panel(read_table(data, bundle.params), bundle.params, for_training=False)
    return bundle.forecast(with_future_rows(frame, bundle.encoding, cutoff)), bundle


def check_output(output: Path) -> None:
    """Raise UserError where a forecast cannot be written to ``output``, before any work is done."""
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output is '{output}'; its name must end in .parquet or .csv.")


def write_forecast(table: pd.DataFrame, output: Path) -> None:
    """Write Parquet or CSV by the ending of ``output``, atomically; the same table gives the same bytes."""
    check_output(output)
    with atomic_path(output) as temporary:
        if output.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
