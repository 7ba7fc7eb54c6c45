"""Files that are whole or not there: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks.errors import Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def told_when_full(path: Path | str) -> Iterator[None]:
    """Turn the error of a full disk, within the block that writes ``path``, into one sentence (Unavailable)."""
    try:
        yield
    except Exception as error:
        first = error.__cause__ if isinstance(error, Unavailable) else error  # told already of a file in this folder
        number = getattr(first, "errno", None)
        if number not in FULL and NO_SPACE not in str(first):  # writers in C++ and Rust keep the number in their text
            raise
        reason = os.strerror(number) if number in FULL else NO_SPACE
        raise Unavailable(f"{path} cannot be written ({reason}); free some space and run the same command again.") from first


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes its name when the block ends without an error.

    A full disk raises Unavailable. What a killed writer has left is cleared away by the next one.
    """
    path = Path(path)
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f".{glob.escape(path.stem)}.*.tmp{glob.escape(path.suffix)}"):
            if not _at_work(abandoned.name.removeprefix(f".{path.stem}.").partition("-")[0]):
                abandoned.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.{os.getpid()}-", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _at_work(pid: str) -> bool:
    """Whether the process that a temporary file's name tells is still running; True where it tells none."""
    try:
        with suppress(ValueError, PermissionError):
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


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
def held(path: Path | str, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold an flock on ``path``, which tells this process's id; where another holds it, ``busy`` is given its id first.

    ``busy`` may raise; where it returns, this process waits its turn.
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
        yield


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=_plain) + "\n")


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
