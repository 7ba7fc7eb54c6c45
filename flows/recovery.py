"""What a killed DVC leaves behind, mended before the next ``dvc repro``: DVC writes neither of these files atomically."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.files import atomic_path, locked, write_text

LOCK = Path("dvc.lock")
KEPT = Path(".weatherglass/dvc.lock")
TORN = Path(".weatherglass/dvc.lock.torn")
RWLOCK = Path(".dvc/tmp/rwlock")


def keep_lock(root: Path) -> None:
    """Keep a copy of dvc.lock; a stage calls this, since DVC writes nothing while one runs."""
    if is_whole(root / LOCK):
        with atomic_path(root / KEPT) as temporary:
            shutil.copyfile(root / LOCK, temporary)


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a lock file that DVC can read; where its end is missing at a line's end, DVC finds out itself."""
    try:
        text = path.read_text(encoding="utf-8")
        stages = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"].values()
        entries = [entry for stage in stages for entry in [*stage.get("deps", ()), *stage.get("outs", ())]]
        filled = all("path" in entry and None not in entry.values() for entry in entries)
        return text.endswith("\n") and filled and all("cmd" in stage for stage in stages)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return False


def mend_dvc(root: Path) -> None:
    """Restore a torn dvc.lock from its copy and drop locks of processes that are gone; says on stderr what it does.

    The torn file is set aside as ``.weatherglass/dvc.lock.torn``. A stage whose record is lost is run again, or comes from
    DVC's cache of runs. A file with git's conflict marks is left to the user.
    """
    path = root / LOCK
    if path.exists() and not is_whole(path) and "<<<<<<<" not in path.read_text(encoding="utf-8", errors="replace"):
        (root / TORN).parent.mkdir(exist_ok=True)
        shutil.move(path, root / TORN)
        if is_whole(root / KEPT):
            with atomic_path(path) as temporary:
                shutil.copyfile(root / KEPT, temporary)
        print("dvc.lock was left half-written by a killed run; its last whole version is used", file=sys.stderr)
    if (root / RWLOCK).exists():
        with locked(root / f"{RWLOCK}.lock"):  # the guard under which DVC itself edits the file
            _drop_dead_locks(root / RWLOCK)


def _drop_dead_locks(path: Path) -> None:
    """Leave only what processes of DVC's hold that still run; a pid may belong to another program by now."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        kept: dict[str, Any] = {
            "write": {name: info for name, info in held["write"].items() if _is_dvc(info)},
            "read": {name: live for name, infos in held["read"].items() if (live := [i for i in infos if _is_dvc(i)])},
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        path.unlink()
        return
    if kept != held:
        write_text(path, json.dumps(kept))


def _is_dvc(info: Any) -> bool:
    with suppress(psutil.Error):
        return any("dvc" in part for part in psutil.Process(int(info["pid"])).cmdline())
    return False
