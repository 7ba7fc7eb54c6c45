"""Work that draws from its process's random numbers, one piece after the other where a worker has threads."""

from __future__ import annotations

import threading

IN_TURN = threading.Lock()
"""Held by a worker for as long as a member trains or a part is forecast."""
