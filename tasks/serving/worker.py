"""The processes that forecast: the first imports, one forked from it loads a champion, those forked from that forecast.

``python -m tasks.serving.worker DESCRIPTOR`` is the first; `tasks.serving.crew` has the other ends of their connections.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from models.uncertainty.adaptive import Method
from tasks.bundle import Bundle, DamagedBundle
from tasks.errors import UserError
from tasks.serving.contract import Contract
from tasks.serving.frames import Answer, answers_of, forecast_together
from tasks.serving.memory import give_back, one_heap
from tasks.serving.processes import answer, forks

IMPORTS = (
    "safetensors.torch",
    "tasks.forecast",
    "pyarrow.parquet",
    "pandera.pandas",
    "holidays",
)
"""What loading and forecasting import besides, so that each process finds it done; a name that is missing here costs time."""


def main(control: Connection) -> None:
    """Import, and fork a process for each champion."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal's or a service manager's group: the service says when to end
        signal.signal(number, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    one_heap()
    for name in IMPORTS:
        with suppress(ImportError):  # who needs it will tell
            importlib.import_module(name)
    _settle()
    connection = forks(control)
    if connection is not None:
        lead(connection)


def lead(connection: Connection) -> None:
    """Load the champion that is named, tell its contract, and fork a process for each that is wanted of it."""
    folder, label, digest = connection.recv()
    try:
        bundle = Bundle.load(folder, label, digest)
        connection.send(("done", Contract.of(bundle)))
    except DamagedBundle as error:
        connection.send(("refused", f"{label} is damaged: {error}"))
        return
    except UserError as error:
        connection.send(("refused", str(error)))
        return
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    _settle()
    worker = forks(connection)
    if worker is not None:
        answer(worker, {"forecast": partial(forecast_together, bundle), "panel": partial(forecast_panel, bundle)})


def forecast_panel(
    bundle: Bundle, root: Path, name: str, digest: str, adaptive: Method
) -> tuple[dict[str, Answer], str | None]:
    """What the bundle says of each series of the panel, as `weatherglass forecast` does, or why it says nothing.

    ``name`` is ``<model>-<version>``, under which the monitor keeps live intervals.
    """
    from tasks.forecast import ingested_panel, live_intervals
    from tasks.future import with_future_rows

    try:
        live = live_intervals(root, name, digest, bundle, adaptive)
        table = bundle.forecast(with_future_rows(ingested_panel(root), bundle.encoding), live)
    except (UserError, KeyError) as error:
        return {}, str(error) if isinstance(error, UserError) else f"the panel has no column {error}"
    return {answer["unique_id"]: answer for answer in answers_of(table, bundle.encoding.schema.horizon)}, None


def _settle() -> None:
    """Leave as little as can be for forked processes to copy: freed pages go back, what is there is collected no more."""
    give_back()
    gc.freeze()


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
    os._exit(0)  # there is nothing to put away, and the interpreter would take its time
