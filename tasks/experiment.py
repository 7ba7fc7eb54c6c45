"""Which DVC experiment this process is part of, and what its params.yaml changes against the committed one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.params_file import dotted, yaml_tree

NAME_VARIABLE, BASELINE_VARIABLE, ROOT_VARIABLE = "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT"
COMMIT_VARIABLE = "WEATHERGLASS_COMMIT"
SHOWN = 5  # changed keys that a run's name tells


def experiment_name() -> str | None:
    """The name of the ``dvc exp run`` that started this process, None outside of one."""
    return os.environ.get(NAME_VARIABLE) or None


def home(root: Path | str) -> Path:
    """The project whose stores a run in ``root`` writes to.

    That is ``root``, but for an experiment in a temporary copy of the project (``--temp``, ``--queue``), which is removed
    afterwards.
    """
    project = os.environ.get(ROOT_VARIABLE) if experiment_name() else None
    return Path(project or root).resolve()


def revision(root: Path) -> str | None:
    """The commit in short, after its last tag if there is one, ``-dirty`` where tracked files differ from it."""
    return _git(root, "describe", "--tags", "--always", "--dirty")


def commit(root: Path) -> str | None:
    """The full name of the commit that is checked out; outside of git that of ``WEATHERGLASS_COMMIT``, or None."""
    return _git(root, "rev-parse", "HEAD") or os.environ.get(COMMIT_VARIABLE) or None


def changed_params(root: Path) -> dict[str, Any]:
    """Keys of params.yaml by dotted names whose values differ from the commit's (in an experiment its baseline's).

    Empty where nothing is committed. A key that the commit alone has is None.
    """
    committed = _git(root, "show", f"{os.environ.get(BASELINE_VARIABLE) or 'HEAD'}:./params.yaml")
    if committed is None:
        return {}
    try:
        before, after = yaml_tree(committed), yaml_tree((root / "params.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}
    old, new = (dict(dotted(tree if isinstance(tree, dict) else {})) for tree in (before, after))
    return {key: new.get(key) for key in sorted(old | new) if key not in old or old[key] != new.get(key)}


def described(changed: Mapping[str, Any]) -> str:
    """Changed keys in a few words, such as ``tcn.width=24, train.seed=3``; empty where nothing changed."""
    told = [f"{key.removeprefix('forecasters.')}={_spelt(value)}" for key, value in changed.items()]
    rest = len(told) - SHOWN
    return ", ".join(told[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _spelt(value: Any) -> str:
    """A value as params.yaml spells it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_spelt, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers in ``root``, None where it refuses or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
