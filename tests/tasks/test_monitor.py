"""The monitor on a small project whose data goes on: figures, alarms, live intervals, and runs that are cut short."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import monitor_state
from tasks.bundle import LIVE_COLUMNS, Bundle, write_bundle
from tasks.errors import UserError
from tasks.forecast import live_intervals
from tasks.future import with_future_rows
from tasks.ingest import ingest
from tasks.monitor import DRIFT, MONITOR, Outcome, mark_told, metrics_of, monitor, told, verdict_text
from tasks.monitor_state import Tracker
from tasks.params import Params
from tasks.prepare import INGESTED
from tasks.report_drift import render_drift

STATE = MONITOR / "weatherglass-1/state.json"
Go = Callable[..., Outcome]


@pytest.fixture(scope="module")
def bundle(evaluated_project: Path) -> Bundle:
    return Bundle.load(write_bundle(Params.load(root=evaluated_project), evaluated_project), "weatherglass version 1")


@pytest.fixture
def root(evaluated_project: Path, tmp_path: Path) -> Path:
    """A project with data and params alone: the champion comes from the registry."""
    for name in ("data/raw", "data/ingested"):
        shutil.copytree(evaluated_project / name, tmp_path / name)
    shutil.copyfile(evaluated_project / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def goes_on(root: Path, hours: int, shift: float = 0.0, noise: float = 1.0, late: str | None = None) -> None:
    """Let ``hours`` pass: every series goes on as it was, but for its level and noise; ``late`` has no new value yet."""
    table = pd.read_csv(root / "data/raw/hourly.csv", parse_dates=["ds"])
    table = table[table["ds"] <= "2024-03-01 23:00"]
    rng, parts = np.random.default_rng(11), [table]
    for number, name in enumerate(sorted(table["unique_id"].unique())):
        ds = pd.date_range("2024-03-02", periods=400, freq="h")
        cycle = np.sin(2 * np.pi * (ds.hour.to_numpy() + number) / 24)
        y = 20 * (number + 1) + 5 * cycle + rng.normal(0, noise, len(ds)) + shift
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y.round(4)})[: 0 if name == late else hours])
    pd.concat(parts).to_csv(root / "data/raw/hourly.csv", index=False)
    ingest(Params.load(root=root), root)


@pytest.fixture
def go(root: Path, bundle: Bundle) -> Go:
    """Run the monitor."""

    def run(**more: Any) -> Outcome:
        given: dict[str, Any] = {"bundle": bundle, "version": "1", "digest": "abc", **more}
        return monitor(Params.load(root=root), root, **given)

    return run


def files_of(root: Path) -> dict[str, bytes]:
    """Everything that the monitor keeps and writes."""
    folders = (root / MONITOR, root / "artifacts/monitor")
    return {str(path.relative_to(root)): path.read_bytes() for each in folders for path in each.rglob("*") if path.is_file()}


def test_without_new_truth_there_is_nothing_to_judge_and_the_next_forecasts_are_recorded(root: Path, go: Go) -> None:
    outcome = go()
    assert outcome.found == () and not outcome.alarms
    said = verdict_text(outcome)
    assert "nothing to judge yet: its own data ended at 2024-03-01T23:00:00" in said and "42 intervals wait" in said
    assert outcome.summary["live_intervals"]["issued"] == 7 * 6
    page = render_drift(outcome)
    assert "Nothing to judge yet" in page and "null: 36 steps, the champion&#39;s test fold" in page and "None" not in page
    goes_on(root, 5)
    assert go().found == (), "no window is whole before its last step has come"


def test_a_champion_is_judged_by_what_forecast_would_have_said(root: Path, go: Go, bundle: Bundle) -> None:
    goes_on(root, 40)
    outcome = go()
    judged, summary = outcome.judged, outcome.summary
    assert summary["judged"]["windows"] == 5 * 7 and len(judged) == 5 * 7 * 6, "36 steps, as the test fold has"
    cutoff = pd.Timestamp("2024-03-02 11:00")
    frame = pd.read_parquet(root / INGESTED / "panel.parquet")
    forecast = bundle.forecast(with_future_rows(frame, bundle.encoding, cutoff))
    mine = judged[judged["cutoff"] == cutoff].merge(forecast, on=["unique_id", "ds"], suffixes=("", "_said"))
    assert len(mine) == 7 * 6
    for name in ("median", "lo-90", "hi-90"):
        assert np.allclose(mine[name], mine[f"{name}_said"], rtol=1e-5)
    truth = mine.merge(frame, on=["unique_id", "ds"], suffixes=("", "_true"))
    assert np.allclose(truth["y"], truth["y_true"], rtol=1e-6)
    figure = next(each for each in outcome.found if each.kind == "all" and each.metric == "coverage_90")
    assert figure.value == pytest.approx(judged["covered"].mean())
    assert {each.group for each in outcome.found if each.kind == "series"} == {"a", "b", "c", "d", "e", "f", "short"}
    assert metrics_of(outcome)["live/coverage_90"] == pytest.approx(figure.value)


def test_data_that_goes_on_as_before_is_calm_and_a_shift_alarms_with_its_reasons(root: Path, go: Go) -> None:
    goes_on(root, 48)
    calm = go()
    assert not [figure.sentence for figure in calm.alarms if figure.kind == "all"], verdict_text(calm)
    shutil.rmtree(root / MONITOR)
    goes_on(root, 48, shift=30.0, noise=8.0)
    drift = go()
    metrics = {figure.metric for figure in drift.alarms if figure.kind == "all"}
    assert {"coverage_90", "crps", "pit_ks", "psi", "range"} <= metrics
    said = verdict_text(drift)
    assert "coverage_90: the coverage of the 90 % intervals of all series is " in said and ", below " in said
    assert "range: the share of values outside of the training range of series a is " in said
    page = render_drift(drift)
    assert "alarms: Coverage" in page and "▲" in page and 'src="http' not in page and 'href="http' not in page
    assert page == render_drift(drift)
    live, fixed = (drift.judged[name].mean() for name in ("crps", "covered"))
    assert live > calm.judged["crps"].mean() and fixed < 0.9


def test_running_it_again_changes_nothing(root: Path, go: Go) -> None:
    goes_on(root, 40)
    first = go()
    before = files_of(root)
    second = go()
    assert files_of(root) == before
    assert second.digest == first.digest and second.summary == first.summary


def test_many_runs_end_where_one_does(root: Path, go: Go) -> None:
    for hours in (3, 6, 17, 31):
        goes_on(root, hours)
        go()
    goes_on(root, 45)
    go()
    stepwise = files_of(root)
    shutil.rmtree(root / MONITOR)
    go()
    assert files_of(root) == stepwise


@pytest.mark.parametrize("where", ["before a record", "after a record", "before the state", "after the state"])
def test_a_run_that_is_killed_goes_on_to_the_same_end(root: Path, go: Go, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    goes_on(root, 40)
    go()
    whole = files_of(root)
    shutil.rmtree(root / MONITOR)
    shutil.rmtree(root / "artifacts/monitor")
    owner, name = (monitor_state.Issued, "write") if "record" in where else (Tracker, "save")
    real, calls = getattr(owner, name), []

    def dies(self: Any, *given: Any) -> None:
        calls.append(1)
        if len(calls) == 3 and where.startswith("before"):
            raise KeyboardInterrupt
        real(self, *given)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, dies)
        go()
    go()
    assert files_of(root) == whole


def test_late_truth_counts_when_it_comes_and_what_never_comes_is_forgotten(root: Path, go: Go) -> None:
    goes_on(root, 24, late="b")
    waiting = go().summary
    assert waiting["live_intervals"]["open"] == 7 * 6 - 6 + 6, "the newest cutoff of six series, and the first of b"
    assert not [row for row in waiting["figures"] if row["group"] == "b"]
    goes_on(root, 24)
    come = go().summary
    assert come["live_intervals"]["open"] == 6 * 6, "b was not forecast at the newest cutoff: its data had ended before"
    goes_on(root, 400)
    outcome = go()
    state = json.loads((root / STATE).read_text())
    assert len(state["live"]["ledger"]["issues"]) <= 6
    kept = len(list((root / STATE).parent.glob("*.safetensors")))
    assert kept <= 7 + 2, "as many cutoffs as the window holds, and those that wait"
    assert outcome.summary["live_intervals"]["issued"] > 60 * 7 * 6


def test_live_intervals_follow_a_shift_that_fixed_ones_miss(root: Path, go: Go) -> None:
    goes_on(root, 400, noise=4.0)
    outcome = go()
    adaptive, fixed = outcome.summary["live_intervals"]["coverage"], outcome.judged["covered"].mean()
    assert fixed < 0.75 and adaptive > fixed + 0.05


def test_another_champion_starts_anew_and_an_earlier_one_goes_on(root: Path, go: Go) -> None:
    goes_on(root, 40)
    first = go()
    assert first.summary["live_intervals"]["missed"] > 0
    other = go(version="2", digest="def")
    assert (root / MONITOR / "weatherglass-2/state.json").exists() and (root / STATE).exists()
    assert other.summary["version"] == "2"
    goes_on(root, 12)
    again = go(digest="registered anew")
    assert again.summary["live_intervals"]["issued"] == 3 * 7 * 6, "version 1 of another registry is another champion"


def test_forecasts_have_live_intervals_once_the_monitor_keeps_them(root: Path, go: Go, bundle: Bundle) -> None:
    assert live_intervals(root, "weatherglass-1", "abc", bundle, "aci") is None
    goes_on(root, 100, noise=4.0)
    go()
    frame = with_future_rows(pd.read_parquet(root / INGESTED / "panel.parquet"), bundle.encoding)
    table = bundle.forecast(frame, live_intervals(root, "weatherglass-1", "abc", bundle, "aci"))
    assert tuple(table.columns[-3:-1]) == LIVE_COLUMNS
    assert (table["hi_90_live"] - table["lo_90_live"]).mean() > (table["hi-90"] - table["lo-90"]).mean()


def test_what_was_done_about_an_outcome_is_remembered_for_it_alone(root: Path, go: Go) -> None:
    outcome = go()
    mark_told(root, outcome, "webhook")
    mark_told(root, outcome, "retrain")
    assert told(root, outcome) == {"webhook", "retrain"}
    assert told(root, replace(outcome, digest="other")) == set()
    (root / MONITOR / "told.json").write_text("{")
    assert told(root, outcome) == set()


def test_corrupt_files_are_named(root: Path, go: Go) -> None:
    goes_on(root, 14)
    go()
    text = (root / STATE).read_text()
    for broken in (text[: len(text) // 2], text.replace('"excess"', '"x"').replace('"alpha"', '"y"'), "[1]"):
        (root / STATE).write_text(broken)
        with pytest.raises(UserError, match=r"weatherglass-1/state\.json is not what was written .*start anew"):
            go()
    (root / STATE).write_text(text)
    record = next((root / STATE).parent.glob("2024-03-01*.safetensors"))
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{record.name} is not what was written"):
        go()


def test_mistakes_are_told(root: Path, go: Go, bundle: Bundle) -> None:
    with pytest.raises(UserError, match="was registered without the figures that the monitor needs"):
        go(bundle=replace(bundle, reference=None))
    reads = replace(bundle, encoding=replace(bundle.encoding, known_future=("price",)))
    with pytest.raises(UserError, match="reads the column 'price', which the data has no more; `weatherglass run`"):
        go(bundle=reads)
    assert bundle.reference is not None
    moved = replace(bundle, reference=replace(bundle.reference, until="2024-02-20T23:30:00"))
    with pytest.raises(UserError, match=r"no row at 2024-02-20T23:30:00, where that of weatherglass version 1 ended"):
        go(bundle=moved)
    shutil.rmtree(root / INGESTED)
    with pytest.raises(UserError, match=r"data/ingested/panel.parquet is not there; run `weatherglass ingest` first"):
        go()


def test_data_that_ends_before_the_champions_own_is_nothing_to_judge(root: Path, go: Go, bundle: Bundle) -> None:
    assert bundle.reference is not None
    outcome = go(bundle=replace(bundle, reference=replace(bundle.reference, until="2024-03-05T00:00:00")))
    assert outcome.found == () and outcome.summary["live_intervals"]["issued"] == 0


def test_the_page_is_where_the_report_is() -> None:
    assert Path("reports/drift.html") == DRIFT
