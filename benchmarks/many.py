"""Forecasts of very many series by a champion that was trained on few: seconds, peak memory and series a second.

``python -m benchmarks.many --series 10000 100000 --json many.json`` trains a small network on 2,000 series of
`benchmarks.scale_data`, registers nothing, and lets its bundle answer for panels of as many series as asked for, with intervals
and scores of strange input, into a Parquet file: what `weatherglass forecast --output FILE` does, in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import scale_data
from benchmarks.common import at_least, machine, parser, report, table, versions
from benchmarks.scale import HORIZON, Figures, Limits, measure_size, slope, spec_of
from benchmarks.scale_stages import STAGES
from models.forecasters.factory import FAMILIES
from tasks.errors import UserError
from tasks.files import atomic_path

STEPS = scale_data.STEPS
GOAL = "100,000 series, horizon 14, with intervals and OOD scores, in under 600 s on two cores and 4 GB"
NOTES = (
    f"{STEPS:,} steps a series, the last {HORIZON} without target and past-only covariate: they are forecast.",
    "Seconds from the bundle on disk to the whole file, without start and imports; peak_mb is the most that the process held. "
    "One process, one thread. The network is one member of one family.",
)


def write_panel(path: Path, series: int, seed: int = 2) -> None:
    """Write an ingested panel of ``series`` series, in order, whose last `HORIZON` rows are future rows; a group at a time."""
    with atomic_path(path) as temporary:
        writer: pq.ParquetWriter | None = None
        for number in range(-(-series // scale_data.GROUP)):
            count = min(scale_data.GROUP, series - number * scale_data.GROUP)
            group = scale_data.group_of(number, count, STEPS, seed)
            for name in ("y", *scale_data.PAST):
                values = group[name].to_numpy().reshape(count, STEPS).copy()
                values[:, -HORIZON:] = np.nan
                group = group.set_column(group.schema.get_field_index(name), name, pa.array(values.ravel(), from_pandas=True))
            group = group.set_column(1, "ds", group["ds"].cast(pa.timestamp("ns")))
            writer = writer or pq.ParquetWriter(temporary, group.schema)
            writer.write_table(group)
        if writer is not None:
            writer.close()


def measure(series: list[int], trained: int, family: str, batches: int, limits: Limits, folder: Path | None) -> dict[str, Any]:
    """Figures of the forecast stage by series; raises UserError where no champion came about."""
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="many-", dir=folder) as name:
        root = Path(name)
        scale_data.write(root / "panel.parquet", trained * STEPS)
        spec = spec_of(root, root / "panel.parquet", family, batches)
        made = measure_size(spec, {}, [stage for stage in STAGES if stage not in ("load", "forecast")], limits)
        if any("gave_up" in figures for figures in made.values()):
            raise UserError(f"no champion came of {trained} series within the limits.")
        for count in sorted(series):
            panel = root / "many.parquet"
            write_panel(panel, count)
            found[str(count)] = measure_size(spec | {"forecast": str(panel)}, {}, ["forecast"], limits)["forecast"]
            panel.unlink()
    return {"series": sorted(series), "figures": found}


def summary(result: dict[str, Any]) -> str:
    """Seconds, memory and series a second by number of series."""

    def cells(figures: Figures) -> tuple[str, str, str]:
        if "gave_up" in figures:
            return f"gave up: {figures['gave_up']}", "-", "-"
        return f"{figures['seconds']:.1f}", f"{figures['peak_mb']:,.0f}", f"{figures['series'] / figures['seconds']:,.0f}"

    rows = ((f"{int(count):,}", *cells(figures)) for count, figures in result["figures"].items())
    return table(("series", "seconds", "MB", "series/s"), rows)


def main(arguments: list[str] | None = None) -> None:
    options = parser("Forecasts of very many series: seconds and peak memory.")
    options.add_argument("--series", type=at_least(1), nargs="+", default=[10_000], help="how many to forecast, such as 100000")
    options.add_argument("--trained", type=at_least(10), default=2_000, help="series that the network is trained on")
    options.add_argument("--family", choices=sorted(set(FAMILIES) - {"gradient_boosting"}), default="tcn", help="whose network")
    options.add_argument("--batches", type=at_least(10), default=100, help="of training")
    options.add_argument("--limit-seconds", type=at_least(1, float), default=3600.0, help="when a stage gives up")
    options.add_argument("--limit-gb", type=at_least(0.1, float), default=4.0, help="where a stage gives up")
    options.add_argument("--folder", type=Path, help="for panels and artefacts meanwhile; None: the system's")
    given = options.parse_args(arguments)
    limits = (given.limit_seconds, given.limit_gb)
    found = measure(given.series, given.trained, given.family, given.batches, limits, given.folder)
    done = {float(count): figures["seconds"] for count, figures in found["figures"].items() if "seconds" in figures}
    result = {
        **found, **({"exponent": slope(done)} if len(done) > 1 else {}), "goal": GOAL, "family": given.family,
        "trained": given.trained, "batches": given.batches, "limit_seconds": limits[0], "limit_gb": limits[1],
        "machine": machine() | {"torch_threads": 1}, "versions": versions(("torch", "numpy", "pandas", "pyarrow")),
        "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"many: {error}", file=sys.stderr)
        raise SystemExit(2) from None
