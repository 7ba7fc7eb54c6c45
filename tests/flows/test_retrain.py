"""retrain: its lock, its exit codes, and what it says when nothing is new, when a version is kept out and when it passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import pipeline, retrain
from tasks import promotion, registry
from tasks.contest import Verdict
from tasks.errors import UserError
from tasks.files import write_json
from tasks.params import Params
from tasks.versions import RECEIPT

PROJECT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from flows.retrain import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_retraining_refuses_and_names_the_first(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline().strip() == "held"
    with pytest.raises(UserError, match=f"process {first.pid} is retraining this project"), retrain.alone(tmp_path):
        pass
    first.kill()
    first.wait()
    with retrain.alone(tmp_path):
        pass


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[tuple[str, str]]]]:
    """Decide on a registry that exists in name alone; returns the exit code and what was recorded."""

    def run(
        version: str, champion: str, before: str | None, passed: bool, earlier: Any = None
    ) -> tuple[int, list[tuple[str, str]]]:
        done: list[tuple[str, str]] = []
        write_json(tmp_path / RECEIPT, {"version": version, "bundle": "b"})
        monkeypatch.setattr(retrain, "_champion", lambda params: champion)
        monkeypatch.setattr(retrain, "meet", lambda *given: Verdict(passed, ("CRPS -5.0%",), {}))
        monkeypatch.setattr(registry, "load_champion", lambda name: "champion")
        monkeypatch.setattr(registry, "load_challenger", lambda name, which, digest: "challenger")
        monkeypatch.setattr(promotion, "promoted_at", lambda *given: None)
        monkeypatch.setattr(promotion, "judged", lambda *given: earlier)
        real = [("promoted", which) for which in (version,) if which != champion]  # of a champion it changes nothing
        monkeypatch.setattr(promotion, "promote", lambda root, name, which, *why: done.extend(real))
        monkeypatch.setattr(promotion, "keep_out", lambda root, name, which, *why: done.append(("kept out", which)))
        return retrain.decide(tmp_path, Params(), before), done

    return run


def test_exit_codes_and_decisions(contest: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert contest("1", "1", None, True) == (0, [])
    assert contest("1", "1", "1", True) == (3, [])
    assert contest("2", "1", "1", True) == (0, [("promoted", "2")])
    assert contest("3", "2", "2", False) == (3, [("kept out", "3")])
    earlier = SimpleNamespace(action="kept out", at="2026-01-02T03:04:05Z", reason="CRPS +9%")
    assert contest("3", "2", "2", True, earlier) == (3, []), "what was judged is not judged again"
    undone = SimpleNamespace(action="rolled back to", at="2026-01-03T03:04:05Z", reason="complaints")
    assert contest("2", "1", "1", True, undone) == (3, []), "what was rolled back does not come back by itself"
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("version 1 is the first and @champion")
    assert said[1].endswith("nothing new; version 1 stays @champion")
    assert "version 2 is @champion now: CRPS -5.0%; version 1 is @previous_champion" in said[2]
    assert "version 3 is kept out" in said[3] and "version 2 stays @champion" in said[3]
    assert "was kept out 2026-01-02T03:04:05Z: CRPS +9%" in said[4]
    assert "version 2 was rolled back 2026-01-03T03:04:05Z: complaints; version 1 stays @champion" in said[5]


def test_ingest_until_writes_the_date_and_takes_a_wrong_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(pipeline, "run_pipeline", lambda root, targets: ran.append(targets) or 0)
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.until is '2016-13-01'"):
        pipeline.run_ingest(tmp_path, "2016-13-01")
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == text and ran == []
    assert pipeline.run_ingest(tmp_path, "2016-07-31") == 0
    assert str(Params.load(root=tmp_path).data.until) == "2016-07-31" and ran == [["ingest"]]
