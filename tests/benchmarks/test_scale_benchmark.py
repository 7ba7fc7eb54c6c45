"""The scale benchmark on ten short series: its data, each stage, where it gives up, and the figures it derives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks import many, scale, scale_data, scale_stages
from benchmarks.peer_scale import FINISHED, memory
from tasks.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


def test_a_larger_panel_begins_with_a_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_data, "GROUP", 8)
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    assert scale_data.write(small, 16_000) == 16_000 and scale_data.write(large, 20_500) == 20_000
    assert pq.ParquetFile(large).num_row_groups == 3
    both = [pd.read_parquet(path) for path in (small, large)]
    pd.testing.assert_frame_equal(both[0], both[1].iloc[:16_000])
    assert not both[0].equals(next(iter(scale_data.groups(16_000, seed=2))).to_pandas())


def test_series_grow_in_number_and_then_in_length() -> None:
    shapes = [scale_data.shape_of(rows) for rows in (2_000, 10**4, 10**6, 10**8, 10**9)]
    assert shapes == [(10, 200), (10, 1_000), (1_000, 1_000), (100_000, 1_000), (100_000, 10_000)]


def test_demand_has_a_week_a_trend_covariates_and_days_without_sales() -> None:
    frame = scale_data.group_of(0, 200, 1_000, seed=1).to_pandas()
    y = frame["y"].to_numpy().reshape(200, 1_000)
    sporadic = (y == 0).mean(axis=1) > 0.2
    assert abs(sporadic.mean() - scale_data.SPORADIC) < 4 * np.sqrt(0.3 * 0.7 / 200)  # four standard errors of a share
    assert (y >= 0).all() and np.array_equal(y[sporadic], np.round(y[sporadic]))
    smooth = y[~sporadic] / y[~sporadic].mean(axis=1, keepdims=True)
    week = np.abs(np.fft.rfft(smooth[:, :994], axis=1))[:, 1:].mean(axis=0)
    assert week.argmax() + 1 == 142 or week[141] > 20 * np.median(week)  # 994 days are 142 weeks
    promotion = frame["promotion"].to_numpy().reshape(200, 1_000)[~sporadic]
    assert smooth[promotion == 1].mean() - smooth[promotion == 0].mean() == pytest.approx(0.4, abs=0.05)
    assert frame.groupby("unique_id")["region"].nunique().eq(1).all()


def specification(root: Path, rows: int = 2_000) -> scale_stages.Spec:
    """A panel of ten series and what its stages must know."""
    scale_data.write(root / "panel.parquet", rows)
    return scale.spec_of(root, root / "panel.parquet", "tcn", 10) | {"batch_size": 8, "cutoff": "2020-07-04"}


def test_the_stages_are_the_path_and_end_with_metrics(tmp_path: Path) -> None:
    spec = specification(tmp_path)
    assert json.loads(json.dumps(spec)) == spec
    results = {name: stage(spec)() for name, stage in scale_stages.STAGES.items()}
    assert results["load"] == 80
    metrics = json.loads((tmp_path / "metrics/test.json").read_text())
    assert metrics["ensemble/crps"] > 0 and "tcn/wql" in metrics
    table = pd.read_parquet(tmp_path / "forecast.parquet")
    assert results["forecast"] == {"series": 10} and len(table) == 140
    assert (table["cutoff"] == pd.Timestamp("2020-07-04")).all() and table["ood_score"].notna().all()


def test_many_series_are_forecast_beyond_their_last_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many.main(["--series", "12", "3", "--trained", "10", "--batches", "10", "--json", str(tmp_path / "many.json")])
    result = json.loads((tmp_path / "many.json").read_text())
    assert result["series"] == [3, 12] and {row["series"] for row in result["figures"].values()} == {3, 12}
    assert all(row["peak_mb"] > row["start_mb"] > 0 for row in result["figures"].values()) and "exponent" in result
    assert capsys.readouterr().out.splitlines()[0].split() == ["series", "seconds", "MB", "series/s"]


def test_a_panel_of_many_series_has_a_horizon_without_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_data, "GROUP", 2)
    many.write_panel(tmp_path / "panel.parquet", 5)
    panel = pd.read_parquet(tmp_path / "panel.parquet")
    assert panel["unique_id"].nunique() == 5 and panel["unique_id"].is_monotonic_increasing
    empty = panel.groupby("unique_id")["y"].apply(lambda y: y.isna().to_numpy().nonzero()[0].tolist())
    assert (empty.map(lambda rows: rows == list(range(many.STEPS - many.HORIZON, many.STEPS)))).all()
    assert panel["visitors"].isna().equals(panel["y"].isna()) and panel["price"].notna().all()


def test_the_peer_here_draws_as_many_windows(tmp_path: Path) -> None:
    found = scale_stages.pytorch_forecasting(specification(tmp_path))()
    assert found["windows"] == 80 and found["build_s"] > 0 and found["load_s"] > 0


PRINTS = f'print(\'noise\'); print({FINISHED!r} + \'{{"seconds": 1.5, "start_mb": 2, "peak_mb": 3}}\')'


@pytest.mark.parametrize(
    ("code", "limits", "expected"),
    [
        (PRINTS, (60, 16), None),
        ("import time; time.sleep(60)", (0.5, 16), "time"),
        ("import time; held = b'x' * (200 * 2**20); time.sleep(60)", (60, 0.1), "memory"),
        ("raise SystemExit('no such column')", (60, 16), "failure"),
    ],
)  # fmt: skip
def test_a_process_gives_up_at_its_limits(tmp_path: Path, code: str, limits: tuple[float, float], expected: str | None) -> None:
    figures = scale.run([sys.executable, "-c", code], tmp_path, limits, {})
    assert figures.get("gave_up") == expected
    if expected is None:
        assert figures == {"seconds": 1.5, "start_mb": 2, "peak_mb": 3}
    if expected == "failure":
        assert figures["words"] == "no such column"


def test_memory_is_the_most_that_was_held() -> None:
    before = memory()
    held = np.ones(25_000_000)
    assert memory() >= 0.99 * psutil.Process().memory_info().rss / 2**20 and memory() > held.nbytes / 2**20
    del held
    assert memory() >= before


def figures_of(*seconds: float | None) -> dict[str, Any]:
    """Figures at 10^4, 10^5, ... rows; None where it gave up."""
    each = ({"gave_up": "time"} if s is None else {"seconds": s, "start_mb": 100.0, "peak_mb": 100.0 + s} for s in seconds)
    return {str(10**power): figures for power, figures in enumerate(each, start=4)}


def test_an_earlier_result_keeps_what_was_not_measured_again() -> None:
    earlier = {
        "rows": [10**4, 10**5], "series": [10, 100], "names": ["ingest", "load", "peer"],
        "figures": {"ingest": figures_of(1.0, 2.0), "load": figures_of(3.0, 4.0), "peer": figures_of(5.0)},
    }  # fmt: skip
    again = {
        "rows": [10**5, 10**6],
        "series": [100, 1000],
        "names": ["ingest"],
        "figures": {"ingest": figures_of(9.0, 8.0, 7.0)},
    }
    again["figures"]["ingest"].pop("10000")  # type: ignore[index]
    found = scale.with_earlier(again, earlier)
    assert found["rows"] == [10**4, 10**5, 10**6] and found["series"] == [10, 100, 1000]
    assert found["names"] == ["ingest", "load", "peer"]
    seconds = {name: {rows: each["seconds"] for rows, each in by.items()} for name, by in found["figures"].items()}
    assert seconds["ingest"] == {"10000": 1.0, "100000": 8.0, "1000000": 7.0}
    assert seconds["load"] == {"10000": 3.0, "100000": 4.0} and seconds["peer"] == {"10000": 5.0}


def test_exponents_are_those_of_the_large_sizes() -> None:
    found = scale.exponents(
        {"ingest": figures_of(1.0, 2.0, 20.0, 200.0), "load": figures_of(3.0, 3.0), "train": figures_of(1.0)}
    )
    assert found == pytest.approx(
        {"exponent_ingest": 1.0, "memory_exponent_ingest": 1.0, "exponent_load": 0.0, "memory_exponent_load": 0.0}, abs=1e-9
    )


def test_a_peer_that_gave_up_is_extrapolated_and_said_to_be() -> None:
    found = {
        "ingest": figures_of(1, 1, 1),
        "prepare": figures_of(1, 1, 1),
        "load": figures_of(1, 1, 1),
        "peer": figures_of(4, 40, None),
    }
    result = scale.ratios(found, ["peer"])
    assert result["ratio_peer"] == pytest.approx({"10000": 2.0, "100000": 20.0, "1000000": 200.0})
    assert result["ratio_with_ingest_peer"]["100000"] == pytest.approx(40 / 3)
    assert result["extrapolated_peer"] == [10**6]
    text = scale.summary({"rows": [10**4, 10**5, 10**6], "figures": found, **result})
    assert "gave up: time" in text and "200.0 at 1,000,000 (extrapolated)" in text


def test_extrapolation_is_at_least_proportional() -> None:
    assert scale.extrapolated(figures_of(3.0, 4.0), 10**7) == pytest.approx(400.0)
    assert scale.extrapolated(figures_of(1.0, 100.0), 10**6) == pytest.approx(10_000.0)
    assert scale.extrapolated(figures_of(1.0, None), 10**6) is None


def test_the_command_measures_every_size_until_somebody_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def run(command: list[str], folder: Path, seconds: float, gigabytes: float) -> dict[str, Any]:
        spec = json.loads(Path(command[-1]).read_text())
        name = command[-2]
        rows = pq.ParquetFile(spec["panel"]).metadata.num_rows
        asked.append((name, str(rows)))
        if name == "neuralforecast":
            return {"gave_up": "memory", "after_s": 1.0, "seen_mb": 99.0}
        return {"seconds": rows / 1e3, "start_mb": 1.0, "peak_mb": rows / 1e2}

    monkeypatch.setattr(scale, "run", run)
    arguments = ["--sizes", "4e3", "2e3", "--stages", "load", "ingest", "prepare", "--peers", sys.executable]
    scale.main([*arguments, "--folder", str(tmp_path), "--json", str(tmp_path / "sc.json")])
    stages = ["ingest", "prepare", "load", "pytorch_forecasting"]
    first = [*stages, "neuralforecast", "gluonts"]
    assert asked == [*((name, "2000") for name in first), *((name, "4000") for name in [*stages, "gluonts"])]
    result = json.loads((tmp_path / "sc.json").read_text())
    assert result["rows"] == [2000, 4000] and result["series"] == [10, 10]
    assert result["exponent_ingest"] == pytest.approx(1.0) and result["ratio_pytorch_forecasting"]["4000"] == pytest.approx(0.5)
    assert "gave up: memory" in capsys.readouterr().out
    assert not list(tmp_path.glob("scale-*"))


def test_peers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match=r"nowhere/python, which is not there; run `make peers`"):
        scale.main(["--peers", "nowhere/python"])
