"""Champion and previous champion: promotion, rollback, history, and a kill between any two of their steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from tasks import promotion
from tasks.errors import UserError
from tasks.files import read_json
from tasks.promotion import DECISIONS, history, history_rows, judged, promote, rollback
from tasks.terminal import aligned
from tasks.tracking import initialise

NAME = "boardings"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MlflowClient]:
    """A registry of three versions of one model, the first champion and the second challenger."""
    before = mlflow.get_tracking_uri()
    initialise(f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    client.create_registered_model(NAME)
    for number in (1, 2, 3):
        version = client.create_model_version(NAME, f"file://{tmp_path}/{number}").version
        client.set_model_version_tag(NAME, version, "test.wql", f"0.0{number}")
    client.set_registered_model_alias(NAME, "champion", "1")
    client.set_registered_model_alias(NAME, "challenger", "2")
    yield client
    mlflow.set_tracking_uri(before)


def held(client: MlflowClient) -> dict[str, str]:
    return {str(alias): str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_the_challenger_is_promoted_and_the_old_champion_kept(client: MlflowClient, tmp_path: Path) -> None:
    decision = promote(tmp_path, NAME, reason="lower WQL")
    assert decision is not None and (decision.version, decision.champion) == ("2", "1")
    assert held(client) == {"champion": "2", "previous_champion": "1"}
    written = [read_json(path) for path in (tmp_path / DECISIONS).iterdir()]
    assert [(row["version"], row["action"], row["reason"]) for row in written] == [("2", "promoted", "lower WQL")]
    assert promote(tmp_path, NAME, "2") is None, "once more changes nothing"
    assert held(client) == {"champion": "2", "previous_champion": "1"}
    with pytest.raises(UserError, match="'boardings' has no challenger to promote"):
        promote(tmp_path, NAME)
    with pytest.raises(UserError, match="has no version 9; it has 1, 2, 3"):
        promote(tmp_path, NAME, "9")


def test_rollbacks_go_back_and_never_forth(client: MlflowClient, tmp_path: Path) -> None:
    promote(tmp_path, NAME)
    promote(tmp_path, NAME, "3")
    assert held(client) == {"champion": "3", "previous_champion": "2"}
    assert rollback(tmp_path, NAME).version == "2"
    assert held(client) == {"champion": "2", "previous_champion": "1"}
    assert rollback(tmp_path, NAME).champion == "2"
    assert held(client) == {"champion": "1"}
    with pytest.raises(UserError, match="no previous champion to go back to"):
        rollback(tmp_path, NAME)
    assert held(client) == {"champion": "1"}


def test_what_was_rolled_back_stays_out_until_it_is_promoted_by_hand(client: MlflowClient, tmp_path: Path) -> None:
    promote(tmp_path, NAME)
    assert judged(NAME, "1", "2") is None
    rollback(tmp_path, NAME, reason="complaints")
    kept = judged(NAME, "2", "1")
    assert kept is not None and kept.reason == "complaints"
    assert judged(NAME, "3", "1") is None, "another version may come"
    promote(tmp_path, NAME, "2")
    assert judged(NAME, "1", "2") is None
    assert held(client)["champion"] == "2"


def test_the_history_tells_every_version(client: MlflowClient, tmp_path: Path) -> None:
    promote(tmp_path, NAME, reason="lower WQL")
    rollback(tmp_path, NAME, reason="complaints")
    rows = history(NAME)
    assert [(row["version"], row["aliases"], row["metrics"]) for row in rows] == [
        ("1", ["champion"], {"wql": 0.01}), ("2", [], {"wql": 0.02}), ("3", [], {"wql": 0.03})
    ]  # fmt: skip
    assert [[each["action"] for each in row["decisions"]] for row in rows] == [["rolled back to"], ["promoted"], []]
    lines = aligned(history_rows(rows)).splitlines()
    assert lines[0].split() == ["version", "registered", "wql", "aliases", "decisions"]
    assert "rolled back to" in lines[1] and "(complaints)" in lines[1]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_leaves_a_champion_and_the_same_command_ends_it(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    writes = ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias")
    done = 0

    def killing(call: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal done
        if call.__name__ in writes:
            if done == step:
                raise Killed
            done += 1
        return call(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "retry", killing)
        try:
            promote(tmp_path, NAME, "2")
        except Killed:
            assert held(client)["champion"] in ("1", "2")
    promote(tmp_path, NAME, "2")
    assert held(client) == {"champion": "2", "previous_champion": "1"}
    assert [len(row["decisions"]) for row in history(NAME)] == [0, 1, 0]
    assert done == min(step, 4)


def test_an_empty_registry_is_told(tmp_path: Path) -> None:
    before = mlflow.get_tracking_uri()
    initialise(f"sqlite:///{tmp_path}/mlflow.db")
    for work in (lambda: promote(tmp_path, "none"), lambda: rollback(tmp_path, "none"), lambda: history("none")):
        with pytest.raises(UserError, match="the registry holds no model 'none'; run `weatherglass run` first"):
            work()
    mlflow.set_tracking_uri(before)
