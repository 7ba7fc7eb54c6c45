"""Forecasts from the registered champion: the table that users receive."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from models.uncertainty.adaptive import Method
from tasks.bundle import Bundle, Live
from tasks.errors import UserError
from tasks.files import atomic_path
from tasks.future import with_future_rows
from tasks.ingest import validate_panel
from tasks.monitor_state import MONITOR, Tracker
from tasks.prepare import INGESTED
from tasks.registry import load_version, version_behind
from tasks.sampling import use_sampler
from tasks.sources import read_table

PANEL = INGESTED / "panel.parquet"


def forecast_table(
    root: Path,
    name: str,
    alias: str,
    data: Path | None = None,
    cutoff: str | None = None,
    adaptive: Method = "aci",
    sampler: str = "ancestral",
    compiled: bool = False,
) -> tuple[pd.DataFrame, Bundle]:
    """Forecast from the end of every series of the ingested panel, or of ``data``, or as of ``cutoff``.

    Forecasts from the end of the ingested panel have live intervals as well, where `weatherglass monitor` has begun to keep
    them by the method ``adaptive``. ``sampler`` says how members that sample paths of bins draw them, ``compiled`` whether in
    compiled steps.

    Raises UserError where there is no such model, the data is not valid, a future covariate is missing, or the sampler wants
    drafts that there are not.
    """
    version, digest = version_behind(name, alias)
    bundle = load_version(name, version, digest)
    if sampler != "ancestral":
        use_sampler(root, f"{name}-{version}", digest, bundle, sampler, compiled)
    if data is None:
        live = live_intervals(root, f"{name}-{version}", digest, bundle, adaptive) if cutoff is None else None
        return bundle.forecast(with_future_rows(ingested_panel(root), bundle.encoding, cutoff), live), bundle
    frame, _ = validate_panel(read_table(data, bundle.params), bundle.params, for_training=False)
    return bundle.forecast(with_future_rows(frame, bundle.encoding, cutoff)), bundle


def ingested_panel(root: Path, series: str | None = None) -> pd.DataFrame:
    """The panel as `weatherglass ingest` has left it, or one series of it; raises UserError where there is none."""
    path = root / PANEL
    if not path.exists():
        raise UserError(f"{PANEL} is not there; run `weatherglass run` first or give --data FILE.")
    return pd.read_parquet(path, filters=None if series is None else [("unique_id", "==", series)])


def live_intervals(root: Path, name: str, digest: str, bundle: Bundle, adaptive: Method) -> Live | None:
    """What gives the live intervals of a version, ``name`` being ``<model>-<version>``; None where the monitor keeps none."""
    if bundle.reference is None or not (root / MONITOR / name / "state.json").exists():
        return None
    return Tracker.open(root, name, digest, bundle, bundle.reference, adaptive).interval


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
