"""All benchmarks in a row: settings that each understands, results side by side, and one that fails."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import all as every
from benchmarks import tables
from benchmarks.common import HOME, RESULTS
from tasks.errors import UserError
from tasks.files import read_json, write_json


def test_every_benchmark_named_is_a_program_that_writes_json() -> None:
    for name, (program, *settings) in every.SETTINGS.items():
        module = importlib.import_module(f"benchmarks.{program}")
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in text and "given.json" in text, name
        assert ('"--peers"' in text) == (program in every.WITH_PEERS), name
        assert ('"--data"' in text) == (program in every.WITH_DATA), name
        for option in (word for word in settings if word.startswith("--")):
            assert f'"{option}"' in text, f"{name} {option}"


def test_results_are_kept_side_by_side_and_a_failure_is_told_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, peers: Path, data: Path | None) -> dict[str, Any]:
        if name == "scan":
            raise UserError("benchmarks.scan ended with exit code 1.")
        return {"took_seconds": 12.0, "ratio": 3.0}

    monkeypatch.setattr(every, "run", run)
    results = tmp_path / "results.json"
    write_json(results, {"loader": "old", "projection": "kept"})
    with pytest.raises(UserError, match=r"benchmarks\.scan"):
        every.main(["--only", "scan", "loader", "--peers", sys.executable, "--json", str(results)])
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["loader"]["ratio"] == 3.0 and found["projection"] == "kept" and "scan" not in found
    printed = capsys.readouterr().out
    assert "12 s" in printed and "failed" in printed


def test_a_result_of_a_run_elsewhere_is_taken_and_a_wrong_name_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, metrics = tmp_path / "results.json", tmp_path / "test.json"
    write_json(metrics, {"ensemble/wql": 0.5})
    every.main(["--take", f"chicago={metrics}", "--json", str(results)])
    assert json.loads(results.read_text(encoding="utf-8")) == {"chicago": {"ensemble/wql": 0.5}}
    for wrong, told in ((f"chicgo={metrics}", "takes one of"), ("chicago=nowhere.json", "nowhere.json is not there")):
        with pytest.raises(SystemExit):
            every.main(["--take", wrong, "--json", str(results)])
        assert told in capsys.readouterr().err


def test_a_benchmark_that_does_not_end_well_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(every.SETTINGS, "loader", ("loader", "--rows", "none"))
    with pytest.raises(UserError, match=r"benchmarks\.loader ended with exit code 2"):
        every.run("loader", Path("nowhere"), None)


def test_peers_and_data_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match="nowhere/python, which is not there"):
        every.main(["--only", "scan", "--peers", "nowhere/python"])
    with pytest.raises(UserError, match="--data is missing"):
        every.main(["--only", "accuracy_etth1", "--peers", sys.executable])


def test_the_documentation_says_what_was_measured() -> None:
    results = read_json(RESULTS)
    named = set()
    for name in tables.PAGES:
        text = (HOME / name).read_text(encoding="utf-8")
        assert tables.BLOCK.search(text), name
        assert tables.filled(text, results) == text, f"{name}: run python -m benchmarks.tables"
        named |= {word for found in tables.BLOCK.finditer(text) for word in found[2].split()}
    assert named == set(tables.WRITERS)


def test_a_block_is_written_anew_and_the_text_around_it_stays() -> None:
    text = "Before.\n\n<!-- measured: overhead many -->\nold\n<!-- end of measured -->\n\nAfter.\n"
    result = {"overhead_seconds": 16.1, "overhead_share": 0.041, "bare_seconds": 393.0, "no_op_seconds": 1.5}
    found = tables.filled(text, {"overhead": result})
    assert "16 s (4.1 %) to the 393 s" in found and "old" not in found
    assert found.startswith("Before.") and found.endswith("After.\n")
    assert tables.filled(found, {"overhead": result}) == found
