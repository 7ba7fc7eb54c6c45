"""The overhead benchmark: what it lays out can be run, equal members are told, and a failing run is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import overhead
from tasks.errors import UserError
from tasks.params import Params


def test_a_project_is_laid_out_with_nothing_run(tmp_path: Path) -> None:
    root = overhead.lay_out(tmp_path / "project", overhead.HOME / "params.yaml")
    assert Params.load(root=root) == Params.load(root=overhead.HOME)
    assert (root / "flows/stage.py").exists() and not (root / "artifacts").exists()


def test_members_are_equal_only_where_their_bytes_are(tmp_path: Path) -> None:
    for name, weights in (("bare", b"1"), ("orchestrated", b"1"), ("other", b"2"), ("empty", None)):
        folder = tmp_path / name / "artifacts/train/tcn"
        folder.mkdir(parents=True)
        if weights is not None:
            (folder / "member_0.safetensors").write_bytes(weights)
    same = [overhead._same_members(tmp_path / "bare", tmp_path / name, "tcn") for name in ("orchestrated", "other", "empty")]
    assert same == [True, False, False]


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exit code 3: no such thing"):
        overhead.seconds_of([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], tmp_path)
