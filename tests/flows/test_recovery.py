"""What a killed DVC leaves is mended, and what is whole, or a user's own, is left as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.recovery import KEPT, LOCK, RWLOCK, TORN, is_whole, keep_lock, mend_dvc

WHOLE = """schema: '2.0'
stages:
  ingest:
    cmd: python -m flows.ingest
    deps:
    - path: data/raw
      hash: md5
      md5: 8ef7b7ad3b3b6f4a2f9a1f1c6a8d2c11.dir
    outs:
    - path: data/ingested
      hash: md5
      md5: 1f0c7a3f6cfd9d8f1a1d2d8a0c3f5b22.dir
"""


@pytest.mark.parametrize("rest", [WHOLE[:0], WHOLE[:20], WHOLE[: WHOLE.index("outs:") + 6], WHOLE[:-20], WHOLE + "\0" * 512])
def test_a_torn_lock_file_gives_way_to_its_last_whole_version(
    rest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_text(WHOLE)
    keep_lock(tmp_path)
    (tmp_path / LOCK).write_text(rest)
    keep_lock(tmp_path)
    mend_dvc(tmp_path)
    assert (tmp_path / LOCK).read_text() == WHOLE
    assert (tmp_path / TORN).read_text() == rest
    assert capsys.readouterr().err.startswith("dvc.lock was left half-written")


def test_without_a_whole_version_there_is_none(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("")
    mend_dvc(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_whole_lock_file_and_one_with_conflicts_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (WHOLE, f"<<<<<<< HEAD\n{WHOLE}"):
        (tmp_path / LOCK).write_text(text)
        mend_dvc(tmp_path)
        assert (tmp_path / LOCK).read_text() == text
    assert not is_whole(tmp_path / LOCK)
    assert not (tmp_path / KEPT).exists()
    assert capsys.readouterr().err == ""


def test_locks_of_processes_that_are_gone_are_dropped_and_those_of_a_living_dvc_stay(tmp_path: Path) -> None:
    path = tmp_path / RWLOCK
    path.parent.mkdir(parents=True)
    idle = "import sys; print(flush=True); sys.stdin.read()"
    dvc = subprocess.Popen([sys.executable, "-c", idle, "dvc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert dvc.stdout is not None
    dvc.stdout.readline()
    alive, other = {"pid": dvc.pid, "cmd": "dvc repro"}, {"pid": os.getpid(), "cmd": "dvc repro"}
    path.write_text(json.dumps({"write": {"/a": alive, "/b": other}, "read": {"/c": [other, alive], "/d": [other]}}))
    mend_dvc(tmp_path)
    dvc.communicate()
    assert json.loads(path.read_text()) == {"write": {"/a": alive}, "read": {"/c": [alive]}}, "the pid is another program's"


def test_a_torn_file_of_locks_is_removed(tmp_path: Path) -> None:
    path = tmp_path / RWLOCK
    path.parent.mkdir(parents=True)
    for torn in ("", '{"write": {"/a": {"pid": 12, "cm', "[]"):
        path.write_text(torn)
        mend_dvc(tmp_path)
        assert not path.exists()
