"""Forecasts of the peers, run by an interpreter that has them (`make peers`): they need other versions than we do.

    python benchmarks/peer_forecasts.py SPEC.json

Reads a long table and writes quantiles ``(series, windows, horizon, levels)`` as .npy for each peer; knows nothing of
Weatherglass. Each peer has its documented defaults and ``seconds`` of training.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")


def neuralforecast(name: str, frame: pd.DataFrame, spec: dict[str, Any]) -> np.ndarray:
    """TFT or NHITS of NeuralForecast with the multi-quantile loss, fitted once, rolled over the test windows."""
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import NHITS, TFT

    model = {"nhits": NHITS, "tft": TFT}[name](
        h=spec["horizon"],
        input_size=spec["context"],
        loss=MQLoss(quantiles=spec["levels"]),
        scaler_type="robust",
        random_seed=1,
        max_time={"seconds": spec["seconds"]},
        enable_progress_bar=False,
        logger=False,
        accelerator="cpu",
        enable_model_summary=False,
    )
    peer = NeuralForecast(models=[model], freq=spec["frequency"])
    table = peer.cross_validation(frame, n_windows=spec["windows"], step_size=spec["horizon"], refit=False)
    columns = [column for column in table.columns if column not in ("unique_id", "ds", "cutoff", "y")]
    table = table.sort_values(["unique_id", "cutoff", "ds"])
    values = np.sort(table[columns].to_numpy(), axis=1)
    return values.reshape(-1, spec["windows"], spec["horizon"], len(columns))


def gluonts_deepar(frame: pd.DataFrame, spec: dict[str, Any]) -> np.ndarray:
    """DeepAR of GluonTS (torch), fitted on what lies before the test windows, 100 sample paths a window."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    frequency = spec["frequency"] if isinstance(spec["frequency"], str) else "h"
    start, horizon = pd.Period("2000-01-01", freq=frequency), spec["horizon"]
    series = [group["y"].to_numpy(np.float32) for _, group in frame.groupby("unique_id", sort=True)]
    estimator = DeepAREstimator(
        freq=frequency,
        prediction_length=horizon,
        context_length=spec["context"],
        trainer_kwargs={
            "max_time": {"seconds": spec["seconds"]}, "enable_progress_bar": False, "logger": False, "accelerator": "cpu",
        },
    )  # fmt: skip
    train = ListDataset([{"start": start, "target": y[: -spec["test"]]} for y in series], freq=frequency)
    predictor = estimator.train(train)
    cuts = [spec["test"] - window * horizon for window in range(spec["windows"])]
    histories = ListDataset([{"start": start, "target": y[:-cut]} for y in series for cut in cuts], freq=frequency)
    quantiles = [np.quantile(forecast.samples, spec["levels"], axis=0).T for forecast in predictor.predict(histories)]
    return np.stack(quantiles).reshape(len(series), spec["windows"], horizon, -1)


def main() -> None:
    import torch

    torch.set_num_threads(2)
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    frame = pd.read_parquet(spec["panel"]).sort_values(["unique_id", "ds"])
    times = {}
    for name in spec["peers"]:
        started = time.monotonic()
        values = gluonts_deepar(frame, spec) if name == "gluonts_deepar" else neuralforecast(name.split("_")[1], frame, spec)
        times[name] = time.monotonic() - started
        np.save(Path(spec["out"]) / f"{name}.npy", values.astype(np.float32))
        print(f"{name}: {times[name]:.0f} s", file=sys.stderr, flush=True)
    (Path(spec["out"]) / "times.json").write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main()
