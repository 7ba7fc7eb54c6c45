"""promote, rollback, history: which registered version answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path


def _opened(root: Path) -> tuple[Path, str]:
    """The project's folder and the registered model's name, with the tracking store open."""
    from flows.environment import opened
    from tasks.tracking_store import initialise

    root, params = opened(root)
    initialise()
    return root, params.registry.name


def run_promote(root: Path, version: str | None, reason: str, as_json: bool = False) -> int:
    """Promote and say so; returns the exit code."""
    from tasks.promotion import promote

    root, name = _opened(root)
    decision = promote(root, name, version, reason)
    if as_json:
        print(json.dumps({"exit": 0, "changed": decision is not None} | (asdict(decision) if decision else {}), indent=2))
    elif decision is None:
        print(f"{name}: that version is @champion already; nothing changed")
    else:
        before = "" if decision.champion is None else f"; version {decision.champion} is @previous_champion"
        print(f"{name}: version {decision.version} is @champion now{before}")
    return 0


def run_rollback(root: Path, reason: str, as_json: bool = False) -> int:
    """Roll back and say so; returns the exit code."""
    from tasks.promotion import rollback

    root, name = _opened(root)
    decision = rollback(root, name, reason)
    if as_json:
        print(json.dumps({"exit": 0, "changed": True} | asdict(decision), indent=2))
    else:
        print(f"{name}: version {decision.version} is @champion again in place of version {decision.champion}")
    return 0


def run_history(root: Path, as_json: bool) -> int:
    """Print the versions; returns the exit code."""
    from tasks.promotion import history, history_rows
    from tasks.terminal import show_table

    _, name = _opened(root)
    rows = history(name)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show_table(
            history_rows(rows), f"Versions of {name}", strong=[row["version"] for row in rows if "champion" in row["aliases"]]
        )
    return 0
