"""All benchmarks in a row: settings that each understands, results side by side, and one that fails."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import all as every
from tasks.errors import UserError
from tasks.files import write_json


def test_every_benchmark_named_is_a_program_that_writes_json() -> None:
    for name in every.SETTINGS:
        module = importlib.import_module(f"benchmarks.{name}")
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in text and "given.json" in text, name
        assert ('"--peers"' in text) == (name in every.WITH_PEERS), name
        for option in (word for word in every.SETTINGS[name] if word.startswith("--")):
            assert f'"{option}"' in text, f"{name} {option}"


def test_results_are_kept_side_by_side_and_a_failure_is_told_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, peers: Path, folder: Path) -> dict[str, Any]:
        if name == "scan":
            raise UserError("benchmarks.scan ended with exit code 1.")
        return {"took_seconds": 12.0, "result": {"ratio": 3.0}}

    monkeypatch.setattr(every, "run", run)
    results = tmp_path / "results.json"
    write_json(results, {"loader": "old", "projection": "kept"})
    with pytest.raises(UserError, match=r"benchmarks\.scan"):
        every.main(["--only", "scan", "loader", "--peers", sys.executable, "--json", str(results)])
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["loader"]["result"] == {"ratio": 3.0} and found["projection"] == "kept" and "scan" not in found
    printed = capsys.readouterr().out
    assert "12 s" in printed and "failed" in printed


def test_a_benchmark_that_does_not_end_well_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(every.SETTINGS, "loader", ("--rows", "none"))
    with pytest.raises(UserError, match=r"benchmarks\.loader ended with exit code 2"):
        every.run("loader", Path("nowhere"), tmp_path)


def test_peers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match="nowhere/python, which is not there"):
        every.main(["--only", "scan", "--peers", "nowhere/python"])
