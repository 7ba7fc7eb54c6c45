"""The data file as DVC tracks it: brought up to date from where it was imported, or fetched where it is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tasks.errors import UserError
from tasks.params import Params


def pull(root: Path, params: Params) -> str | None:
    """Bring ``data.path`` up to date where a ``.dvc`` file beside it tracks it; returns the DVC command, None where idle.

    A file that was imported (``dvc import``, ``dvc import-url``) is updated from its origin; one that was added is fetched
    from the remote where it is not there, and left alone where it is.

    Raises
    ------
    UserError
        If DVC cannot do so: the origin or the remote does not answer, or none is configured.
    """
    if params.data.path is None:
        return None
    tracked = Path(f"{params.data.path}.dvc")
    if not (root / tracked).is_file():
        return None
    imported = "deps" in yaml.safe_load((root / tracked).read_text(encoding="utf-8"))
    if not imported and (root / params.data.path).exists():
        return None
    verb = "update" if imported else "pull"
    done = _dvc(root, verb, tracked)
    if done.returncode != 0:
        _dvc(root, "checkout", tracked)  # `dvc update` has removed the file before it fails; the cache has it
        raise UserError(
            f"`dvc {verb} {tracked}` failed ({_reason(done.stderr)}); mend the origin or the remote (`dvc remote list`) and "
            "run the same command again."
        )
    return f"dvc {verb} {tracked}"


def _dvc(root: Path, verb: str, tracked: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", verb, str(tracked)], cwd=root, capture_output=True, text=True, check=False
    )


def _reason(text: str) -> str:
    """DVC's own reason, which follows ``ERROR:``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (told or lines or ["no reason given"])[0].rstrip(".")
