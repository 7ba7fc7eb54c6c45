"""A small pipeline that was never disturbed, copies of it to disturb, and the table of what was tried and what came of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

INJECT = Path(__file__).parent / "inject"
FEW = {
    "families": ["tcn", "gradient_boosting"],
    "train.members": 1,
    "forecasters.tcn.max_epochs": 2,
    "baselines.models": ["seasonal_naive"],
    "projection.points": 20,
}
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "PREFECT_CLIENT_MAX_RETRIES": "1"}
TABLE = pytest.StashKey[list[tuple[str, str, str]]]()


class Project:
    """A project's folder and the commands that are run in it, each a process group of its own."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment | IMPATIENT

    def start(self, *arguments: str, fault: dict[str, Any] | None = None, **variables: str) -> subprocess.Popen[str]:
        """Begin ``python -m <arguments>``; ``fault`` is what `inject/sitecustomize.py` reads."""
        environment = self.environment | variables | {"PYTHONPATH": str(INJECT)}
        if fault is not None:
            environment["FAULT"] = json.dumps(fault)
        command = [sys.executable, *([] if arguments[0].startswith("-") else ["-m"]), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`start`, to its end."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def copy(self, root: Path) -> Project:
        """The same project in another folder; runs of the registry still lie where they were made."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("server"))
        return Project(root, self.environment)

    def recorded(self) -> dict[str, Any]:
        """Digests of the outputs that DVC has recorded, by stage; reports name their run, so their bytes are not compared."""
        path = self.root / "dvc.lock"
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
        return {
            name: {out["path"]: out["md5"] for out in stage["outs"] if out["path"] != "reports/report.html"}
            for name, stage in stages.items()
        }

    def members(self) -> dict[str, int]:
        """When the weights that training keeps were written, in nanoseconds."""
        kept = (self.root / ".weatherglass/checkpoints").glob("*/*/member_*/weights.safetensors")
        return {str(path.relative_to(self.root)): path.stat().st_mtime_ns for path in kept}

    def leftovers(self) -> list[str]:
        """Files and folders that somebody began and did not finish."""
        found = (path for path in self.root.rglob(".*.tmp*") if ".dvc" not in path.parts)
        return sorted(str(path.relative_to(self.root)) for path in found)


@pytest.fixture(scope="session")
def new_small(
    environment: dict[str, str], new_project: Callable[[Path], Path], edit_params: Callable[..., None]
) -> Iterator[Callable[[Path], Project]]:
    """Lay out the small project in a folder; its Prefect server is stopped at the end."""
    from flows.server import stop_server

    made: list[Path] = []

    def make(root: Path) -> Project:
        edit_params(new_project(root), FEW)
        made.append(root)
        return Project(root, environment)

    yield make
    for root in made:
        stop_server(root)


@pytest.fixture(scope="session")
def undisturbed(new_small: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project after one run from beginning to end."""
    project = new_small(tmp_path_factory.mktemp("undisturbed") / "project")
    done = project.run("flows", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return project


@pytest.fixture
def disturbed(undisturbed: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of the undisturbed project."""
    from flows.server import stop_server

    project = undisturbed.copy(tmp_path / "project")
    yield project
    stop_server(project.root)


@pytest.fixture
def fault(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """Enter a row in the table: ``with fault("what goes wrong", "what must come of it"): ...``."""
    rows = pytestconfig.stash.setdefault(TABLE, [])

    @contextmanager
    def tried(what: str, required: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            rows.append((what, required, "NO"))
            raise
        rows.append((what, required, "yes"))

    return tried


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of faults tried and outcomes."""
    lines = [("fault", "required", "so it was"), *config.stash.get(TABLE, [])]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    terminalreporter.section("faults tried")
    for line in lines:
        terminalreporter.write_line("  ".join(map(str.ljust, line, widths)).rstrip())
    missed = sum(line[2] == "NO" for line in lines)
    terminalreporter.write_line(f"{len(lines) - 1} faults, {missed} not as required")
