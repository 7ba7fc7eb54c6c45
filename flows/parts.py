"""Parts of a whole on a Dask or Ray cluster: each is a task of a Prefect flow, and they are taken back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from tasks.params import Params

AHEAD = 2
"""Parts a worker that are there before the first of them is done."""


class Named(Protocol):
    """What a part is called in Prefect."""

    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


@dataclass
class _Here:
    """What stays in this process: with each task Prefect sends a worker the flow, and all that the flow's function holds."""

    parts: Iterable[Any]
    take: Callable[[Any], None]

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_in_order(
    name: str,
    params: Params,
    parts: Iterable[Part],
    work: Callable[[Part], None],
    take: Callable[[Part], None],
    workers: int,
) -> None:
    """Hand ``parts`` to ``workers`` as they come, and ``take`` each in order once ``work`` is done with it.

    Needs a Prefect server (``PREFECT_API_URL``). Raises what a part ended with, RuntimeError where its workers died too often.
    """
    from prefect import flow

    from flows import runners

    here = _Here(parts, take)

    @flow(name=name, task_runner=runners.task_runner(params, workers), validate_parameters=False, persist_result=False)
    def in_order() -> None:
        task = runners.tried(work)
        waiting: deque[tuple[Any, PrefectFuture[None]]] = deque()

        def take_first() -> None:
            part, future = waiting.popleft()
            if (error := runners.error_of(future)) is not None:
                runners.raise_failure(part.name, error)
            here.take(part)

        for part in here.parts:
            waiting.append((part, task.with_options(name=part.name).submit(part)))
            if len(waiting) >= AHEAD * workers:
                take_first()
        while waiting:
            take_first()

    in_order()
