"""monitor: exit codes, what it prints, and what an alarm starts, once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from flows import monitor
from tasks import webhook
from tasks.monitor import Outcome
from tasks.monitor_figures import Figure

Ran = Callable[..., Any]
CALM = Figure("all", "all", "coverage_90", 0.91, 0.9, 0.85)
ALARM = Figure("all", "all", "crps", 2.0, 1.0, 1.25)


def outcome(*found: Figure) -> Outcome:
    summary = {
        "model": "weatherglass",
        "version": "1",
        "champion": {"until": "2024-03-01T23:00:00"},
        "data": {"until": "2024-03-04T00:00:00"},
        "judged": {"windows": 7, "cutoffs": ["2024-03-01T23:00:00"]},
        "alarms": [figure.row() | {"text": figure.sentence} for figure in found if figure.alarm],
        "live_intervals": {"method": "aci", "coverage": 0.9, "open": 0},
        "notes": [],
    }
    return Outcome(summary, found, pd.DataFrame(), None, None, "digest")  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weatherglass: Ran, edit_params: Callable[..., None]) -> Ran:
    """The command on an outcome that is given; returns how it ended, the messages posted and the commands started."""
    source = Path(__file__).resolve().parents[2] / "params.yaml"
    (tmp_path / "params.yaml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    posted: list[Any] = []
    started: list[Any] = []

    def call(found: Outcome, *arguments: str, code: int = 3, problem: str | None = None, **rules: Any) -> Any:
        edit_params(tmp_path, {f"monitor.{key}": value for key, value in rules.items()})
        monkeypatch.setattr(monitor, "watch", lambda root, params: found)
        monkeypatch.setattr(webhook, "post", lambda address, message: posted.append(message) or problem)

        def start(command: list[str], **more: Any) -> Any:
            started.append(command)
            return SimpleNamespace(returncode=code)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", start)
            return weatherglass(tmp_path, "monitor", *arguments)

    call.posted, call.started = posted, started  # type: ignore[attr-defined]
    return call


def test_calm_is_0_and_an_alarm_is_4_with_its_sentence(run: Ran) -> None:
    ended = run(outcome(CALM))
    assert ended.code == 0 and "weatherglass version 1: calm, by 7 windows of 1 cutoff since" in ended.out
    ended = run(outcome(CALM, ALARM))
    assert ended.code == 4
    assert "crps: the CRPS of all series is 2, above 1.25 (reference 1)." in ended.out
    assert run.posted == [] and run.started == []  # type: ignore[attr-defined]


def test_json_stands_alone_on_stdout(run: Ran) -> None:
    ended = run(outcome(ALARM), "--json", retrain=True)
    assert ended.code == 4 and json.loads(ended.out)["alarms"][0]["metric"] == "crps"


def test_an_alarm_is_passed_on_once(run: Ran) -> None:
    for _ in range(2):
        assert run(outcome(ALARM), retrain=True, webhook="https://chat.example/secret").code == 4
    assert len(run.posted) == 1 and len(run.started) == 1  # type: ignore[attr-defined]
    assert run.posted[0]["alarms"][0]["threshold"] == 1.25 and "1 alarm" in run.posted[0]["text"]  # type: ignore[attr-defined]
    assert run.started[0][1:4] == ["-m", "flows", "retrain"]  # type: ignore[attr-defined]


def test_what_failed_is_tried_again_and_a_webhook_is_never_fatal(run: Ran) -> None:
    rules = {"retrain": True, "webhook": "https://chat.example/secret"}
    ended = run(outcome(ALARM), code=1, problem="the webhook at chat.example did not take the message: it answers 500", **rules)
    assert ended.code == 1, "a retraining that failed is not hidden behind the alarm"
    assert "chat.example did not take the message" in ended.err and "secret" not in ended.err
    assert run(outcome(ALARM), **rules).code == 4
    assert len(run.posted) == 2 and len(run.started) == 2  # type: ignore[attr-defined]


def test_a_prefect_server_gets_an_event_in_place_of_a_retraining(run: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(monitor, "emit_drift", sent.append)
    monkeypatch.setattr("flows.server.given_api", lambda: "http://prefect:4200/api")
    ended = run(outcome(ALARM), retrain=True)
    assert ended.code == 4 and len(sent) == 1 and run.started == []  # type: ignore[attr-defined]
    assert "event weatherglass.drift is sent to http://prefect:4200/api" in ended.err
