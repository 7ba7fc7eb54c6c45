"""forecast on a Dask or Ray cluster: a large panel's parts are tasks of a Prefect flow, and their tables come in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from tasks.bundle import Bundle
    from tasks.params import Params

    Take = Callable[[Bundle, pd.DataFrame], None]


def forecast_on_cluster(root: Path, params: Params, alias: str, cutoff: str | None, take: Take) -> Bundle:
    """Forecast the ingested panel on the workers of ``runner``; ``take`` is given the tables in order. Returns the champion.

    Of each worker no more than `flows.parts.AHEAD` parts wait at a time. Raises UserError where the cluster or the champion
    cannot be used, RuntimeError where a part failed or the workers that tried it died too often.
    """
    from flows.parts import run_in_order
    from flows.runners import check_prefect
    from flows.server import prefect_server
    from flows.stage import quiet_mistakes
    from tasks.forecast import panel_file
    from tasks.forecast_parts import forecast_on_worker, parts_of, share_champion, take_table, write_parts
    from tasks.on_worker import shared_folder
    from tasks.train import workers_for

    panel = panel_file(root)
    with prefect_server(root), shared_folder(root) as folder:
        quiet_mistakes()
        check_prefect(params)
        live = params.monitor.adaptive if cutoff is None else None
        champion = share_champion(root, folder, params.registry.name, alias, live)
        bundle, _ = champion.load()
        parts, workers = write_parts(champion, bundle, panel, cutoff), workers_for(params, parts_of(root))
        run_in_order("forecasts", params, parts, forecast_on_worker, lambda part: take(bundle, take_table(part)), workers)
    return bundle
