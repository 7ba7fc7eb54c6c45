"""``--json``: what a command has to tell as JSON on stdout alone; what is said on the way goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any


@contextmanager
def aside(wanted: bool) -> Iterator[None]:
    """Send to stderr what this process and those it starts print within the block, if ``wanted``."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def tell(told: Any) -> None:
    """Print JSON; what it has no form for, such as a path, as text."""
    print(json.dumps(told, indent=2, default=str))


def pipeline_outcome(root: Path, code: int) -> dict[str, Any]:
    """Where the results of a run are, its metrics and what was registered; nothing but the exit code where it failed."""
    from tasks.files import read_json
    from tasks.summary import MAP, METRICS, PROJECTION, REPORT
    from tasks.versions import RECEIPT

    told: dict[str, Any] = {"exit": code}
    if code not in (0, 3):
        return told
    files = {"report": REPORT, "map": PROJECTION / MAP}
    told |= {name: str((root / path).resolve()) for name, path in files.items() if (root / path).exists()}
    for name, path in (("metrics", METRICS), ("receipt", RECEIPT)):
        if (root / path).exists():
            told[name] = read_json(root / path)
    return told


def retrain_outcome(root: Path, code: int) -> dict[str, Any]:
    """The run's outcome, which version is champion now, and the last decision about the version of the run."""
    from tasks.promotion import history

    told = pipeline_outcome(root, code)
    if code not in (0, 3):
        return told
    rows = {row["version"]: row for row in history(told["receipt"]["model"])}
    champion = next((version for version, row in rows.items() if "champion" in row["aliases"]), None)
    decisions = rows.get(str(told["receipt"]["version"]), {}).get("decisions") or [None]
    return told | {"outcome": "promoted" if code == 0 else "kept", "champion": champion, "decision": decisions[-1]}
