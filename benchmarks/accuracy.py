"""Accuracy and calibration against peers on public sets, under the protocols of published figures.

    python -m benchmarks.accuracy --data FOLDER --dataset m4_hourly --json a.json

Runs our path (ingest to evaluate, no orchestration) in a temporary folder, then NeuralForecast's TFT and NHITS and
GluonTS's DeepAR with their documented defaults and as much training time each as our whole path took, then seasonal naive
and AutoETS. All are scored by the same functions on the same windows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import at_least, machine, parser, report, table, versions
from benchmarks.datasets import DATASETS, Benchmark
from benchmarks.path import FAMILIES, our_params, run_ours
from models.predictive import LEVELS, Predictive
from tasks.errors import UserError
from tasks.evaluate import seasonal_error
from tasks.files import read_json, write_json
from tasks.model_scores import model_scores
from tasks.prepare import INGESTED

BASELINES = ["seasonal_naive", "auto_ets"]
PEERS = ("neuralforecast_nhits", "neuralforecast_tft", "gluonts_deepar")
SHOWN = ("wql", "mase", "coverage_90", "joint_coverage_90", "width_90")


def run_peers(benchmark: Benchmark, root: Path, interpreter: Path, budget: float) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and seconds of every peer, trained for ``budget`` seconds each in one process of ``interpreter``."""
    from tasks.prepare import load_prepared

    prepared = load_prepared(root)
    schema, out = prepared.panel.schema, root / "peers"
    out.mkdir()
    spec = {
        "panel": str(root / INGESTED / "panel.parquet"), "out": str(out), "peers": PEERS, "levels": LEVELS,
        "horizon": schema.horizon, "context": schema.context, "windows": benchmark.windows, "test": benchmark.test,
        "frequency": benchmark.frequency, "seconds": round(budget),
    }  # fmt: skip
    write_json(root / "spec.json", spec)
    program = Path(__file__).with_name("peer_forecasts.py")
    subprocess.run([str(interpreter), str(program), str(root / "spec.json")], check=True, cwd=root)
    windows = prepared.fold("test", "evaluate")
    target, scale = prepared.panel.targets(windows), seasonal_error(prepared)[windows.series]
    metrics: dict[str, float] = {}
    for name in PEERS:
        values = np.load(out / f"{name}.npy").reshape(len(windows), schema.horizon, -1)
        predictive = Predictive(torch.from_numpy(values))
        row = model_scores(predictive, target).metrics(target, scale)
        metrics |= {f"{name}/{key}": value for key, value in row.items()}
    return metrics, dict(read_json(out / "times.json"))


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder with the published files")
    options.add_argument("--dataset", choices=sorted(DATASETS), required=True)
    options.add_argument("--families", nargs="+", default=list(FAMILIES))
    options.add_argument("--members", type=at_least(1), default=2, help="networks a family")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has the peers")
    options.add_argument("--no-peers", action="store_true", help="ours and the baselines alone")
    given = options.parse_args(arguments)
    if not given.no_peers and not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first or give --no-peers.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        benchmark = DATASETS[given.dataset](given.data)
        benchmark.frame.to_parquet(root / "panel.parquet", index=False)
        params = our_params(benchmark, root / "panel.parquet", given.families, given.members, BASELINES)
        metrics, seconds = run_ours(params, root)
        if not given.no_peers:
            theirs, times = run_peers(benchmark, root, given.peers.absolute(), seconds["ours"])
            metrics, seconds = metrics | theirs, seconds | times
    models = sorted({key.split("/")[0] for key in metrics}, key=lambda model: metrics[f"{model}/wql"])
    rows = [
        (model, *(f"{metrics[f'{model}/{key}']:.4f}" if f"{model}/{key}" in metrics else "-" for key in SHOWN))
        for model in models
    ]
    result = {
        **{key: value for key, value in metrics.items() if np.isfinite(value)},
        "dataset": given.dataset, "seconds": seconds, "params": params.model_dump(mode="json", exclude={"data": {"path"}}),
        "machine": machine(), "versions": versions(["torch", "lightning", "statsforecast"]),
    }  # fmt: skip
    report(result, table(("model", *SHOWN), rows), given.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        raise SystemExit(2) from None
