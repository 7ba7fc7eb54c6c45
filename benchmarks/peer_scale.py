"""NeuralForecast's dataset and loader in `benchmarks.scale`, run by an interpreter that has it (`make peers`).

    python benchmarks/peer_scale.py SPEC.json

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


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(FINISHED + json.dumps(neuralforecast(spec)))


if __name__ == "__main__":
    main()
