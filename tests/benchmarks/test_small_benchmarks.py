"""The training, scan and streaming benchmarks at tiny sizes: what they report, and that they measure what they say."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peer_training, scan, streaming, training
from models.layers.selective_scan import selective_scan, selective_scan_reference
from tasks.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own warnings

TINY = {
    "deepar": {"hidden_size": 4, "layers": 1},
    "tft": {"hidden_size": 4, "attention_heads": 2, "hidden_continuous_size": 2},
    "tcn": {"width": 4, "levels": 2, "kernel_size": 2},
    "wavenet": {"width": 4, "levels": 2, "stacks": 1, "bins": 8, "paths": 3},
}
BOTH = {
    "weatherglass_deepar": 200.0, "neuralforecast_deepar": 50.0, "gluonts_deepar": 80.0, "pytorch_forecasting_deepar": 40.0,
    "weatherglass_tft": 90.0, "pytorch_forecasting_tft": 30.0, "weatherglass_tcn": 50.0, "neuralforecast_tcn": 100.0,
    "neuralforecast_tcn_shallow": 400.0, "weatherglass_wavenet": 0.5, "gluonts_wavenet": 12.0,
    "neuralforecast_deepar_one_step": 900.0, "gluonts_wavenet_defaults": 40.0,
}  # fmt: skip


def test_ratios_are_against_the_best_peer_and_above_one_where_ours_is_faster() -> None:
    expected = {"deepar_ratio": 2.5, "tft_ratio": 3.0, "tcn_ratio": 0.5, "wavenet_sampling_ratio": 24.0}
    assert training.ratios(BOTH) == expected | {"wavenet_sampling_ratio_defaults": 80.0}
    assert set(expected) == set(training.GOALS)


def test_networks_without_a_peer_have_no_ratio() -> None:
    alone = {name: value for name, value in BOTH.items() if name.startswith(training.HERE)}
    assert set(training.ratios(alone)) == {"deepar_ratio", "tft_ratio"}
    assert set(training.contestants({"neuralforecast": False, "gluonts": False})) == set(alone)


def test_our_side_trains_and_samples_every_network_asked_for(tmp_path: Path) -> None:
    spec = training.specification(tmp_path, series=2, seconds=0.02, sizes=TINY) | {"batch_size": 4}
    assert json.loads(json.dumps(spec)) == spec
    answers: list[float] = []
    names = [name for name in training.contestants({}) if name.startswith("weatherglass")]
    peer_training.serve(training.measures_here(spec), names, answers.append)
    assert len(answers) == 4 and min(answers) > 0


def test_the_clock_leaves_out_the_warm_up_and_counts_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes half a second but the first ones a minute each: two steps, hence two batches, a second."""
    now = [0.0]
    monkeypatch.setattr(peer_training.time, "process_time", lambda: now[0])

    def fit(options: dict[str, Any]) -> None:
        for step in range(100):
            now[0] += 60.0 if step < peer_training.WARM_UP else 0.5
            for callback in options["callbacks"]:
                callback.on_train_batch_end()

    assert peer_training.windows_per_second(fit, batch_size=128, seconds=5.0) == pytest.approx(256.0)


def test_a_training_that_ends_too_soon_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before its"):
        peer_training.windows_per_second(lambda options: None, batch_size=1, seconds=5.0)


PEER = """
import json, sys
sys.path.insert(0, {root!r})
from benchmarks.peer_training import serve
spec = json.load(open(sys.argv[1]))
serve({{"twice": lambda: 2 * spec["number"]}}, sys.stdin, lambda value: print(json.dumps(value), flush=True))
"""


def test_the_peers_process_answers_by_turns_and_its_end_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "peer.py"
    program.write_text(PEER.format(root=os.getcwd()))
    with training.worker_of_peers({"number": 21}, Path(sys.executable), tmp_path, program) as peer:
        assert [peer("twice"), peer("twice")] == [42, 42]
        with pytest.raises(RuntimeError, match="ended while measuring thrice"):
            peer("thrice")


@pytest.mark.parametrize("main", [training.main, scan.main])
def test_peers_that_are_not_there_are_named(main: Callable[[list[str]], None]) -> None:
    with pytest.raises(UserError, match=r"nowhere/python, which is not there; run `make peers`"):
        main(["--peers", "nowhere/python"])


def test_peak_memory_is_that_of_the_tensors_held_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            first = torch.zeros(250_000)
            second = first + 1.0
            del first, second

    assert 2_000_000 <= peer_training.peak_bytes(work) < 2_100_000


def test_scan_report_has_its_keys_and_compares_sides() -> None:
    shape, asked = {"batch": 2, "channels": 3, "states": 4}, []

    def peer(name: str) -> float:
        asked.append(name)
        return 10.0 if name.startswith("seconds") else 1e12

    result = scan.compare(peer, (5, 18), shape, rounds=1)
    assert {"ratio_5", "ratio_18", "memory_ratio"} <= set(result)
    assert result["ratio_18"] == pytest.approx(10.0 / (result["ms_18_ours"] / 1e3))
    assert result["memory_ratio"] == max(result["memory_5_ours"], result["memory_18_ours"]) / 1e12
    assert result["memory_18_ours"] > 18 * 2 * 3 * 4  # at the least its output
    assert {"seconds_5", "bytes_5", "seconds_18", "bytes_18"} == set(asked)
    assert set(scan.GOALS) == {*(f"ratio_{steps}" for steps in scan.LENGTHS), "memory_ratio", "max_error_float64"}


def test_scan_error_sees_a_wrong_gradient() -> None:
    def wrong(*parts: Tensor) -> Tensor:
        output = selective_scan_reference(*parts)
        return output + (parts[1] - parts[1].detach()).sum() * 1e-4  # the same value, another slope in delta

    assert scan.error_float64(selective_scan, [1, 21], channels=3) < 1e-12
    assert scan.error_float64(wrong, [21], channels=3) > 1e-6


def test_streaming_report_covers_every_family_that_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "streaming.json"
    streaming.main(["--rounds", "1", "--short", "8", "--long", "96", "--json", str(path)])
    result = json.loads(path.read_text())
    families = ("tcn", "wavenet", "s4d", "mamba", "mamba2", "hybrid", "deepar")
    for family in families:
        ratio = result[f"step_us_96_{family}"] / result[f"step_us_8_{family}"]
        assert result[f"step_ratio_{family}"] == pytest.approx(ratio) and ratio > 0
    assert result["step_ratio_worst"] == max(result[f"step_ratio_{family}"] for family in families)
    assert result["recompute_ratio_worst"] == min(result[f"recompute_ratio_{family}"] for family in families)
    assert f"{result['step_ratio_worst']:.2f}" in capsys.readouterr().out


def test_a_step_that_is_not_the_whole_pass_is_not_timed() -> None:
    stream = streaming.streams()["tcn"]
    broken = stream._replace(step=lambda x_t, state: (x_t, state))
    with torch.no_grad(), pytest.raises(AssertionError):
        streaming.measure(broken, 8, 96, 4, 1)
