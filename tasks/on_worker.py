"""What all work on a cluster's workers needs: one piece after the other, and the project's folder in sight."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from tasks.errors import UserError

IN_TURN = threading.Lock()
"""Held by a worker for as long as a member trains or a part is forecast, which draw from its process's random numbers."""


def must_see(path: Path) -> None:
    """Raise UserError where this worker does not see ``path``."""
    if not path.exists():
        raise UserError(
            f"a worker on {socket.gethostname()} does not see {path}; keep the project in a folder that all workers share "
            "under one path, or set runner: local."
        )
