"""How the service's processes keep their heap small, where there is glibc."""

from __future__ import annotations

import ctypes
import gc

M_ARENA_MAX = -8  # <malloc.h>


def one_heap() -> None:
    """Keep one heap for all threads: one for each would hold on to what its thread once needed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Free what lies in cycles, and hand freed memory back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
