"""Every benchmark, one after the other, with the settings whose figures the documentation quotes.

``python -m benchmarks.all [--only loader scale] [--data FOLDER] [--take chicago=metrics/test.json]`` puts each result into
``benchmarks/results.json`` as soon as it is there, and writes the tables of README.md and docs/ from it. Hours; use an idle
machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.common import HOME, RESULTS, parser, table
from tasks.errors import UserError
from tasks.files import read_json, write_json

SETTINGS: dict[str, tuple[str, ...]] = {
    "loader": ("loader",),
    "scan": ("scan",),
    "streaming": ("streaming",),
    "training": ("training",),
    "steps": ("steps",),
    "startup": ("startup",),
    "speculative": ("speculative",),
    "projection": ("projection",),
    "uncertainty": ("uncertainty",),
    "accuracy_m4_hourly": ("accuracy", "--dataset", "m4_hourly"),
    "accuracy_etth1": ("accuracy", "--dataset", "etth1"),
    "scale": ("scale", "--sizes", "1e4", "1e5", "1e6", "1e7", "1e8", "--limit-seconds", "3600"),
    "many": ("many", "--series", "1000", "10000", "100000"),
    "overhead": ("overhead",),
    "serving": ("serving",),
}
"""The program of each result, and what it is called with."""
TAKEN = ("chicago",)
"""Results that no program here writes: chicago is ``metrics/test.json`` after ``make run``."""
WITH_PEERS = ("scan", "training", "accuracy", "scale", "serving")
"""Programs that take ``--peers``."""
WITH_DATA = ("accuracy", "uncertainty")
"""Programs that take ``--data``, a folder with published files; accuracy needs it."""


def run(name: str, peers: Path, data: Path | None) -> dict[str, Any]:
    """Run a benchmark with its settings; its result, with the seconds it took. Raises UserError where it fails."""
    (program, *settings), started = SETTINGS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{program}", *settings, "--json", str(path)]
        command += ["--peers", str(peers.absolute())] if program in WITH_PEERS else []
        command += ["--data", str(data.absolute())] if program in WITH_DATA and data is not None else []
        done = subprocess.run(command, cwd=HOME, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode != 0:
            raise UserError(f"benchmarks.{program} ended with exit code {done.returncode}; what it said stands above.")
        return read_json(path) | {"took_seconds": round(time.monotonic() - started, 1)}


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Put the results of ``found`` into the file at ``path``, in place of older ones of the same names."""
    write_json(path, (read_json(path) if path.exists() else {}) | dict(found))


def taken(text: str) -> tuple[str, Path]:
    """``NAME=FILE`` as both; raises ArgumentTypeError for a name that stands for nothing or a file that is not there."""
    name, _, path = text.partition("=")
    if name not in (*SETTINGS, *TAKEN):
        raise argparse.ArgumentTypeError(f"found {text!r}; NAME=FILE takes one of {', '.join((*SETTINGS, *TAKEN))}")
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"found {text!r}; {path or 'FILE'} is not there")
    return name, Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Every benchmark with its committed settings.")
    options.set_defaults(json=RESULTS)
    options.add_argument("--only", choices=list(SETTINGS), nargs="+", help="those to run; None: all but what lacks its data")
    options.add_argument("--data", type=Path, metavar="FOLDER", help="published files, which accuracy needs")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has the peers")
    options.add_argument("--take", type=taken, nargs="+", metavar="NAME=FILE", help="run nothing; results of runs elsewhere")
    given = options.parse_args(arguments)
    if given.take:
        keep(given.json, {name: read_json(path) for name, path in given.take})
    failed = [] if given.take else run_all(given.only, given.json, given.peers, given.data)
    if given.json == RESULTS:
        tables.main()
    if failed:
        raise UserError(" ".join(failed))


def run_all(only: Sequence[str] | None, results: Path, peers: Path, data: Path | None) -> list[str]:
    """Run those asked for and keep each result at once; what was told of those that failed."""
    asked = only or [name for name, (program, *_) in SETTINGS.items() if program != "accuracy" or data is not None]
    if any(SETTINGS[name][0] in WITH_PEERS for name in asked) and not peers.exists():
        raise UserError(f"--peers is {peers}, which is not there; run `make peers` first or leave out {WITH_PEERS}.")
    if data is None and any(SETTINGS[name][0] == "accuracy" for name in asked):
        raise UserError("--data is missing: accuracy reads the published files from there (docs/benchmarks.md).")
    rows, failed = [], []
    for name in asked:
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        try:
            found = run(name, peers, data)
        except UserError as error:
            failed.append(str(error))
            rows.append((name, "failed"))
            continue
        keep(results, {name: found})
        rows.append((name, f"{found['took_seconds']:.0f} s"))
    print(table(("benchmark", "took"), rows))
    return failed


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"all: {error}", file=sys.stderr)
        raise SystemExit(2) from None
