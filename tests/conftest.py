"""A tiny project that the tests share: seven hourly series without covariates, small networks, two members each."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two cores, and members train in processes of their own
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("DO_NOT_TRACK", "1")

PROJECT = Path(__file__).resolve().parents[1]
LENGTHS = {"a": 600, "b": 600, "c": 590, "d": 560, "e": 600, "f": 420, "short": 110}
DATA = {"source": "file", "path": "data/raw/hourly.csv", "frequency": "h", "horizon": 6, "holidays": None}
SMALL = {
    "tft": {"hidden_size": 8, "attention_heads": 2, "hidden_continuous_size": 4, "batch_size": 16, "max_epochs": 2},
    "deepar": {"hidden_size": 8, "layers": 1, "paths": 20, "batch_size": 16, "max_epochs": 2},
    "tcn": {"width": 8, "levels": 3, "batch_size": 16, "max_epochs": 2},
    "mamba": {"width": 8, "layers": 1, "state_size": 4, "batch_size": 16, "max_epochs": 2},
    "gradient_boosting": {"rows": 2000, "trees": 20},
}
SERVICE_VARIABLES = (
    "PREFECT_API_URL",
    "PREFECT_HOME",
    "MLFLOW_TRACKING_URI",
    "WEATHERGLASS_EMBEDDED_SERVER",
    "WEATHERGLASS_PARENT_RUN",
    "DVC_STAGE",
)


HOLD_SERVER = """
import sys
from pathlib import Path
from flows import environment
environment.configure(Path.cwd())
from flows.server import prefect_server
with prefect_server(Path.cwd()) as api_url:
    print(api_url, flush=True)
    sys.stdin.read()
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def hourly_table() -> pd.DataFrame:
    """Seven series of a daily cycle, a level and noise of their own; all end together, so the short one starts late."""
    rng = np.random.default_rng(7)
    end = pd.Timestamp("2024-03-01 23:00")
    parts = []
    for number, (name, length) in enumerate(LENGTHS.items()):
        ds = pd.date_range(end=end, periods=length, freq="h")
        cycle = np.sin(2 * np.pi * (ds.hour.to_numpy() + number) / 24)
        y = 20 * (number + 1) + 5 * cycle + rng.normal(0, 1.0, length)
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y.round(4)}))
    return pd.concat(parts, ignore_index=True)


def write_project(folder: Path) -> Path:
    """Lay out the tiny project: its params and data, and the code files on which stages depend."""
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    tree["data"] |= DATA | {"known_future": [], "past_only": []}
    for family, values in SMALL.items():
        tree["forecasters"][family] |= values
    tree["train"] |= {"members": 2, "batches_per_epoch": 4, "patience": 100}
    tree["baselines"]["max_history"] = 120
    tree["projection"] |= {"points": 60, "neighbors": [5]}
    (folder / "data/raw").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    hourly_table().to_csv(folder / "data/raw/hourly.csv", index=False)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copyfile(PROJECT / name, folder / name)
    (folder / ".dvc").mkdir(exist_ok=True)
    config = (PROJECT / ".dvc/config").read_text(encoding="utf-8")
    (folder / ".dvc/config").write_text(config.replace("[core]", "[core]\n    no_scm = true"), encoding="utf-8")
    for house in ("flows", "tasks", "models"):
        shutil.copytree(PROJECT / house, folder / house, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def change_params(root: Path, changes: dict[str, Any]) -> None:
    """Set keys of a project's params.yaml, such as ``{"train.seed": 3}``."""
    path = root / "params.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *blocks, name = key.split(".")
        branch = tree
        for block in blocks:
            branch = branch[block]
        branch[name] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of a command: no service is named, this interpreter is the first ``python``, one thread a process."""
    kept = {name: value for name, value in os.environ.items() if name not in SERVICE_VARIABLES}
    folder = str(Path(sys.executable).parent)
    return kept | {"PATH": f"{folder}{os.pathsep}{kept.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def new_project() -> Callable[[Path], Path]:
    """Lay out the tiny project, with nothing run, in a folder."""
    return write_project


@pytest.fixture(scope="session")
def prepared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project after ingest and prepare; tests that write into it copy it first."""
    from tasks.ingest import ingest
    from tasks.params import Params
    from tasks.prepare import prepare

    root = write_project(tmp_path_factory.mktemp("prepared") / "project")
    params = Params.load(root=root)
    ingest(params, root)
    prepare(params, root)
    return root


@pytest.fixture(scope="session")
def trained_project(prepared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared project with a TCN and a Mamba trained, two members each."""
    from tasks.params import Params
    from tasks.train import train_family

    root = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(prepared_project, root)
    change_params(root, {"families": ["tcn", "mamba"], "baselines.models": ["seasonal_naive"]})
    params = Params.load(root=root)
    for family in params.families:
        train_family(params, root, family)
    return root


@pytest.fixture(scope="session")
def evaluate_project() -> Callable[[Path], None]:
    """Run ensemble, calibrate, baselines and evaluate in a trained project."""
    from tasks.calibrate import calibrate
    from tasks.ensemble import make_ensemble
    from tasks.evaluate import evaluate, run_baselines
    from tasks.params import Params

    def run(root: Path) -> None:
        params = Params.load(root=root)
        for work in (make_ensemble, calibrate, run_baselines, evaluate):
            work(params, root)

    return run


@pytest.fixture(scope="session")
def evaluated_project(
    trained_project: Path, evaluate_project: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The trained project after ensemble, calibrate, baselines and evaluate."""
    root = tmp_path_factory.mktemp("evaluated") / "project"
    shutil.copytree(trained_project, root)
    evaluate_project(root)
    return root


@pytest.fixture(scope="session")
def pipeline_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole pipeline is run: the tiny project with three families."""
    root = write_project(tmp_path_factory.mktemp("pipeline") / "project")
    change_params(root, {"families": ["tft", "tcn", "gradient_boosting"]})
    return root


@pytest.fixture(scope="session")
def prefect_api(pipeline_root: Path, environment: dict[str, str]) -> Iterator[str]:
    """Address of the embedded server of ``pipeline_root``, held by a process of its own until the last test is done."""
    from flows.server import stop_server

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_SERVER],
        cwd=pipeline_root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    yield holder.stdout.readline().strip()
    holder.kill()
    holder.wait()
    stop_server(pipeline_root)


@pytest.fixture(scope="session")
def edit_params() -> Callable[..., None]:
    """Set keys of a project's params.yaml: ``edit_params(root, {"train.seed": 3})``."""
    return change_params


@pytest.fixture
def weatherglass(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """Call the command line within this process, as a user in the folder ``root`` would."""
    import mlflow

    from flows.cli import main

    before = mlflow.get_tracking_uri()
    kept = dict(os.environ)
    for name in SERVICE_VARIABLES:
        os.environ.pop(name, None)

    def call(root: Path, *arguments: str) -> Ended:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["weatherglass", *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    yield call
    os.environ.clear()
    os.environ.update(kept)
    mlflow.set_tracking_uri(before)
