"""forecast: the champion's table for every series."""

from __future__ import annotations

import sys
from contextlib import nullcontext
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
    from tasks.forecast import check_output, forecast_file, forecast_tables
    from tasks.tracking_store import initialise

    if output is not None:
        check_output(output)
    import torch

    torch.set_num_threads(1)  # sums in one order: the numbers are those of `weatherglass serve`, on any number of cores
    initialise()
    tables, bundle = forecast_tables(
        root, params.registry.name, alias, data, cutoff, params.monitor.adaptive, sampler, compiled
    )
    horizon, counts = bundle.encoding.schema.horizon, [0, 0, 0]
    with forecast_file(output) if output is not None else nullcontext(lambda table: None) as add:
        for number, table in enumerate(tables):
            add(table)
            if as_json:
                sys.stdout.write(("," if number else "[") + table.to_json(orient="records", date_format="iso")[1:-1])
            elif output is None and not number:
                print(table.head(horizon).to_string(index=False))
            one = table.iloc[::horizon]  # row a series
            counts = [
                count + int(more) for count, more in zip(counts, (len(one), *one[["is_ood", "abstain"]].sum()), strict=True)
            ]
    series, flagged, withheld = counts
    if as_json:
        sys.stdout.write("]")
    if sampler != "ancestral":
        from tasks.sampling import log_sampling, sampling_text

        log_sampling(root, params.registry.experiment, bundle, sampler)
        print(sampling_text(bundle), file=sys.stderr)
    target = f" to {output}" if output is not None else ""
    print(
        f"{bundle.name}: {series} series x {horizon} steps{target}; "
        f"{flagged} flagged as out of distribution, {withheld} to abstain from",
        file=sys.stderr,
    )
    return 0
