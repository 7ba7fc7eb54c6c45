"""forecast on a Dask or Ray cluster: a large panel's parts are tasks of a Prefect flow, and their tables come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from prefect.futures import PrefectFuture

    from tasks.bundle import Bundle
    from tasks.forecast_parts import PartSpec
    from tasks.params import Params

    Take = Callable[[Bundle, pd.DataFrame], None]

AHEAD = 2
"""Parts a worker that are written before the first of them is done."""


def forecast_on_cluster(root: Path, params: Params, alias: str, cutoff: str | None, take: Take) -> Bundle:
    """Forecast the ingested panel on the workers of ``runner``; ``take`` is given the tables in order. Returns the champion.

    Of each worker no more than `AHEAD` parts wait at a time. Raises UserError where the cluster or the champion cannot be used,
    RuntimeError where a part failed or the workers that tried it died too often.
    """
    from flows.runners import check_prefect
    from flows.server import prefect_server
    from flows.stage import quiet_mistakes
    from tasks.forecast import panel_file
    from tasks.forecast_parts import share_champion, shared_folder, write_parts

    panel = panel_file(root)
    with prefect_server(root), shared_folder(root) as folder:
        quiet_mistakes()
        check_prefect(params)
        live = params.monitor.adaptive if cutoff is None else None
        champion = share_champion(root, folder, params.registry.name, alias, live)
        bundle, _ = champion.load()
        run_parts(root, params, write_parts(champion, bundle, panel, cutoff), lambda table: take(bundle, table))
    return bundle


@dataclass
class _Here:
    """What stays in this process: with each task Prefect sends a worker the flow, and all that the flow's function holds."""

    specs: Iterable[PartSpec]
    take: Callable[[pd.DataFrame], None]

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_parts(root: Path, params: Params, specs: Iterable[PartSpec], take: Callable[[pd.DataFrame], None]) -> None:
    """Hand parts to the workers as they are written; ``take`` is given their tables in order."""
    from prefect import flow

    from flows import runners
    from tasks.forecast_parts import forecast_on_worker, parts_of, take_table
    from tasks.train import workers_for

    workers, here = workers_for(params, parts_of(root)), _Here(specs, take)

    @flow(name="forecasts", task_runner=runners.task_runner(params, workers), validate_parameters=False, persist_result=False)
    def forecasts() -> None:
        work = runners.tried(forecast_on_worker)
        waiting: deque[tuple[PartSpec, PrefectFuture[None]]] = deque()

        def take_first() -> None:
            spec, future = waiting.popleft()
            if (error := runners.error_of(future)) is not None:
                runners.raise_failure(spec.name, error)
            here.take(take_table(spec))

        for spec in here.specs:
            waiting.append((spec, work.with_options(name=spec.name).submit(spec)))
            if len(waiting) >= AHEAD * workers:
                take_first()
        while waiting:
            take_first()

    forecasts()
