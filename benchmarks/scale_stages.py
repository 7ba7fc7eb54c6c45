"""One stage of the path in this process, with its seconds and the most memory it held, for `benchmarks.scale`.

    python -m benchmarks.scale_stages STAGE SPEC.json

The clock starts when all is imported. The last line that it prints is its figures as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peer_scale import FINISHED, memory
from benchmarks.scale_data import KNOWN, PAST, STATIC, group_of

if TYPE_CHECKING:
    from tasks.member import MemberSpec
    from tasks.params import Params

Spec = dict[str, Any]
Work = Callable[[], Any]


def parameters(spec: Spec) -> Params:
    """Parameters of a run on the panel of `benchmarks.scale_data`: one network of one family, no baselines."""
    from tasks.params import Params

    columns = {"known_future": KNOWN, "past_only": PAST, "static": STATIC}
    tree = {
        "data": {"source": "file", "path": spec["panel"], "frequency": "D", "horizon": spec["horizon"], **columns},
        "features": {"context": spec["context"]},
        "families": [spec["family"]],
        "forecasters": {spec["family"]: {"max_epochs": 1, "batch_size": spec["batch_size"]}},
        "train": {"members": 1, "batches_per_epoch": spec["batches"], "accelerator": "cpu", **spec.get("train", {})},
        "baselines": {"models": []},
    }
    return Params.model_validate(tree)


def _member(spec: Spec) -> MemberSpec:
    from tasks.member import MemberSpec

    folder = Path(spec["root"]) / "member_0"
    folder.mkdir(exist_ok=True)
    return MemberSpec(Path(spec["root"]), parameters(spec), spec["family"], 0, folder)


def _drained(batches: Iterable[Any], count: int) -> int:
    """Windows of the first ``count`` batches, starting over where there are fewer."""
    served = windows = 0
    while served < count:
        before = served
        for batch in islice(batches, count - served):
            served, windows = served + 1, windows + _size(batch)
        if served == before:
            raise RuntimeError("the loader has no batch")
    return windows


def _size(batch: Any) -> int:
    inputs = batch[0] if isinstance(batch, tuple) else batch  # pytorch-forecasting's batches are (inputs, targets)
    return len(inputs["encoder_lengths"])


def ingest(spec: Spec) -> Work:
    """The file read, checked and written as a sorted, regular panel."""
    import pandera.pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from tasks.ingest import ingest

    return lambda: ingest(parameters(spec), Path(spec["root"]))


def prepare(spec: Spec) -> Work:
    """Columns encoded, folds laid, mapped arrays written."""
    from tasks.prepare import prepare

    return lambda: prepare(parameters(spec), Path(spec["root"]))


def load(spec: Spec) -> Work:
    """The mapped panel opened and an epoch of ``batches`` batches drawn at random."""
    from models.panel import WindowLoader
    from tasks.prepare import load_prepared

    def work() -> int:
        prepared = load_prepared(Path(spec["root"]))
        train = prepared.fold("train", "fit networks")
        return _drained(WindowLoader(prepared.panel, train, spec["batch_size"], spec["batches"], seed=1), spec["batches"])

    return work


def train(spec: Spec) -> Work:
    """A network trained for ``batches`` steps, with the one look at the early-stopping fold that ends an epoch."""
    import tasks.descent  # noqa: F401
    from tasks.member import train_member

    return lambda: train_member(_member(spec))


def predict(spec: Spec) -> Work:
    """The network's forecasts of every fold after training, and features of a sample of training windows."""
    import tasks.member
    import tasks.predict  # noqa: F401
    from tasks.files import atomic_dir
    from tasks.train import TRAINED, complete_member, gather_members

    def work() -> None:
        member = _member(spec)
        complete_member(member, lambda epoch, loss: None)
        with atomic_dir(member.root / TRAINED / member.family) as folder:
            gather_members(member.params, member.root, folder)

    return work


def pool(spec: Spec) -> Work:
    """Members weighed and pooled."""
    from tasks.ensemble import make_ensemble

    return lambda: make_ensemble(parameters(spec), Path(spec["root"]))


def calibrate(spec: Spec) -> Work:
    """Temperature, conformal intervals, the gate for strange input and abstention."""
    import safetensors.torch  # noqa: F401

    import tasks.member  # noqa: F401
    from tasks.calibrate import calibrate

    return lambda: calibrate(parameters(spec), Path(spec["root"]))


def evaluate(spec: Spec) -> Work:
    """Metrics of the test fold and the evidence behind the report."""
    import torchmetrics.functional.classification  # noqa: F401

    import tasks.member
    import tasks.predict  # noqa: F401
    from tasks.evaluate import evaluate

    return lambda: evaluate(parameters(spec), Path(spec["root"]))


def bundle(spec: Spec) -> Work:
    """The bundle that is registered, and the figures that monitoring holds live ones against."""
    import safetensors.torch  # noqa: F401

    from tasks.bundle import write_bundle

    return lambda: write_bundle(parameters(spec), Path(spec["root"]))


def forecast(spec: Spec) -> Work:
    """The bundle loaded, and its forecasts of every series of an ingested panel written as `weatherglass forecast` does."""
    import safetensors.torch  # noqa: F401

    from tasks.bundle import Bundle
    from tasks.forecast import PANEL, forecast_file, forecast_panel

    root = Path(spec["root"])

    def work() -> dict[str, int]:
        champion, series = Bundle.load(root / "artifacts/bundle"), 0
        with forecast_file(root / "forecast.parquet") as add:
            for table in forecast_panel(champion, Path(spec["forecast"] or root / PANEL), cutoff=spec["cutoff"]):
                add(table)
                series += len(table) // spec["horizon"]
        return {"series": series}

    return work


STAGES: dict[str, Callable[[Spec], Work]] = {
    stage.__name__: stage for stage in (ingest, prepare, load, train, predict, pool, calibrate, evaluate, bundle, forecast)
}
"""The path, in order."""


def pytorch_forecasting(spec: Spec) -> Work:
    """pytorch-forecasting's dataset built from the same file, with the same columns, and as many batches drawn from it."""
    import pandas as pd
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data import GroupNormalizer

    def build(frame: pd.DataFrame) -> TimeSeriesDataSet:
        frame["ds"] = (frame["ds"] - frame["ds"].min()).dt.days
        return TimeSeriesDataSet(
            frame, time_idx="ds", target="y", group_ids=["unique_id"], max_encoder_length=spec["context"],
            max_prediction_length=spec["horizon"], static_categoricals=["unique_id", *STATIC],
            time_varying_known_reals=list(KNOWN), time_varying_unknown_reals=["y", *PAST],
            target_normalizer=GroupNormalizer(groups=["unique_id"]),
        )  # fmt: skip

    def work() -> dict[str, float]:
        started = time.perf_counter()
        data = build(pd.read_parquet(spec["panel"]))
        built = time.perf_counter()
        windows = _drained(data.to_dataloader(train=True, batch_size=spec["batch_size"], num_workers=0), spec["batches"])
        return {"build_s": built - started, "load_s": time.perf_counter() - built, "windows": windows}

    build(group_of(0, 2, 2 * (spec["context"] + spec["horizon"]), seed=1).to_pandas())  # compiles its numba function
    return work


def main() -> None:
    name, path = sys.argv[1:]
    warnings.filterwarnings("ignore")
    for logger in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from benchmarks.common import one_thread

    one_thread()
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    work = {**STAGES, "pytorch_forecasting": pytorch_forecasting}[name](spec)
    start_mb, started = memory(), time.perf_counter()
    found = work()
    parts = found if isinstance(found, dict) else {}
    figures = {"seconds": time.perf_counter() - started, "start_mb": start_mb, "peak_mb": memory(), **parts}
    print(FINISHED + json.dumps(figures))


if __name__ == "__main__":
    main()
