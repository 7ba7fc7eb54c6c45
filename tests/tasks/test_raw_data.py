"""Data that DVC tracks: imported data follows its origin, missing data comes from the remote, and failures are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.params import Params
from tasks.raw_data import pull

RAW = Path("data/raw/sales.csv")


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, Path, Params]:
    """A project whose data file was imported from a file elsewhere, that file, and params that name the copy."""
    root, origin = tmp_path / "project", tmp_path / "origin.csv"
    (root / "data/raw").mkdir(parents=True)
    origin.write_text("day 1\n")
    dvc(root, "init", "--no-scm", "-q")
    dvc(root, "import-url", "-q", str(origin), str(RAW))
    return root, origin, Params.model_validate({"data": {"source": "file", "path": str(RAW)}})


def test_imported_data_follows_its_origin(project: tuple[Path, Path, Params]) -> None:
    root, origin, params = project
    origin.write_text("day 1\nday 2\n")
    assert pull(root, params) == f"dvc update {RAW}.dvc"
    assert (root / RAW).read_text() == "day 1\nday 2\n"


def test_an_origin_that_is_gone_is_told_and_the_data_stays(project: tuple[Path, Path, Params]) -> None:
    root, origin, params = project
    origin.unlink()
    with pytest.raises(UserError, match=r"`dvc update data/raw/sales.csv.dvc` failed \(.+\); mend the origin"):
        pull(root, params)
    assert (root / RAW).read_text() == "day 1\n"


def test_added_data_comes_from_the_remote_only_where_it_is_missing(tmp_path: Path) -> None:
    root, remote = tmp_path / "project", tmp_path / "remote"
    (root / "data/raw").mkdir(parents=True)
    (root / RAW).write_text("day 1\n")
    dvc(root, "init", "--no-scm", "-q")
    dvc(root, "add", "-q", str(RAW))
    dvc(root, "remote", "add", "-q", "-d", "store", str(remote))
    dvc(root, "push", "-q")
    params = Params.model_validate({"data": {"source": "file", "path": str(RAW)}})
    (root / RAW).write_text("day 1, corrected here\n")
    assert pull(root, params) is None
    (root / RAW).unlink()
    for part in (root / ".dvc/cache/files/md5").rglob("*"):
        if part.is_file():
            part.unlink()
    assert pull(root, params) == f"dvc pull {RAW}.dvc"
    assert (root / RAW).read_text() == "day 1\n"


def test_data_that_dvc_does_not_track_is_left_alone(tmp_path: Path) -> None:
    assert pull(tmp_path, Params()) is None
    assert pull(tmp_path, Params.model_validate({"data": {"source": "file", "path": str(RAW)}})) is None
