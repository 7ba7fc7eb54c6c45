"""NeuralForecast's and GluonTS's datasets and loaders in `benchmarks.scale`, for an interpreter that has them (`make peers`).

    python benchmarks/peer_scale.py NAME SPEC.json

The clock starts when all is imported. The last line that it prints is its figures as JSON. Knows nothing of Weatherglass.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

FINISHED = "figures: "
"""Begins the line of figures."""


def memory() -> float:
    """Most memory that this process has held since its start, MB: mapped files that it has read count.

    Linux's own account of the process image, since a child's ``ru_maxrss`` starts at its parent's; elsewhere that.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def neuralforecast(spec: dict[str, Any]) -> dict[str, float]:
    """Seconds to build the dataset from the file and to draw ``batches`` batches of windows as its training does.

    A batch takes its windows from one series (``batch_size=1``), its fastest setting.
    """
    import pandas as pd
    import torch
    from neuralforecast.losses.pytorch import MAE
    from neuralforecast.models import NHITS
    from neuralforecast.tsdataset import TimeSeriesDataset, TimeSeriesLoader

    torch.set_num_threads(1)
    start_mb, started = memory(), time.perf_counter()
    frame = pd.read_parquet(spec["panel"])
    static = frame.groupby("unique_id", as_index=False)[spec["static"]].first()
    static[spec["static"]] = static[spec["static"]].apply(lambda column: column.astype("category").cat.codes)
    dataset, *_ = TimeSeriesDataset.from_df(frame[["unique_id", "ds", "y", *spec["known"], *spec["past"]]], static)
    built = time.perf_counter()
    model = NHITS(
        h=spec["horizon"], input_size=spec["context"], futr_exog_list=spec["known"], hist_exog_list=spec["past"],
        stat_exog_list=spec["static"], loss=MAE(), windows_batch_size=spec["batch_size"], logger=False,
    )  # fmt: skip
    loader, served, windows = TimeSeriesLoader(dataset, batch_size=1, shuffle=True), 0, 0
    while served < spec["batches"]:
        for batch in loader:
            every, *_, usable, _, _ = model._create_windows(batch, step="train")
            chosen = every[usable[torch.randint(len(usable), (spec["batch_size"],))]]
            served, windows = served + 1, windows + len(chosen)
            if served == spec["batches"]:
                break
    ended = time.perf_counter()
    return {
        "seconds": ended - started, "build_s": built - started, "load_s": ended - built, "windows": windows,
        "start_mb": start_mb, "peak_mb": memory(),
    }  # fmt: skip


def gluonts(spec: dict[str, Any]) -> dict[str, float]:
    """Seconds to build the dataset from the file and to draw ``batches`` batches of windows as DeepAR's training does.

    DeepAR takes no past-only covariates, so these are left out. Lags are of one step, time features its own.
    """
    import numpy as np
    import pandas as pd
    import torch
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    torch.set_num_threads(1)
    start_mb, started = memory(), time.perf_counter()
    frame = pd.read_parquet(spec["panel"])
    ids = frame["unique_id"]
    begin = np.flatnonzero((ids != ids.shift()).to_numpy(bool))
    static = [frame.iloc[begin][name].astype("category").cat.codes.to_numpy() for name in ("unique_id", *spec["static"])]
    target, known = frame["y"].to_numpy("float32"), frame[spec["known"]].to_numpy("float32").T
    each = zip(begin, np.append(begin[1:], len(frame)), frame["ds"].iloc[begin], *static, strict=True)
    entries = [
        {
            "start": pd.Period(start, freq="D"), "target": target[a:b], "feat_static_cat": categories,
            "feat_dynamic_real": known[:, a:b],
        }
        for a, b, start, *categories in each
    ]  # fmt: skip
    data = ListDataset(entries, freq="D")
    estimator = DeepAREstimator(
        freq="D", prediction_length=spec["horizon"], context_length=spec["context"], lags_seq=[1],
        num_feat_dynamic_real=len(known), num_feat_static_cat=len(static),
        cardinality=[int(codes.max()) + 1 for codes in static], batch_size=spec["batch_size"],
        num_batches_per_epoch=spec["batches"],
    )  # fmt: skip
    built = time.perf_counter()
    transformed = estimator.create_transformation().apply(data, is_train=True)
    loader = estimator.create_training_data_loader(transformed, estimator.create_lightning_module())
    windows = sum(len(batch["future_target"]) for batch in loader)
    ended = time.perf_counter()
    return {
        "seconds": ended - started, "build_s": built - started, "load_s": ended - built, "windows": windows,
        "start_mb": start_mb, "peak_mb": memory(),
    }  # fmt: skip


PEERS = {"neuralforecast": neuralforecast, "gluonts": gluonts}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    name, path = sys.argv[1:]
    print(FINISHED + json.dumps(PEERS[name](json.loads(Path(path).read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
