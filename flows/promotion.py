"""promote, rollback, history: which registered version answers."""

from __future__ import annotations

import json
from pathlib import Path


def _opened(root: Path) -> tuple[Path, str]:
    """The project's folder and the registered model's name, with the tracking store open."""
    from flows.environment import opened
    from tasks.tracking_store import initialise

    root, params = opened(root)
    initialise()
    return root, params.registry.name


def run_promote(root: Path, version: str | None, reason: str) -> int:
    """Promote and say so; returns the exit code."""
    from tasks.promotion import promote

    root, name = _opened(root)
    decision = promote(root, name, version, reason)
    if decision is None:
        print(f"{name}: that version is @champion already; nothing changed")
    else:
        before = "" if decision.champion is None else f"; version {decision.champion} is @previous_champion"
        print(f"{name}: version {decision.version} is @champion now{before}")
    return 0


def run_rollback(root: Path, reason: str) -> int:
    """Roll back and say so; returns the exit code."""
    from tasks.promotion import rollback

    root, name = _opened(root)
    decision = rollback(root, name, reason)
    print(f"{name}: version {decision.version} is @champion again in place of version {decision.champion}")
    return 0


def run_history(root: Path, as_json: bool) -> int:
    """Print the versions; returns the exit code."""
    from tasks.promotion import history, history_text

    _, name = _opened(root)
    rows = history(name)
    print(json.dumps(rows, indent=2) if as_json else history_text(rows))
    return 0
