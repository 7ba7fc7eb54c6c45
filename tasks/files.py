"""Files that are whole or not there: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks.errors import Unavailable, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = os.strerror(errno.ENOSPC)
FULL_TEXT = re.compile(rf"{NO_SPACE}|{os.strerror(errno.EFBIG)}|\d+ requested and \d+ written")
"""How a full disk is told by writers that leave the error's number out: those in C++ and Rust, and numpy's."""
ABANDONED = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\.\w+)?")


@contextmanager
def told_when_full(path: Path | str) -> Iterator[None]:
    """Turn the error of a full disk, within the block that writes ``path``, into one sentence (Unavailable)."""
    try:
        yield
    except Exception as error:
        first = error.__cause__ if isinstance(error, Unavailable) else error  # told already of a file in this folder
        number = getattr(first, "errno", None)
        if number not in FULL and not FULL_TEXT.search(str(first)):
            raise
        reason = os.strerror(number) if number in FULL else NO_SPACE
        raise Unavailable(f"{path} cannot be written ({reason}); free some space and run the same command again.") from first


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes its name when the block ends without an error.

    A full disk raises Unavailable. What killed writers have left in the folder is cleared away.
    """
    path = Path(path)
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path.parent)
        handle, temporary = _locked_temporary(path)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new temporary file for ``path`` under a lock that ends with its writer, however that ends."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # nobody has cleared it away before it was locked
            return handle, Path(name)
        os.close(handle)


def _clear_abandoned(folder: Path) -> None:
    """Remove temporary files of `atomic_path` in ``folder`` whose writers are gone: nobody holds their lock."""
    for left in folder.glob(".*.tmp*"):
        if ABANDONED.fullmatch(left.name) and left.is_file():
            with suppress(OSError), left.open("r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces it when the block ends without an error.

    A full disk raises Unavailable. What a killed writer has left is cleared away by the next one.
    """
    path = Path(path)
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f".{path.name}.*.tmp"):  # by a killed run; a folder has one writer at a time
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path | str, shared: bool = False) -> Iterator[None]:
    """Hold an flock on ``path``, waiting for it; the kernel releases it when the process ends, however it ends."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def held(path: Path | str, busy: Callable[[str], None]) -> Iterator[int]:
    """Hold an flock on ``path``, which tells this process's id; where another holds it, ``busy`` is given its id first.

    ``busy`` may raise; where it returns, this process waits its turn. Yields the lock's file descriptor: a child that it is
    passed to holds the lock too, and on where this process is killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            busy(handle.read().strip())
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield handle.fileno()


def waiting(doing: str) -> Callable[[str], None]:
    """For `held`: say on stderr that this process waits for another, which is ``doing`` something."""

    def tell(pid: str) -> None:
        gone = Path("/proc").is_dir() and not Path("/proc", pid).exists()
        who = f"what the killed process {pid} left" if gone else f"process {pid}"
        print(f"waiting for {who}, which is {doing}", file=sys.stderr, flush=True)

    return tell


def refusing(doing: str) -> Callable[[str], None]:
    """For `held`: raise UserError, since another process is ``doing`` something."""

    def refuse(pid: str) -> None:
        raise UserError(f"process {pid} is {doing}; wait for its end.")

    return refuse


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON with sorted keys, atomically; NaN and infinities are refused with ValueError.

    Indented for who reads it; without ``indent`` on one line, ten times as fast where it is long.
    """
    write_text(path, json.dumps(value, indent=indent, sort_keys=True, allow_nan=False, default=_plain) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_md5(path: Path | str) -> str:
    """Return the MD5 of a file's bytes, as DVC names data versions."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and paths into what JSON can hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
