"""Write requirements.lock and requirements-dev.lock from what is installed: exact pins of the whole closure.

    python tools/lock.py

Run it in an environment where the project and its dev group resolve and the tests pass.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TESTED = ("tune",)  # extras that the tests use


def closure(requirements: list[str]) -> dict[str, str]:
    """Installed version of every package that ``requirements`` need, by canonical name."""
    pinned: dict[str, str] = {}
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, extras = waiting.pop()
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker and not any(requirement.marker.evaluate(environment) for environment in environments):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        package = distribution(requirement.name)
        pinned[key[0]] = package.version.split("+")[0]
        waiting += [(Requirement(text), key[1]) for text in package.requires or []]
    return pinned


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = closure(project["project"]["dependencies"])
    tested = [requirement for extra in TESTED for requirement in project["project"]["optional-dependencies"][extra]]
    development = closure(project["dependency-groups"]["dev"] + tested)
    head = "# Exact pins, written by tools/lock.py; the ranges are in pyproject.toml.\n"
    lines = [f"{name}=={version}" for name, version in sorted(runtime.items())]
    (ROOT / "requirements.lock").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"{name}=={version}" for name, version in sorted(development.items()) if name not in runtime]
    (ROOT / "requirements-dev.lock").write_text(head + "-r requirements.lock\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
