"""What orchestration costs: the default run by Prefect, MLflow and DVC beside the same work called directly.

``python -m benchmarks.overhead --json o.json`` runs both from nothing, one after the other, each in a folder of its own, and
then ``dvc repro`` with nothing to do. It takes twice as long as ``make run``; use an idle machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import HOME, machine, parser, report, table, versions
from benchmarks.path import Stopwatch
from tasks.errors import UserError
from tasks.files import read_json, write_json

HOUSES = ("flows", "tasks", "models", "benchmarks")
GOALS = {"overhead_share": 0.10, "overhead_seconds": 40.0, "no_op_seconds": 10.0}
BARE = "import sys; from benchmarks.overhead import bare; bare(sys.argv[1])"
NOTES = (
    "Seconds of the clock, each measured once: a run is long against the noise of an idle machine.",
    "bare: the work of every stage but register, called in order in one process, which imports everything once; members "
    "still train in processes of their own. It writes the same files and tells nobody.",
    "orchestrated: `weatherglass run` from nothing: a Prefect server, a process and a flow a stage, DVC's hashes and cache, "
    "MLflow's runs, and register, which writes the bundle.",
    "trained_members_equal says whether both trained the same networks to the last bit.",
)


def lay_out(folder: Path, params: Path) -> Path:
    """Lay out a project with nothing run in it: params.yaml, data, and the code on which stages depend."""
    shutil.copytree(HOME / "data/raw", folder / "data/raw")
    shutil.copyfile(params, folder / "params.yaml")
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copyfile(HOME / name, folder / name)
    (folder / ".dvc").mkdir()
    config = (HOME / ".dvc/config").read_text(encoding="utf-8")
    (folder / ".dvc/config").write_text(config.replace("[core]", "[core]\n    no_scm = true"), encoding="utf-8")
    for house in HOUSES:
        shutil.copytree(HOME / house, folder / house, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def bare(folder: str) -> None:
    """Every stage's work but register's, in order, in this process; writes the seconds of each to ``bare.json``."""
    from tasks.calibrate import calibrate
    from tasks.ensemble import make_ensemble
    from tasks.evaluate import run_baselines
    from tasks.evidence import evaluate_and_report
    from tasks.ingest import ingest
    from tasks.interpret import interpret
    from tasks.params import Params
    from tasks.prepare import prepare
    from tasks.projection.run import project
    from tasks.train import train_family

    root = Path(folder)
    params = Params.load(root=root)
    seconds = Stopwatch()
    for work in (ingest, prepare, run_baselines):
        seconds.time(work.__name__, work, params, root)
    for family in params.families:
        seconds.time(f"train@{family}", train_family, params, root, family)
    for work in (make_ensemble, calibrate, interpret):
        seconds.time(work.__name__, work, params, root)
    seconds.time("evaluate", evaluate_and_report, params, root, {})
    seconds.time("project", project, params, root)
    write_json(root / "bare.json", seconds)


def seconds_of(command: list[str], folder: Path) -> float:
    """Seconds that a command took in a folder; UserError with the end of its output where it failed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONPATH"] = str(folder)
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(f"`{' '.join(command)}` ended with exit code {done.returncode}: {done.stdout[-600:].strip()}")
    return time.perf_counter() - started


def measure(params: Path) -> dict[str, Any]:
    """Run both from nothing with the given params.yaml, then ``dvc repro`` again."""
    from flows.server import stop_server

    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        plain, whole = (lay_out(Path(folder) / name, params) for name in ("bare", "orchestrated"))
        bare_seconds = seconds_of([sys.executable, "-c", BARE, str(plain)], plain)
        orchestrated = seconds_of([sys.executable, "-m", "flows", "run"], whole)
        no_op = seconds_of([sys.executable, "-m", "dvc", "repro"], whole)
        stop_server(whole)
        same = all(_same_members(plain, whole, family.name) for family in (plain / "artifacts/train").iterdir())
        stages = read_json(plain / "bare.json")
    added = orchestrated - bare_seconds
    return {
        "bare_seconds": bare_seconds,
        "bare_seconds_by_stage": stages,
        "orchestrated_seconds": orchestrated,
        "overhead_seconds": added,
        "overhead_share": added / bare_seconds,
        "no_op_seconds": no_op,
        "trained_members_equal": same,
    }


def _same_members(plain: Path, whole: Path, family: str) -> bool:
    """Whether a family's networks have the same bytes in both folders."""
    ours, theirs = (
        [path.read_bytes() for path in sorted((root / "artifacts/train" / family).glob("*.safetensors"))]
        for root in (plain, whole)
    )
    return bool(ours) and ours == theirs


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--params", type=Path, default=HOME / "params.yaml", help="params.yaml of the run")
    given = arguments.parse_args()
    found = measure(given.params.resolve())
    result = {
        **found,
        "goals": GOALS,
        "notes": NOTES,
        "machine": machine(),
        "versions": versions(("prefect", "mlflow", "dvc", "torch")),
    }
    rows = [
        (name, f"{found[name]:.3f}", f"{GOALS[name]:g}" if name in GOALS else "-")
        for name in ("bare_seconds", "orchestrated_seconds", "overhead_seconds", "overhead_share", "no_op_seconds")
    ]
    report(result, table(("measure", "found", "goal, at most"), rows), given.json)


if __name__ == "__main__":
    main()
