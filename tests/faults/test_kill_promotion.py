"""SIGKILL within retrain, and within promote and rollback between the decision's JSON, tag and aliases."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flows.server import stop_server

Call = Callable[..., Any]
STEPS = """
import os, signal, sys
import tasks.promotion as promotion

left, real = int(sys.argv.pop(1)), promotion.retry


def retry(call, *arguments, **options):
    global left
    if call.__name__.startswith(("set_", "delete_")):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return real(call, *arguments, **options)


promotion.retry = retry
from flows.cli import main

main()
"""
"""The command line, killed before the given one of promotion's changes to the registry."""

RETRAIN = {
    "with a stage half-done": {"on": "write", "path": r"artifacts/\.calibration\.[^/]*tmp"},
    "before the contest": {"on": "read", "path": r"artifacts/receipt\.json$", "argv": "flows retrain"},
    "with the decision half-written": {"on": "write", "path": "artifacts/decisions/"},
    "with the decision written, not tagged": {"on": "rename", "path": "artifacts/decisions/"},
}
CHANGES = ("tag", "@previous_champion", "@champion", "@challenger")


@pytest.fixture(scope="module")
def project(undisturbed: Any, edit_params: Call, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project with a champion and params from which retraining makes a challenger that is no better."""
    project = undisturbed.copy(tmp_path_factory.mktemp("promotion") / "project")
    edit_params(project.root, {"calibration.ood_alpha": 0.2})
    yield project
    stop_server(project.root)


@pytest.fixture(scope="module")
def told(project: Any) -> Call:
    """Versions of the registry as ``history`` tells them: aliases and actions by version."""

    def read() -> dict[str, tuple[list[str], list[str]]]:
        done = project.run("flows", "history", "--json")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        return {row["version"]: (row["aliases"], [each["action"] for each in row["decisions"]]) for row in rows}

    return read


@pytest.mark.parametrize("name", RETRAIN)
def test_a_killed_retraining_leaves_the_champion(name: str, project: Any, told: Call, fault: Call) -> None:
    with fault(f"SIGKILL retrain {name}", "the champion stays, nothing is decided"):
        ended = project.run("flows", "retrain", fault={"after": True, "act": "kill", **RETRAIN[name]})
        assert ended.returncode == -9, ended.stdout[-2000:] + ended.stderr[-2000:]
        versions = told()
        assert "champion" in versions["1"][0]
        assert all(actions == [] for _, actions in versions.values())


def test_retraining_decides_once_after_all(project: Any, told: Call, fault: Call) -> None:
    with fault("retrain again after these kills", "one challenger, one decision, exit code 3"):
        done = project.run("flows", "retrain")
        assert done.returncode == 3, done.stdout[-2000:] + done.stderr[-2000:]
        assert told() == {"1": (["champion"], []), "2": (["challenger"], ["kept out"])}
        assert project.leftovers() == []


@pytest.mark.parametrize("step", range(len(CHANGES)), ids=CHANGES)
def test_a_killed_promotion_is_whole_or_not_at_all(step: int, project: Any, told: Call, fault: Call) -> None:
    with fault(f"SIGKILL promote before {CHANGES[step]}", "champion and previous champion fit together"):
        assert project.run("-c", STEPS, str(step), "promote").returncode == -9
        aliases = {alias: version for version, (held, _) in told().items() for alias in held}
        assert aliases["champion"] == ("2" if CHANGES[step] == "@challenger" else "1")
        assert aliases.get("previous_champion", "1") == "1"


def test_the_same_promotion_again_ends_it_and_a_killed_rollback_too(project: Any, told: Call, fault: Call) -> None:
    with fault("promote again after these kills", "promoted once, no alias left over"):
        assert project.run("flows", "promote", "--version", "2").returncode == 0
        assert told() == {"1": (["previous_champion"], []), "2": (["champion"], ["kept out", "promoted"])}
    with fault("SIGKILL rollback before each of its changes", "the same command again goes back, once"):
        for step in range(2):
            assert project.run("-c", STEPS, str(step), "rollback").returncode == -9
            assert told()["2"][0] == ["champion"]
        assert project.run("flows", "rollback").returncode == 0
        assert told() == {"1": (["champion"], ["rolled back to"]), "2": ([], ["kept out", "promoted"])}
