"""From a clone with its own hourly data to a registered champion and its forecasts, as a user would go."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient

from tasks.bundle import FORECAST_COLUMNS
from tasks.files import file_md5, read_json
from tasks.ingest import ingest
from tasks.params import Params

BEFORE = ("ingest", "prepare", "baselines", "train@tft", "train@tcn", "train@gradient_boosting")
AFTER_TRAINING = ("ensemble", "calibrate", "interpret", "evaluate", "project", "register")
STAGES = (*BEFORE, *AFTER_TRAINING)
FAMILIES = ("tft", "tcn", "gradient_boosting")
MODELS = ("ensemble", *FAMILIES, "seasonal_naive", "auto_ets", "prophet")
RESULTS = ("metrics/test.json", "reports/report.html", "artifacts/receipt.json", "artifacts/bundle/bundle.json")
Call = Callable[..., Any]


@pytest.fixture
def client(project: Path, client_of: Callable[[Path], MlflowClient]) -> MlflowClient:
    return client_of(project)


@pytest.fixture(scope="module")
def forecast(project: Path, command: Call) -> tuple[pd.DataFrame, Any, str]:
    """The table of a forecast, its records from stdout and what stood on stderr."""
    done = command("flows", "forecast", "--output", "first.parquet", "--json")
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(project / "first.parquet"), json.loads(done.stdout), done.stderr


def test_a_run_says_what_it_did_and_leaves_every_result(finished: subprocess.CompletedProcess[str], project: Path) -> None:
    assert "registered weatherglass version 1 as @champion" in finished.stdout
    for stage in STAGES:
        assert f"Running stage '{stage}'" in finished.stdout
    assert f"report     {project}/reports/report.html" in finished.stdout
    assert "Traceback" not in finished.stderr
    for name in RESULTS:
        assert (project / name).stat().st_size > 0, name
    receipt = read_json(project / "artifacts/receipt.json")
    assert (receipt["version"], receipt["alias"]) == ("1", "champion")
    assert not [path for path in project.rglob("*.tmp*") if ".dvc" not in path.parts], "nothing half-written is left"
    page = (project / "reports/report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('xlink:href="http', "")


def test_metrics_have_flat_keys_for_every_model(project: Path) -> None:
    metrics = read_json(project / "metrics/test.json")
    assert {key.split("/")[0] for key in metrics} == set(MODELS)
    for model in MODELS:
        wanted = {"wql", "crps", "wape", "mase", "ece", "pit_ks", "coverage_80", "coverage_90", "coverage_95", "width_90"}
        assert {f"{model}/{name}" for name in wanted} <= set(metrics)
    assert {f"ensemble/{name}" for name in ("joint_coverage_90", "ood_auroc", "ood_fpr95", "aurc")} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


def test_mlflow_holds_one_parent_with_everything_below_it(project: Path, client: MlflowClient) -> None:
    runs = list(client.search_runs(["1"], max_results=1000))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    parent = parents[0]
    assert {run.info.status for run in runs} == {"FINISHED"}
    stages = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in stages) == sorted(STAGES)
    members = [run for run in runs if run is not parent and run not in stages]
    assert sorted(run.info.run_name for run in members) == sorted(f"{f} member {i}" for f in FAMILIES for i in range(2))
    network = next(run for run in members if run.info.run_name == "tcn member 0")
    assert len(client.get_metric_history(network.info.run_id, "early_stopping_loss")) == 2
    assert parent.data.metrics == pytest.approx(read_json(project / "metrics/test.json"))
    assert {"report.html", "map.html"} <= {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    tags = parent.data.tags
    assert "| ensemble |" in tags["mlflow.note.content"]
    assert "Which run is better" in client.get_experiment("1").tags["mlflow.note.content"]
    assert tags["weatherglass.data_md5"] == file_md5(project / "data/ingested/panel.parquet")
    assert tags["weatherglass.prefect_flow_run_id"]
    assert parent.inputs is not None
    assert [entry.dataset.name for entry in parent.inputs.dataset_inputs] == ["hourly"]
    assert client.get_model_version_by_alias("weatherglass", "champion").version in (1, "1")


def test_prefect_saw_every_stage_end_well(client: MlflowClient, prefect_api: str) -> None:
    stages = client.search_runs(["1"], "tags.`weatherglass.stage` != ''", max_results=1000)
    named = [run.data.tags.get("weatherglass.prefect_flow_run_id") for run in stages]
    body = json.dumps({"flow_runs": {"id": {"any_": [run for run in named if run]}}, "limit": 200}).encode()
    request = urllib.request.Request(f"{prefect_api}/flow_runs/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        states = {run["name"]: run["state_type"] for run in json.load(response)}
    assert states == dict.fromkeys(STAGES, "COMPLETED")


def test_a_second_run_finds_nothing_to_do(project: Path, command: Call) -> None:
    started = time.monotonic()
    again = command("dvc", "repro")
    assert again.returncode == 0, again.stderr
    assert "Data and pipelines are up to date." in again.stdout
    assert "Running stage" not in again.stdout
    assert time.monotonic() - started < 15
    assert json.loads(command("dvc", "status", "--json").stdout) == {}


def test_registering_again_changes_nothing(project: Path, command: Call, client: MlflowClient) -> None:
    before = (project / "artifacts/receipt.json").read_bytes()
    again = command("flows.register")
    assert again.returncode == 0, again.stderr
    assert (project / "artifacts/receipt.json").read_bytes() == before
    assert len(client.search_model_versions("name = 'weatherglass'")) == 1
    assert json.loads(command("dvc", "status", "--json").stdout) == {}


def test_one_parameter_of_a_family_makes_stale_that_family_and_what_follows(
    project: Path, command: Call, edit_params: Call
) -> None:
    before = (project / "params.yaml").read_bytes()
    edit_params(project, {"forecasters.tcn.dropout": 0.2})
    status = json.loads(command("dvc", "status", "--json").stdout)
    (project / "params.yaml").write_bytes(before)
    assert set(status) == {"train@tcn"}
    graph = command("dvc", "dag", "--dot").stdout
    edges = {tuple(part.strip().strip('";') for part in line.split("->")) for line in graph.splitlines() if "->" in line}
    follows, queue = set(), ["train@tcn"]
    while queue:
        stage = queue.pop()
        queue += [after for first, after in edges if first == stage and after not in follows]
        follows |= {after for first, after in edges if first == stage}
    assert follows == set(AFTER_TRAINING)


def test_a_forecast_has_the_columns_of_the_contract(forecast: tuple[pd.DataFrame, Any, str], project: Path) -> None:
    table, records, told = forecast
    assert list(table.columns) == list(FORECAST_COLUMNS)
    assert not table.isna().any().any()
    assert table.groupby("unique_id").size().to_dict() == dict.fromkeys(["a", "b", "c", "d", "e", "f", "short"], 6)
    for level in (80, 90, 95):
        assert (table[f"lo-{level}"] <= table["median"]).all()
        assert (table["median"] <= table[f"hi-{level}"]).all()
    for narrow, wide in ((80, 90), (90, 95)):
        width = {level: table[f"hi-{level}"] - table[f"lo-{level}"] for level in (narrow, wide)}
        assert (width[wide] >= width[narrow]).all()
        assert width[wide].mean() > width[narrow].mean()
    assert [list(record) for record in records] == [list(FORECAST_COLUMNS)] * len(table)
    np.testing.assert_allclose([record["median"] for record in records], table["median"], rtol=1e-6)
    assert "7 series x 6 steps to first.parquet" in told
    assert "Traceback" not in told


def test_the_same_forecast_again_is_the_same_file(
    forecast: tuple[pd.DataFrame, Any, str], project: Path, weatherglass: Call
) -> None:
    assert weatherglass(project, "forecast", "--output", "second.parquet").code == 0
    assert (project / "second.parquet").read_bytes() == (project / "first.parquet").read_bytes()
    for name in ("first.csv", "second.csv"):
        assert weatherglass(project, "forecast", "--output", name).code == 0
    assert (project / "second.csv").read_bytes() == (project / "first.csv").read_bytes()
    read = pd.read_csv(project / "first.csv", parse_dates=["ds", "cutoff"])
    pd.testing.assert_frame_equal(read, forecast[0], check_dtype=False)


def new_history() -> pd.DataFrame:
    """A known series with newer values, one never seen and one of five rows, unsorted."""
    rng = np.random.default_rng(11)
    parts = []
    for name, steps, level in (("a", 200, 20), ("never seen", 150, 70), ("five", 5, 30)):
        ds = pd.date_range("2024-05-01", periods=steps, freq="h")
        y = level + 5 * np.sin(2 * np.pi * ds.hour / 24) + rng.normal(0, 1, steps)
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=1)


def test_new_history_with_series_never_seen_is_forecast_from_its_own_ends(
    project: Path, tmp_path: Path, weatherglass: Call
) -> None:
    history = new_history()
    history.to_csv(tmp_path / "new.csv", index=False)
    ended = weatherglass(project, "forecast", "--data", str(tmp_path / "new.csv"), "--output", str(tmp_path / "out.parquet"))
    assert ended.code == 0, ended.err
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert not table.isna().any().any()
    ends = history.groupby("unique_id")["ds"].max()
    assert (table["cutoff"] == table["unique_id"].map(ends)).all()
    assert sorted(table["unique_id"].unique()) == ["a", "five", "never seen"]
    centre = table.groupby("unique_id")["median"].mean()
    assert centre["never seen"] == pytest.approx(70, abs=15), "it is forecast at its own level"


@pytest.mark.parametrize(("cutoff", "last"), [("2024-02-25", "2024-02-25 23:00"), ("2024-02-25 11:00", "2024-02-25 11:00")])
def test_a_cutoff_moves_the_start_of_the_forecast(
    project: Path, weatherglass: Call, tmp_path: Path, cutoff: str, last: str
) -> None:
    out = tmp_path / "out.csv"
    assert weatherglass(project, "forecast", "--cutoff", cutoff, "--output", str(out)).code == 0
    table = pd.read_csv(out, parse_dates=["ds", "cutoff"])
    assert set(table["cutoff"]) == {pd.Timestamp(last)}
    assert table["ds"].min() == pd.Timestamp(last) + pd.Timedelta(1, "h")


def test_without_an_output_the_first_rows_are_shown(project: Path, weatherglass: Call) -> None:
    ended = weatherglass(project, "forecast")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1 + 6


def bad_tables(folder: Path) -> dict[str, Path]:
    good = new_history().sort_values(["unique_id", "ds"], ignore_index=True)
    gap = good.drop(index=20)
    infinite = good.assign(y=good["y"].where(good.index != 7, np.inf))
    words = good.assign(y=good["y"].astype(str).where(good.index != 3, "many"))
    tables = {
        "column": good.rename(columns={"y": "sales"}),
        "twice": pd.concat([good, good.iloc[[4]]]),
        "gap": gap,
        "infinite": infinite,
        "words": words,
    }
    paths = {name: folder / f"{name}.csv" for name in (*tables, "empty", "header")}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    paths["empty"].write_bytes(b"")
    paths["header"].write_text("unique_id,ds,y\n")
    paths["picture"], paths["nowhere"] = folder / "picture.png", folder / "nowhere.csv"
    paths["picture"].write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)))
    return paths


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "column"], "has no column 'y' (data.target_column) among unique_id, ds, sales"),
        (["--data", "twice"], "repeats unique_id 'a' at "),
        (["--data", "gap"], "is missing; set data.gaps to interpolate, zero or forward in params.yaml"),
        (["--data", "infinite"], "Column y, row 8 "),
        (["--data", "words"], "Column y, row 4 "),
        (["--data", "empty"], "empty.csv is empty; it must be a CSV or Parquet file"),
        (["--data", "header"], "header.csv has a header and no rows"),
        (["--data", "picture"], "picture.png is neither CSV nor Parquet"),
        (["--data", "nowhere"], "nowhere.csv was not found; data.path (or --data)"),
        (["--cutoff", "soon"], "the cutoff is 'soon'; give a date such as 2024-03-01"),
        (["--cutoff", "1999-01-01"], "no series has a value up to 1999-01-01; the data begins at 2024-02-06"),
        (["--alias", "challenger"], "holds no model 'weatherglass' with alias 'challenger'"),
    ],
)
def test_bad_input_is_one_sentence_and_the_old_output_stays(
    project: Path, tmp_path: Path, weatherglass: Call, arguments: list[str], told: str
) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("old")
    if arguments[0] == "--data":
        arguments = ["--data", str(bad_tables(tmp_path)[arguments[1]])]
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = weatherglass(project, "forecast", *arguments, "--output", str(out))
    assert ended.code == 2
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert told in lines[0]
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_family_that_is_not_listed_is_one_sentence(project: Path, command: Call) -> None:
    ended = command("flows.train", "--family", "lstm")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "train@lstm: family 'lstm' is not in params.yaml: families, which holds tft, tcn, gradient_boosting."
    ]


def test_a_broken_source_stops_the_run_and_mending_it_restores_everything(project: Path, command: Call) -> None:
    source = project / "data/raw/hourly.csv"
    good = source.read_bytes()
    results = {name: file_md5(project / name) for name in RESULTS}
    source.write_bytes(good.replace(b"unique_id,ds,y", b"unique_id,ds,why", 1))
    ended = command("flows", "run")
    source.write_bytes(good)
    assert ended.returncode == 2
    told = [line for line in ended.stderr.splitlines() if "has no column 'y' (data.target_column)" in line]
    assert len(told) == 1, ended.stderr
    assert told[0].startswith("ingest: ")
    assert "Traceback" not in ended.stderr
    assert not list((project / "data").glob(".*tmp*"))
    assert {name: file_md5(project / name) for name in RESULTS} == results

    mended = command("dvc", "repro")
    assert mended.returncode == 0, mended.stderr
    assert "Running stage" not in mended.stdout, "the earlier result is taken from DVC's cache"
    assert {name: file_md5(project / name) for name in RESULTS} == results


def test_a_killed_run_leaves_no_process_and_the_next_one_goes_on(
    project: Path, command: Call, edit_params: Call, environment: dict[str, str]
) -> None:
    before = (project / "params.yaml").read_bytes()
    edit_params(project, {"forecasters.tcn.max_epochs": 240, "train.patience": 240})
    arguments = [sys.executable, "-m", "dvc", "repro", "train@tcn"]
    cron = environment | {"SHELL": "/bin/sh"}  # a shell that may stay between DVC and the stage
    dvc = subprocess.Popen(arguments, cwd=project, env=cron, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = project / ".weatherglass/checkpoints/tcn"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*/member_*/last.ckpt")) and dvc.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(dvc.pid).children(recursive=True)
    dvc.kill()
    dvc.wait()
    assert len(children) >= 2
    assert psutil.wait_procs(children, timeout=20)[1] == [], "a killed run must leave nothing computing"
    assert not (project / "artifacts/train/tcn").exists()

    again = command("flows", "run", "train@tcn")
    assert again.returncode == 0, again.stderr
    histories = read_json(project / "artifacts/train/tcn/history.json")
    assert [len(history) for history in histories] == [240, 240]
    (project / "params.yaml").write_bytes(before)
    restored = command("dvc", "repro")
    assert restored.returncode == 0, restored.stderr
    assert "Running stage" not in restored.stdout, "the earlier members are taken from DVC's cache"


def test_the_monitor_judges_the_champion_when_truth_has_come(
    project: Path, command: Call, weatherglass: Call, client: MlflowClient
) -> None:
    source = project / "data/raw/hourly.csv"
    table = pd.read_csv(source, parse_dates=["ds"])
    later = table[table["ds"] > table["ds"].max() - pd.Timedelta(48, "h")]
    later = later.assign(ds=later["ds"] + pd.Timedelta(48, "h"), y=later["y"] + 40)
    pd.concat([table, later]).to_csv(source, index=False)
    ingest(Params.load(root=project), project)
    ended = command("flows", "monitor", "--json")
    assert ended.returncode == 4, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert told["judged"]["windows"] == 6 * 7
    assert {"coverage_90", "crps"} <= {alarm["metric"] for alarm in told["alarms"] if alarm["kind"] == "all"}
    assert told == read_json(project / "artifacts/monitor/monitor.json")
    assert "alarms: Coverage" in (project / "reports/drift.html").read_text(encoding="utf-8")
    runs = client.search_runs(["1"], "tags.`weatherglass.kind` = 'monitor'")
    assert len(runs) == 1 and runs[0].data.metrics["live/alarms"] == len(told["alarms"])
    assert weatherglass(project, "forecast", "--output", "live.parquet").code == 0
    live = pd.read_parquet(project / "live.parquet")
    assert ((live["hi_90_live"] - live["lo_90_live"]) > (live["hi-90"] - live["lo-90"])).mean() > 0.5
