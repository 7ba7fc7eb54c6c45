"""A user's mistake on the command line or in params.yaml: one sentence, exit code 2, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import source_changed
from tasks.files import file_md5, write_json
from tasks.params import Params

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def project(new_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing was run."""
    return new_project(tmp_path_factory.mktemp("cli") / "project")


def sentence(ended: Any) -> str:
    """The one line that a mistake is told in."""
    assert ended.code == 2
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("weatherglass: ")
    assert "Traceback" not in ended.err
    return str(lines[0])


@pytest.mark.parametrize("command", ["run", "forecast"])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("data.horizn", 6, "params.yaml: data.horizn is not a known key; did you mean data.horizon?"),
        ("data.horizon", 0, "params.yaml: data.horizon is 0; it must be a whole number of 1 or more."),
        ("forecasters.tcn.width", "wide", "params.yaml: forecasters.tcn.width is 'wide'"),
        ("families", ["tcn", "lstm"], "params.yaml: families"),
    ],
)
def test_a_mistake_in_params_names_its_key(
    command: str, key: str, value: Any, told: str, tmp_path: Path, new_project: Call, edit_params: Call, weatherglass: Call
) -> None:
    root = new_project(tmp_path / "project")
    edit_params(root, {key: value})
    before = sorted(path.name for path in root.iterdir())
    assert told in sentence(weatherglass(root, command))
    assert sorted(path.name for path in root.iterdir()) == before, "nothing is written"


def test_a_folder_that_is_no_project_is_told(tmp_path: Path, weatherglass: Call) -> None:
    assert "params.yaml" in sentence(weatherglass(tmp_path, "run"))
    (tmp_path / "params.yaml").write_text("train: {seed: 2}\n")
    assert "holds no dvc.yaml and .dvc folder" in sentence(weatherglass(tmp_path, "run"))


def test_an_output_of_another_kind_is_refused_before_any_work(project: Path, weatherglass: Call) -> None:
    told = sentence(weatherglass(project, "forecast", "--output", "forecast.xlsx"))
    assert "--output is 'forecast.xlsx'; its name must end in .parquet or .csv." in told
    assert not (project / "mlflow.db").exists()


def test_what_was_not_run_yet_is_told(project: Path, weatherglass: Call) -> None:
    assert "metrics/test.json is not there; run `weatherglass run` first." in sentence(weatherglass(project, "report"))
    told = sentence(weatherglass(project, "forecast", "--output", "forecast.csv"))
    assert "holds no model 'weatherglass' with alias 'champion'; run `weatherglass run` first." in told
    assert not (project / "forecast.csv").exists()


def test_the_report_command_shows_the_leaderboard(tmp_path: Path, weatherglass: Call) -> None:
    write_json(tmp_path / "metrics/test.json", {"ensemble/wql": 0.02, "tcn/wql": 0.03})
    shown = weatherglass(tmp_path, "report")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "ensemble", "tcn"]
    assert lines[-1] == str(tmp_path / "reports/report.html")


def test_an_unknown_option_is_a_mistake_too(project: Path, weatherglass: Call) -> None:
    ended = weatherglass(project, "forecast", "--horizon", "3")
    assert ended.code == 2
    assert "--horizon" in ended.err
    assert "Traceback" not in ended.err


def test_a_source_outside_of_data_raw_is_watched_by_its_content(tmp_path: Path) -> None:
    params = Params.model_validate({"data": {"source": "file", "path": "sales.csv"}})
    (tmp_path / "sales.csv").write_text("a\n")
    assert not source_changed(tmp_path, params), "nothing was ingested yet"
    write_json(tmp_path / "data/ingested/meta.json", {"source_md5": file_md5(tmp_path / "sales.csv")})
    assert not source_changed(tmp_path, params)
    (tmp_path / "sales.csv").write_text("b\n")
    assert source_changed(tmp_path, params)
    (tmp_path / "sales.csv").unlink()
    assert not source_changed(tmp_path, params)
    assert not source_changed(tmp_path, Params()), "the built-in data is no file"
