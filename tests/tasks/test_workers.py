"""A member on a cluster's worker: the files of a local run, even in two threads of one process, and its progress."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.files import read_json
from tasks.params import Params
from tasks.progress import EpochBar
from tasks.train import TRAINED, gather_members, members_left
from tasks.workers import complete_on_worker, last_report


def test_two_members_in_the_threads_of_one_process_come_to_the_bits_of_a_local_run(
    trained_project: Path, tmp_path: Path
) -> None:
    params, root = Params.load(root=trained_project), tmp_path / "project"
    shutil.copytree(trained_project / "data", root / "data")
    specs = members_left(params, root, "tcn", tmp_path / "keep")
    assert [last_report(spec.folder)[0] for spec in specs] == [0, 0]
    threads = [threading.Thread(target=complete_on_worker, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for spec in specs:
        epoch, loss = last_report(spec.folder)
        assert epoch == 2
        assert math.isclose(loss, read_json(spec.folder / "history.json")[-1]["early_stopping_loss"])
    assert members_left(params, root, "tcn", tmp_path / "keep") == []
    (tmp_path / "gathered").mkdir()
    gather_members(params, tmp_path / "keep", tmp_path / "gathered")
    for path in sorted((trained_project / TRAINED / "tcn").iterdir()):
        assert (tmp_path / "gathered" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_worker_that_does_not_see_the_project_says_so(tmp_path: Path) -> None:
    spec = members_left(Params(), tmp_path / "elsewhere", "tcn", tmp_path / "keep")[0]
    with pytest.raises(
        UserError, match=r"^a worker on .* does not see .*/elsewhere/data/prepared; keep the project in a folder"
    ):
        complete_on_worker(spec)


def test_a_pipe_gets_a_line_a_member_and_late_news_of_one_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with EpochBar("train", {"tcn member 0": 4, "mamba member 0": 8}) as bar:
        bar.at("tcn member 0", 2, 0.5)
        bar.ended("tcn member 0")
        bar.at("tcn member 0", 3, 0.4)
        bar.ended("mamba member 0")
    told = ["train: tcn member 0 ended, 1 to go", "train: mamba member 0 ended, 0 to go"]
    assert capsys.readouterr().out.splitlines() == told
