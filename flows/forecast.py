"""forecast: the champion's table for every series."""

from __future__ import annotations

import sys
from pathlib import Path


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
    """Forecast, write or print; returns the exit code."""
    from flows.environment import opened

    root, params = opened(root)
    from tasks.forecast import check_output, forecast_table, write_forecast
    from tasks.tracking_store import initialise

    if output is not None:
        check_output(output)
    import torch

    torch.set_num_threads(1)  # sums in one order: the numbers are those of `weatherglass serve`, on any number of cores
    initialise()
    table, bundle = forecast_table(root, params.registry.name, alias, data, cutoff, params.monitor.adaptive, sampler, compiled)
    if sampler != "ancestral":
        from tasks.sampling import log_sampling, sampling_text

        log_sampling(root, params.registry.experiment, bundle, sampler)
        print(sampling_text(bundle), file=sys.stderr)
    if output is not None:
        write_forecast(table, output)
    if as_json:
        table.to_json(sys.stdout, orient="records", date_format="iso")
    elif output is None:
        print(table.head(bundle.encoding.schema.horizon).to_string(index=False))
    series, flagged = table["unique_id"].nunique(), int(table.groupby("unique_id")["is_ood"].first().sum())
    withheld = int(table.groupby("unique_id")["abstain"].first().sum())
    target = f" to {output}" if output is not None else ""
    print(
        f"{bundle.name}: {series} series x {bundle.encoding.schema.horizon} steps{target}; "
        f"{flagged} flagged as out of distribution, {withheld} to abstain from",
        file=sys.stderr,
    )
    return 0
