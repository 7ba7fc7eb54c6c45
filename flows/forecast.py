"""forecast: the champion's table for every series."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from tasks.bundle import Bundle


def run_forecast(
    root: Path,
    output: Path | None,
    data: Path | None,
    cutoff: str | None,
    alias: str,
    as_json: bool,
    sampler: str = "ancestral",
    compiled: bool = False,
) -> int:
    """Forecast, write or print; returns the exit code. A large panel is forecast by the workers of ``runner``."""
    from flows.environment import opened

    root, params = opened(root)
    from flows.runners import check_runner
    from tasks.forecast import check_output, forecast_file, forecast_tables
    from tasks.tracking_store import initialise

    if output is not None:
        check_output(output)
    shared = params.runner != "local" and data is None and sampler == "ancestral"
    if shared:
        check_runner(params)
    import torch

    torch.set_num_threads(1)  # sums in one order: the numbers are those of `weatherglass serve`, on any number of cores
    initialise()
    counts = [0, 0, 0]
    with forecast_file(output) if output is not None else nullcontext(lambda table: None) as add:

        def take(bundle: Bundle, table: pd.DataFrame) -> None:
            horizon, first = bundle.encoding.schema.horizon, not counts[0]
            add(table)
            if as_json:
                sys.stdout.write(("[" if first else ",") + table.to_json(orient="records", date_format="iso")[1:-1])
            elif output is None and first:
                print(table.head(horizon).to_string(index=False))
            one = table.iloc[::horizon]  # row a series
            for place, more in enumerate((len(one), *one[["is_ood", "abstain"]].sum())):
                counts[place] += int(more)

        if shared and _falls_into_parts(root):
            from flows.forecast_parts import forecast_on_cluster

            bundle = forecast_on_cluster(root, params, alias, cutoff, take)
        else:
            tables, bundle = forecast_tables(
                root, params.registry.name, alias, data, cutoff, params.monitor.adaptive, sampler, compiled
            )
            for table in tables:
                take(bundle, table)
    series, flagged, withheld = counts
    if as_json:
        sys.stdout.write("]")
    if sampler != "ancestral":
        from tasks.sampling import log_sampling, sampling_text

        log_sampling(root, params.registry.experiment, bundle, sampler)
        print(sampling_text(bundle), file=sys.stderr)
    target = f" to {output}" if output is not None else ""
    print(
        f"{bundle.name}: {series} series x {bundle.encoding.schema.horizon} steps{target}; "
        f"{flagged} flagged as out of distribution, {withheld} to abstain from",
        file=sys.stderr,
    )
    return 0


def _falls_into_parts(root: Path) -> bool:
    """Whether the ingested panel has more than one part; a cluster gains nothing with one."""
    from tasks.forecast_parts import parts_of

    return parts_of(root) > 1
