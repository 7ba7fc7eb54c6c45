"""What an experiment changes against the commit, and where the stores of its project are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.experiment import changed_params, commit, described, home, revision

COMMITTED = """
families: [tcn]
data: {horizon: 14, holidays: US-IL}
forecasters:
  tcn: {width: 48, dropout: 0.1}
train: {seed: 1, members: null}
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project within a repository, committed twice; the first commit has another horizon."""
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    git(tmp_path, "init", "-q")
    for text in (COMMITTED.replace("14", "7"), COMMITTED):
        (folder / "params.yaml").write_text(text, encoding="utf-8")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "params")
    return folder


def test_only_values_that_differ_from_the_commit_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed_params(root) == {}
    text = COMMITTED.replace("[tcn]", "[tcn, tft]").replace("48, dropout: 0.1", "48.0, dropout: 0.2").replace("null", "true")
    (root / "params.yaml").write_text(f"# a note\n{text}", encoding="utf-8")
    changed = changed_params(root)
    assert changed == {"families": ["tcn", "tft"], "forecasters.tcn.dropout": 0.2, "train.members": True}
    assert described(changed) == "families=[tcn, tft], tcn.dropout=0.2, train.members=true"
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "HEAD~1")
    assert changed_params(root)["data.horizon"] == 14, "an experiment differs from its baseline"


def test_many_changes_are_counted(root: Path) -> None:
    assert described({f"train.a{number}": None for number in range(8)}).endswith("train.a4=null and 3 more")
    assert described({}) == ""


def test_the_revision_says_whether_files_differ_from_the_commit(root: Path) -> None:
    clean = revision(root)
    assert clean is not None and (commit(root) or "").startswith(clean)
    (root / "params.yaml").write_text("train: {}\n", encoding="utf-8")
    assert revision(root) == f"{clean}-dirty"


def test_outside_of_git_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(COMMITTED, encoding="utf-8")
    assert (commit(tmp_path), revision(tmp_path), changed_params(tmp_path)) == (None, None, {})


def test_an_experiment_in_a_copy_of_the_project_is_at_home_in_the_project(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = root / ".dvc/tmp/exps/tmp1"
    monkeypatch.setenv("DVC_ROOT", str(root))
    assert home(copy) == copy, "another project's stage is no experiment of this one"
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    assert home(copy) == home(root) == root.resolve()
