"""``--help`` answers at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "lightning", "pytorch_forecasting", "mlflow", "prefect", "pandas", "sklearn", "matplotlib", "umap", "dvc")
LIST = f"import sys, flows.cli; print(*[name for name in {HEAVY} if name in sys.modules])"


def test_the_command_line_imports_nothing_heavy() -> None:
    listed = subprocess.run([sys.executable, "-c", LIST], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == []


@pytest.mark.parametrize("command", [[], ["forecast"], ["run"]])
def test_help_takes_under_two_seconds_of_work(command: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-m", "flows", *command, "--help"],
        cwd=PROJECT,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage: " in shown.stdout
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 2.0
    if not command:
        assert "Exit codes: 0 done, 1 failure, 2 a mistake" in shown.stdout


def test_lightning_is_there_to_train_alone() -> None:
    """It takes as long to import as all else that a forecast needs."""
    code = "import sys, tasks.forecast, tasks.calibrate, tasks.evaluate, tasks.train; print('lightning' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
