"""The check of hot paths: what it counts as slower, and that noise alone is measured again."""

from __future__ import annotations

import pytest

from benchmarks import hot_paths
from benchmarks.hot_paths import LEAST, PATHS, gain, slower
from tasks.files import read_json

ACCEPTED = dict.fromkeys(PATHS, 2.0)


def test_every_path_has_an_accepted_gain_above_its_oracle() -> None:
    accepted = read_json(hot_paths.ACCEPTED)
    assert set(accepted) == set(PATHS)
    assert min(accepted.values()) > 1.0


def test_a_path_that_lost_its_gain_is_named_after_every_attempt() -> None:
    asked: list[tuple[str, int]] = []

    def measure(name: str, rounds: int) -> float:
        asked.append((name, rounds))
        return 1.0 if name == "scan" else 2.0

    assert slower(ACCEPTED, (1, 2, 4), measure) == {"scan": 1.0}
    assert asked == [*((name, 1) for name in PATHS), ("scan", 2), ("scan", 4)]


def test_one_slow_spell_is_no_verdict() -> None:
    assert slower(ACCEPTED, (1, 2), lambda name, rounds: 0.5 if rounds == 1 else LEAST * 2.0) == {}


def test_a_path_that_was_never_accepted_is_told() -> None:
    rest = {name: value for name, value in ACCEPTED.items() if name != "gather"}
    assert slower(rest, (1,), lambda name, rounds: 99.0) == {"gather": 99.0}


def test_the_command_fails_with_the_path_and_both_gains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = read_json(hot_paths.ACCEPTED)
    monkeypatch.setattr(hot_paths, "slower", lambda *_: {"scan": 1.25})
    with pytest.raises(SystemExit, match="1"):
        hot_paths.main(["--check"])
    told = capsys.readouterr()
    assert told.err == f"scan: 1.2 times as fast as its oracle, {accepted['scan']:.1f} times were accepted\n"
    assert f"{len(PATHS) - 1} of {len(PATHS)}" in told.out


@pytest.mark.parametrize("name", ["gather", "verification"])
def test_a_gain_is_measured(name: str) -> None:
    assert gain(name, 1) > 0.0
