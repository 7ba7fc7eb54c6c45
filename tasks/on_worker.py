"""What all work on a cluster's workers needs: one piece after the other, the project's folder in sight, and one to share."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.files import locked

PARTS = Path(".weatherglass/parts")

IN_TURN = threading.Lock()
"""Held by a worker for as long as a member trains or a part is forecast, which draw from its process's random numbers."""


def must_see(path: Path) -> None:
    """Raise UserError where this worker does not see ``path``."""
    if not path.exists():
        raise UserError(
            f"a worker on {socket.gethostname()} does not see {path}; keep the project in a folder that all workers share "
            "under one path, or set runner: local."
        )


@contextmanager
def shared_folder(root: Path) -> Iterator[Path]:
    """A folder in the project for one run's parts; what a run that was killed has left is deleted, and another waits."""
    with locked(root / PARTS / "lock"):
        for left in (root / PARTS).glob("run-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="run-", dir=root / PARTS, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
