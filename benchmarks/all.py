"""Every benchmark, one after the other, with the settings whose figures the documentation quotes.

``python -m benchmarks.all [--only loader scale] [--peers .venv-peers/bin/python]`` writes ``docs/measured/<name>.json`` of each
and ``benchmarks/results.json`` of all; ``python tools/measured.py`` then writes the README's table. Hours; use an idle machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, table
from tasks.errors import UserError
from tasks.files import read_json, write_json

HOME = Path(__file__).resolve().parent.parent
RESULTS, MEASURED = Path("benchmarks/results.json"), Path("docs/measured")
SETTINGS: dict[str, tuple[str, ...]] = {
    "loader": (),
    "scan": (),
    "streaming": (),
    "training": (),
    "speculative": (),
    "projection": (),
    "uncertainty": (),
    "scale": ("--sizes", "1e4", "1e5", "1e6", "1e7", "1e8", "--limit-seconds", "3600"),
    "many": ("--series", "1000", "10000", "100000"),
    "overhead": (),
    "serving": (),
}
"""What each is called with."""
WITH_PEERS = ("scan", "training", "scale", "serving")
"""Those that take ``--peers``."""


def run(name: str, peers: Path, folder: Path) -> dict[str, Any]:
    """Run a benchmark with its settings; its result with the seconds it took, also in ``folder/<name>.json``.

    Raises UserError where it fails.
    """
    path, started = folder / f"{name}.json", time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *SETTINGS[name], "--json", str(path.absolute())]
    command += ["--peers", str(peers.absolute())] if name in WITH_PEERS else []
    path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=HOME, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode != 0:
        raise UserError(f"benchmarks.{name} ended with exit code {done.returncode}; what it said stands above.")
    return {"took_seconds": time.monotonic() - started, "result": read_json(path)}


def merged(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``path`` holds, if it is there, with the results of ``found`` in place of older ones."""
    return (read_json(path) if path.exists() else {}) | dict(found)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Every benchmark with its committed settings.")
    options.set_defaults(json=HOME / RESULTS)
    options.add_argument("--only", choices=list(SETTINGS), nargs="+", default=list(SETTINGS), help="those to run")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has the peers")
    options.add_argument("--measured", type=Path, default=HOME / MEASURED, help="folder of each benchmark's own result")
    given = options.parse_args(arguments)
    if any(name in WITH_PEERS for name in given.only) and not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first or leave out {WITH_PEERS}.")
    rows, failed = [], []
    for name in given.only:
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        try:
            found = run(name, given.peers, given.measured)
        except UserError as error:
            failed.append(str(error))
            rows.append((name, "failed"))
            continue
        write_json(given.json, merged(given.json, {name: found | {"machine": machine()}}))  # at once: the next takes long
        rows.append((name, f"{found['took_seconds']:.0f} s"))
    print(table(("benchmark", "took"), rows))
    if failed:
        raise UserError(" ".join(failed))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"all: {error}", file=sys.stderr)
        raise SystemExit(2) from None
