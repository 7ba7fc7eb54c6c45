"""What every benchmark shares: its arguments, one thread, medians of alternating runs, and the facts of the machine."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tasks.files import write_json

HOME = Path(__file__).resolve().parent.parent
RESULTS = HOME / "benchmarks/results.json"
"""All that was measured, by name, where the documentation's tables come from."""


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with ``--json FILE``, to which a benchmark adds its own arguments."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file as JSON")
    return result


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """Return an argument type that reads a number of ``kind`` and refuses one below ``least``."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= least:
            raise argparse.ArgumentTypeError(f"found {text!r}; it must be a number of at least {least}")
        return value

    return read


def one_thread() -> None:
    """Keep torch to one thread, so that a figure depends neither on the number of cores nor on who else uses them."""
    torch.set_num_threads(1)


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge a figure: number of CPUs, processor architecture, system, threads."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "torch_threads": torch.get_num_threads(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of the named distributions."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def alternating(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Take every measure in turn, ``rounds`` times over, and return the median of each.

    Taking turns spreads a slow spell of the machine over all contestants; the median drops it.
    """
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            gc.collect()
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a plain text table: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def report(result: dict[str, Any], text: str, path: Path | None) -> None:
    """Print ``text`` and, where ``path`` is given, write ``result`` there as JSON."""
    print(text)
    if path is not None:
        write_json(path, result)
