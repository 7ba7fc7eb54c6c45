"""--json: JSON alone on stdout, also where processes that a command starts print."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.files import write_json

CHATTY = """
import subprocess, sys
from flows.outcome import aside, tell
with aside(True):
    print("said here")
    subprocess.run([sys.executable, "-c", "print('said by another')"], check=True)
tell({"exit": 0})
"""


def test_what_is_said_on_the_way_goes_to_stderr(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTY], capture_output=True, text=True, check=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert json.loads(done.stdout) == {"exit": 0}
    assert "said here" in done.stderr and "said by another" in done.stderr


def test_the_report_as_json_holds_the_metrics(tmp_path: Path, weatherglass: Callable[..., Any]) -> None:
    metrics = {"ensemble/wql": 0.02, "tcn/wql": 0.03}
    write_json(tmp_path / "metrics/test.json", metrics)
    ended = weatherglass(tmp_path, "report", "--json")
    assert (ended.code, json.loads(ended.out)) == (0, {"exit": 0, "metrics": metrics})


def test_a_mistake_leaves_stdout_empty(tmp_path: Path, weatherglass: Callable[..., Any]) -> None:
    ended = weatherglass(tmp_path, "run", "--json")
    assert (ended.code, ended.out) == (2, "") and "params.yaml" in ended.err
