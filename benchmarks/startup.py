"""What each command costs before it works: processor time of ``--help``, and of all that its flow imports.

``python -m benchmarks.startup --json s.json``. What a command imports is read off ``flows/``: all that its function and the
modules of flows/ that it comes to import at any place, so more than one call may need.
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import HOME, alternating, at_least, machine, parser, report, table, versions

CLI = HOME / "flows/cli.py"
EXTRAS = ("ray", "dask", "distributed", "prefect_ray", "prefect_dask")
"""Packages that a run of the project does without."""
PEAK = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
NOTES = (
    "Seconds of processor time of a whole process, Python's own start included; files of modules lie in the system's memory.",
)


def commands(path: Path = CLI) -> dict[str, list[str]]:
    """Modules that each command of a module of typer commands imports in its body, by the command's name."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        calls = [each for each in getattr(node, "decorator_list", ()) if isinstance(each, ast.Call)]
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(call.func) == "app.command" for call in calls):
            name = next((str(word.value) for call in calls for word in call.args if isinstance(word, ast.Constant)), node.name)
            found[name] = reached(node)
    return found


def reached(node: ast.AST, seen: frozenset[str] = frozenset()) -> list[str]:
    """Modules that ``node`` imports at any place, and those that the modules of flows/ among them do."""
    found = set(seen)
    for module in sorted(imported(node) - seen):
        found.add(module)
        path = HOME / f"{module.replace('.', '/')}.py"
        if module.startswith("flows.") and path.exists():
            found |= set(reached(ast.parse(path.read_text(encoding="utf-8")), frozenset(found)))
    return sorted(found)


def imported(node: ast.AST) -> set[str]:
    """Modules of the import statements in ``node``, but for those that types alone need and Python's own."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set()
    if isinstance(node, ast.ImportFrom):
        found = {str(node.module)}
    elif isinstance(node, ast.Import):
        found = {alias.name for alias in node.names}
    else:
        found = set().union(*(imported(child) for child in ast.iter_child_nodes(node)))
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] not in EXTRAS}


def cost(command: Sequence[str]) -> float:
    """Seconds of processor time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=HOME, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """``help_s`` and ``imports_s`` of each command."""
    works = {name: f"import flows.cli, {', '.join(modules)}" for name, modules in commands().items()}
    asks = {f"help {name}": [sys.executable, "-m", "flows", name, "--help"] for name in works}
    imports = {f"imports {name}": [sys.executable, "-W", "ignore", "-c", code] for name, code in works.items()}
    taken = alternating({name: partial(cost, command) for name, command in (asks | imports).items()}, rounds)
    return {name: {"help_s": taken[f"help {name}"], "imports_s": taken[f"imports {name}"]} for name in works}


def summary(result: dict[str, Any]) -> str:
    rows = ((name, f"{each['help_s']:.2f}", f"{each['imports_s']:.2f}") for name, each in result["commands"].items())
    return table(("command", "--help s", "imports s"), rows)


def main(arguments: list[str] | None = None) -> None:
    options = parser("What each command costs before it works.")
    options.add_argument("--rounds", type=at_least(1), default=3, help="times that each is measured")
    given = options.parse_args(arguments)
    result = {
        "commands": measure(given.rounds), "rounds": given.rounds, "machine": machine(),
        "versions": versions(["prefect", "mlflow", "torch"]), "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


if __name__ == "__main__":
    main()
