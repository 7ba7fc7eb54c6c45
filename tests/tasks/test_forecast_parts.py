"""A panel's parts, forecast by workers in any order, make the file of one machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import tasks.forecast_parts
from tasks.bundle import Bundle, bundle_digest, write_bundle
from tasks.errors import UserError
from tasks.forecast import PANEL, forecast_file, forecast_panel
from tasks.forecast_parts import (
    Champion,
    PartSpec,
    forecast_on_worker,
    parts_of,
    share_champion,
    take_table,
    write_parts,
)
from tasks.on_worker import PARTS, shared_folder
from tasks.params import Params
from tasks.predict import BATCH

SERIES, ROWS = 2 * BATCH + 40, 9_000


@pytest.fixture(scope="module")
def project(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a bundle and a panel of many series."""
    root = tmp_path_factory.mktemp("parts") / "project"
    shutil.copytree(evaluated_project, root)
    write_bundle(Params.load(root=root), root)
    series = [part.iloc[-80:] for _, part in pd.read_parquet(root / PANEL).groupby("unique_id")]
    many = [series[number % len(series)].assign(unique_id=f"series {number:04d}") for number in range(SERIES)]
    pd.concat(many, ignore_index=True).to_parquet(root / PANEL, index=False, row_group_size=10_000)
    return root


@pytest.fixture
def registered(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of the bundle, which the registry holds as version 1."""

    @contextmanager
    def stored(name: str, version: str) -> Iterator[Path]:
        yield project / "artifacts/bundle"

    digest = bundle_digest(project / "artifacts/bundle")
    monkeypatch.setattr(tasks.forecast_parts, "version_behind", lambda name, alias: ("1", digest))
    monkeypatch.setattr(tasks.forecast_parts, "stored_bundle", stored)
    return digest


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_parts_made_in_any_order_give_the_bytes_of_one_machine(project: Path, tmp_path: Path, ending: str) -> None:
    assert parts_of(project, ROWS) > 1
    with shared_folder(project) as folder:
        champion = share_champion(project, folder, "tiny", "champion", "aci")
        bundle, live = champion.load()
        assert bundle.name == "tiny version 1" and live is None
        specs = list(write_parts(champion, bundle, project / PANEL, rows=ROWS))
        assert len(specs) > 1 and [spec.before % BATCH for spec in specs] == [0] * len(specs)
        for spec in reversed(specs):
            forecast_on_worker(spec)
        with forecast_file(tmp_path / f"parts.{ending}") as add:
            for spec in specs:
                add(take_table(spec))
        assert not list(folder.glob("part_*")), "what was taken is not kept"
    assert not folder.exists()
    with forecast_file(tmp_path / f"one.{ending}") as add:
        for table in forecast_panel(bundle, project / PANEL, rows=ROWS):
            add(table)
    assert (tmp_path / f"parts.{ending}").read_bytes() == (tmp_path / f"one.{ending}").read_bytes()


def test_a_part_that_is_done_again_gives_the_same_file(project: Path, registered: str) -> None:
    with shared_folder(project) as folder:
        champion = share_champion(project, folder, "tiny", "champion", None)
        spec = next(write_parts(champion, Bundle.load(folder / "bundle"), project / PANEL, rows=ROWS))
        forecast_on_worker(spec)
        first = spec.table.read_bytes()
        forecast_on_worker(spec)
        assert spec.table.read_bytes() == first


def test_what_a_killed_run_has_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / PARTS / "run-killed"
    left.mkdir(parents=True)
    (left / "part_0.parquet").touch()
    with shared_folder(tmp_path) as folder:
        assert not left.exists() and folder.is_dir()


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    spec = PartSpec(Champion(tmp_path / "elsewhere", "tiny", "1", "", None), 3, 512)
    with pytest.raises(UserError, match=r"^a worker on .* does not see .*/elsewhere/part_3.parquet; keep the project in a"):
        forecast_on_worker(spec)
