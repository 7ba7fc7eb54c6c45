"""Parts of a forecast on several processes: of this machine, or of a Dask or Ray cluster, as ``runner`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from flows.runners import RAY_QUIET, check_runner, own_dask, own_ray, prepare_ray
from tasks.errors import UserError
from tasks.params import Params

if TYPE_CHECKING:
    from tasks.parts import Packed, Spread

STORE_BYTES = 2**30  # of a local Ray cluster: parts travel through its store


def spread_of(params: Params, workers: int) -> Callable[[Packed], AbstractContextManager[Spread]] | None:
    """Where parts are forecast: None for this process alone, which is so for one worker and ``runner: local``.

    Raises UserError where the cluster does not answer or its packages are not installed.
    """
    check_runner(params)
    if params.runner == "local":
        return None if workers == 1 else lambda packed: on_processes(packed, workers)
    on = {"dask": on_dask, "ray": on_ray}[params.runner]
    return lambda packed: on(params.runner_address, packed, workers)


@contextmanager
def on_processes(packed: Packed, workers: int) -> Iterator[Spread]:
    """Processes of this machine, which load the bundle."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tasks.parts import Spread, begin, forecast_here

    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin, (packed,))
    try:
        yield Spread(lambda frame, before: pool.submit(forecast_here, frame, before), workers + 1)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def on_dask(address: str | None, packed: Packed, workers: int) -> Iterator[Spread]:
    """Workers of a Dask cluster, which gives a part to another one where one dies."""
    from distributed import Client, LocalCluster

    from tasks.parts import Spread, forecast_part

    own = None if address else LocalCluster(**own_dask(workers))
    try:
        with Client(address or own) as client:
            given = client.scatter(packed, broadcast=True, hash=False)
            width = len(client.scheduler_info()["workers"])
            yield Spread(lambda frame, before: client.submit(forecast_part, given, frame, before, pure=False), width + 1)
    finally:
        if own is not None:
            own.close()


@contextmanager
def on_ray(address: str | None, packed: Packed, workers: int) -> Iterator[Spread]:
    """Workers of a Ray cluster, which gives a part to another one, three times at most, where one dies."""
    prepare_ray(address)
    import ray

    from tasks.parts import Spread, forecast_part

    ray.init(address=address or "local", **RAY_QUIET, **({} if address else own_ray(workers, STORE_BYTES)))
    try:
        work: Any = ray.remote(forecast_part).options(max_retries=3)
        given, width = ray.put(packed), max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield Spread(lambda frame, before: _RayPart(work.remote(given, frame, before)), width + 1)
    finally:
        ray.shutdown()


class _RayPart:
    """A part under way on Ray, whose own errors are raised as they are."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> Any:
        import ray

        try:
            return ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
