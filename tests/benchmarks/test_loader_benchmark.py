"""The loader benchmark end to end on eight series: it compares like with like and reports what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import loader

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


def test_benchmark_reports_every_key_and_positive_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loader.json"
    loader.main(["--rows", "8000", "--rounds", "1", "--seconds", "0.05", "--json", str(path)])
    result = json.loads(path.read_text())
    sides = [f"{measure}_{side}" for measure in ("windows_per_s", "build_s") for side in ("ours", "peer")]
    for key in (*sides, "windows_per_s_ratio", "build_ratio", "check_s_ours", "build_ratio_with_check"):
        assert result[key] > 0, key
    assert result["rows"] == 8000
    assert result["windows"] == 8 * (loader.STEPS - loader.CONTEXT - loader.HORIZON + 1)
    assert result["build_ratio"] == pytest.approx(result["build_s_peer"] / result["build_s_ours"])
    assert {"python", "torch", "pytorch-forecasting"} <= set(result["versions"])
    assert result["notes"] and result["machine"]["torch_threads"] == 1
    printed = capsys.readouterr().out
    assert f"{result['build_ratio']:.1f}" in printed and "pytorch-forecasting" in printed


def test_comparison_fails_when_the_sides_serve_different_values() -> None:
    frame, params = loader.synthetic_frame(2 * loader.STEPS), loader.parameters()
    settings = loader.derive_settings(params, [loader.STEPS] * 2)
    ours, peer = loader.build_ours(frame, params, settings), loader.build_peer(frame, per_window=True)
    assert loader.compare(ours, peer) == loader.COMPARED
    other = frame.assign(y=frame["y"].where(frame["ds"] < loader.STEPS - 1, 0.0))  # in no history
    with pytest.raises(AssertionError, match="decoder_target differs"):
        loader.compare(loader.build_ours(other, params, settings), peer)
    short = frame[frame["ds"] < loader.STEPS - 1].reset_index(drop=True)
    with pytest.raises(AssertionError, match="windows here"):
        loader.compare(loader.build_ours(short, params, settings), peer)


@pytest.mark.parametrize("rows", ["999", "many"])
def test_rows_that_make_no_series_are_refused(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        loader.main(["--rows", rows])
    assert stop.value.code == 2
    assert "at least 1000" in capsys.readouterr().err
