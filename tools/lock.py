"""Write requirements.lock, -serve.lock, -dev.lock and -services.lock from what is installed: exact pins of the whole closure.

    python tools/lock.py

Run it in an environment where the project, its extras dask, ray and postgres and its groups resolve and the tests pass
(make test-services, and pip install --group serve).
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


def write_lock(name: str, pinned: dict[str, str], base: str | None = None) -> None:
    """Write the pins of a lock file that begins with those of ``base``."""
    lines = ["# Exact pins, written by tools/lock.py; the ranges are in pyproject.toml.", *([f"-r {base}"] if base else [])]
    lines += [f"{package}=={version}" for package, version in sorted(pinned.items())]
    (ROOT / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]
    own, *others = groups["services"]
    wanted = [text for extra in sorted(Requirement(own).extras) for text in extras[extra]] + others
    tested = [requirement for extra in TESTED for requirement in extras[extra]]
    runtime, services = closure(project["project"]["dependencies"]), closure(wanted)
    development = closure(groups["dev"] + tested)
    development = {name: version for name, version in development.items() if name not in runtime}
    services = {name: version for name, version in services.items() if name not in runtime | development}
    write_lock("requirements.lock", runtime)
    write_lock("requirements-serve.lock", closure(groups["serve"]))
    write_lock("requirements-dev.lock", development, "requirements.lock")
    write_lock("requirements-services.lock", services, "requirements-dev.lock")


if __name__ == "__main__":
    main()
