"""One fault at one point of a process that the tests start, by Python's own audit events; the product knows nothing of it.

``FAULT`` holds JSON:

- ``on``: the ``start`` of a process, the ``read`` or ``write`` of a file, or the ``rename`` of something to it;
- ``path``: a pattern of the file, or of the command where ``on`` is ``start``;
- ``argv``: a pattern of the command, any by default;
- ``after``: true as soon as that has been done, false before;
- ``act``: ``kill`` this process and all of its group by SIGKILL, ``full`` for no space left on the disk (for every such file),
  or a command to start, whose first line of output is waited for.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR


class Fault:
    """Called with every audit event of this process."""

    def __init__(self, on: str, path: str, act: Any, argv: str = "", after: bool = False) -> None:
        self.on, self.pattern, self.act, self.after = on, re.compile(path), act, after
        self.event = "os.rename" if on == "rename" else "open"
        self.done = not re.search(argv, " ".join(sys.orig_argv))
        self.due: int | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.done or (event != self.event and self.due is None):
            return
        if self.due is not None:
            if self.due == threading.get_ident():
                self.happen("")
        elif (path := self.path(arguments)) and self.pattern.search(path):
            if self.after:
                self.due = threading.get_ident()
            else:
                self.happen(path)

    def path(self, arguments: tuple[Any, ...]) -> str:
        """The file that an event is about, where it is one of the wanted kind."""
        if self.on == "rename":
            return os.fsdecode(arguments[1])
        name, _, flags = arguments
        if isinstance(name, int) or (self.on == "write") != bool((flags or 0) & WRITES):
            return ""
        return os.fsdecode(name)

    def happen(self, path: str) -> None:
        if self.act == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.done = True
        if self.act == "kill":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        begun = subprocess.Popen(self.act, stdout=subprocess.PIPE, start_new_session=True)
        assert begun.stdout is not None
        begun.stdout.readline()


if "FAULT" in os.environ:
    fault = Fault(**json.loads(os.environ["FAULT"]))
    if fault.on != "start":
        sys.addaudithook(fault)
    elif fault.pattern.search(" ".join(sys.orig_argv)):
        fault.happen("")
