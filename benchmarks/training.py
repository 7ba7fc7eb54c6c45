"""Training speed and WaveNet's sampling speed beside NeuralForecast, GluonTS and pytorch-forecasting.

``python -m benchmarks.training --json t.json`` trains equal networks on equal windows for some seconds each, one thread
a process, and takes turns: every measure once a round, only one at a time. pytorch-forecasting and we share an
interpreter, NeuralForecast and GluonTS have their own (``make peers``).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from benchmarks.loader import CONTEXT, HORIZON, KNOWN, PAST, STEPS, synthetic_frame
from benchmarks.peer_training import Spec, seconds_of, serve, windows_per_second
from models.predictive import LEVELS
from tasks.errors import UserError
from tasks.files import write_json
from tasks.train import KEEP_MEMORY

Measure = Callable[[str], Any]
"""Takes the named measure in another process and returns its value."""

SERIES, BATCH_SIZE = 100, 128
SIZES: dict[str, dict[str, int]] = {
    "deepar": {"hidden_size": 64, "layers": 2},
    "tft": {"hidden_size": 32, "attention_heads": 4, "hidden_continuous_size": 8},
    "tcn": {"width": 48, "levels": 5, "kernel_size": 3},
    "wavenet": {"width": 32, "levels": 7, "stacks": 1, "bins": 64, "paths": 100},
}
CONTESTS = {
    "deepar": ("weatherglass", "neuralforecast", "gluonts", "pytorch_forecasting"),
    "tft": ("weatherglass", "neuralforecast", "gluonts", "pytorch_forecasting"),
    "tcn": ("weatherglass", "neuralforecast"),
    "wavenet": ("weatherglass", "gluonts"),
}
PROGRAM = Path(__file__).with_name("peer_training.py").resolve()
HERE = ("weatherglass", "pytorch_forecasting")
GOALS = {"deepar_ratio": 2.0, "tft_ratio": 2.0, "tcn_ratio": 1.5, "wavenet_sampling_ratio": 20.0}
ASIDE = {
    "neuralforecast": ("neuralforecast_deepar_one_step", "neuralforecast_tcn_shallow"),
    "gluonts": ("gluonts_wavenet_defaults",),
}
NOTES = (
    "Seconds are processor time of the measuring process, which has one thread: those of the clock on an idle machine.",
    f"Data: {SERIES} synthetic series of {STEPS} hours, 3 covariates known for the future; batches of {BATCH_SIZE} windows "
    f"drawn at random, context {CONTEXT}, horizon {HORIZON}. The series id is a static category, but for NeuralForecast, "
    "which gets none and so has less to do.",
    "Windows a second: each library's own loader and training loop (Lightning) with its own optimiser, after 3 steps of "
    "warm-up; no validation, no checkpoints. The same malloc settings for all.",
    "DeepAR: LSTM of 2 x 64, normal likelihood, the loss over the whole horizon. neuralforecast_deepar_one_step is its "
    "default h_train=1, which learns from one step a window; it does not enter deepar_ratio.",
    "TFT: width 32, 4 heads, one LSTM layer, the same 23 quantiles.",
    "TCN: width 48, kernel 3, 10 convolutions with dilations 1, 1, 2, 2, ... 16, 16 (five residual blocks of two), the same "
    "23 quantiles. neuralforecast_tcn_shallow has one convolution a dilation, hence half the work and half the view; it "
    "does not enter tcn_ratio.",
    "NeuralForecast's batches draw windows from one series (batch_size=1), its fastest setting: at its default of 32 "
    "series it copies all of their windows for each step and trains up to 1.8 times slower. GluonTS caches its "
    "transformed series.",
    "WaveNet: untrained networks of width 32, dilations 1 to 64 and 64 bins sample 100 paths of 48 steps for each of 100 "
    "series, from series to paths. gluonts_wavenet_defaults has GluonTS's documented sizes (1024 bins, width 24, skips "
    "32, the same dilations); wavenet_sampling_ratio_defaults is its time over ours with our defaults, the sizes above.",
    "A ratio is ours over the best peer's windows a second, and for sampling the best peer's time over ours.",
)


def our_member(family: str, spec: Spec, frame: Any) -> Any:
    """A member of ``family`` as `tasks.member` trains it, on all windows of ``frame``."""
    from models.forecasters.factory import build_forecaster
    from tasks.descent import MemberModule
    from tasks.encoding import Encoding
    from tasks.member import MemberSpec
    from tasks.params import Params
    from tasks.prepare import Prepared
    from tasks.settings import derive_settings

    rows = frame.groupby("unique_id", sort=True).size().tolist()
    config = {**spec[family], "batch_size": spec["batch_size"]}
    params = Params.model_validate({
        "data": {"frequency": 1, "horizon": spec["horizon"], "known_future": spec["known"]},
        "features": {"context": spec["context"], "season_length": 24, "lags": [], "calendar": False},
        "train": {"batches_per_epoch": 10**6}, "families": [family], "forecasters": {family: config},
    })  # fmt: skip
    encoding = Encoding.fit(frame, params, derive_settings(params, rows), train=frame["y"].notna().to_numpy())
    panel = encoding.panel(frame)
    last = panel.observed.numpy() - spec["horizon"]
    windows = panel.window_grid(last * 0 + spec["context"], last, stride=1, minimum=spec["context"])
    times = frame["ds"].to_numpy()
    prepared = Prepared(panel, encoding, frame["unique_id"].unique(), times, {"train": windows}, {})
    torch.manual_seed(1)
    member = MemberSpec(Path(), params, family, 0, Path())
    return MemberModule(build_forecaster(family, panel.schema, member.config), member, prepared)


def train_ours(family: str, spec: Spec, frame: Any) -> float:
    """Windows a second of our training of ``family``."""
    import lightning as L

    module = our_member(family, spec, frame)
    clip = module.spec.params.train.gradient_clip
    return windows_per_second(
        lambda options: L.Trainer(**options, gradient_clip_val=clip, enable_checkpointing=False, limit_val_batches=0).fit(
            module
        ),
        spec["batch_size"],
        spec["seconds"],
    )


def sample_ours(spec: Spec, frame: Any) -> float:
    """Seconds in which our WaveNet, untrained, samples the paths of every series' last window."""
    from models.panel import Windows

    module = our_member("wavenet", spec, frame)
    panel, forecaster, paths = module._prepared.panel, module.forecaster.eval(), spec["wavenet"]["paths"]
    windows = Windows(torch.arange(panel.n_series), panel.observed - spec["horizon"])
    drawn = []
    taken = seconds_of(lambda: drawn.append(forecaster.sample_paths(panel.gather(windows), paths)[0]))
    assert drawn[0].shape == (panel.n_series, paths, spec["horizon"])
    return taken


def train_pytorch_forecasting(network: str, spec: Spec, frame: Any) -> float:
    """Windows a second of pytorch-forecasting's DeepAR or TFT, its target normalised per series, its faster setting."""
    import lightning as L
    from pytorch_forecasting import DeepAR, TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.data import GroupNormalizer
    from pytorch_forecasting.metrics import NormalDistributionLoss, QuantileLoss

    data = TimeSeriesDataSet(
        frame, time_idx="ds", target="y", group_ids=["unique_id"], max_encoder_length=spec["context"],
        max_prediction_length=spec["horizon"], static_categoricals=["unique_id"],
        time_varying_known_reals=list(spec["known"]), time_varying_unknown_reals=["y"],
        target_normalizer=GroupNormalizer(groups=["unique_id"]),
    )  # fmt: skip
    sizes = spec[network]
    if network == "tft":
        width = {"hidden_size": sizes["hidden_size"], "hidden_continuous_size": sizes["hidden_continuous_size"]}
        model = TemporalFusionTransformer.from_dataset(
            data, **width, attention_head_size=sizes["attention_heads"], loss=QuantileLoss(list(spec["levels"])),
            output_size=len(spec["levels"]), optimizer="adam",
        )  # fmt: skip
    else:
        model = DeepAR.from_dataset(
            data, hidden_size=sizes["hidden_size"], rnn_layers=sizes["layers"], loss=NormalDistributionLoss(), optimizer="adam"
        )
    batches = data.to_dataloader(train=True, batch_size=spec["batch_size"], num_workers=0)
    return windows_per_second(
        lambda options: L.Trainer(**options, max_epochs=10**6, gradient_clip_val=0.1, enable_checkpointing=False).fit(
            model, batches
        ),
        spec["batch_size"],
        spec["seconds"],
    )


def measures_here(spec: Spec) -> dict[str, Callable[[], float]]:
    """What our own interpreter can be asked for, by name."""
    import pandas as pd

    frame = pd.read_parquet(spec["panel"])
    measures: dict[str, Callable[[], float]] = {"weatherglass_wavenet": partial(sample_ours, spec, frame)}
    for network in ("deepar", "tft", "tcn"):
        measures[f"weatherglass_{network}"] = partial(train_ours, network, spec, frame)
    for network in ("deepar", "tft"):
        measures[f"pytorch_forecasting_{network}"] = partial(train_pytorch_forecasting, network, spec, frame)
    return measures


def serve_here(spec: Spec, connection: Any) -> None:
    """The process that takes `measures_here`, until an empty name."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    one_thread()
    serve(measures_here(spec), iter(connection.recv, ""), connection.send)


@contextmanager
def worker_here(spec: Spec) -> Iterator[Measure]:
    """A process of our own interpreter that takes the measures it is asked for."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_here, args=(spec, theirs), daemon=True)
    process.start()
    theirs.close()

    def measure(name: str) -> Any:
        ours.send(name)
        return ours.recv()

    try:
        yield measure
        ours.send("")
        process.join()
    finally:
        process.terminate()


@contextmanager
def worker_of_peers(spec: Spec, interpreter: Path, folder: Path, program: Path = PROGRAM) -> Iterator[Measure]:
    """A process of the peers' interpreter that takes the measures of `benchmarks.peer_training`.

    ``measure`` raises RuntimeError where the process has ended.
    """
    write_json(folder / "spec.json", spec)
    command = [str(interpreter.absolute()), "-P", str(program), str(folder / "spec.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdin is not None and process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def measure(name: str) -> Any:
            print(name, file=questions, flush=True)
            answer = answers.readline()
            if not answer:
                raise RuntimeError(f"the peers' process ended while measuring {name}; its reason stands above")
            return json.loads(answer)

        try:
            yield measure
        finally:
            questions.close()


def contestants(peers: Mapping[str, bool]) -> list[str]:
    """Names of all measures, ``<library>_<network>``, of us and of the libraries that ``peers`` says are there."""
    names = [f"{side}_{network}" for network, sides in CONTESTS.items() for side in sides if peers.get(side, True)]
    return names + [name for side, aside in ASIDE.items() if peers.get(side, True) for name in aside]


def ratios(values: Mapping[str, float]) -> dict[str, float]:
    """Ours over the best peer for each network of `CONTESTS` that has a peer among ``values``; above 1 ours is faster."""
    result = {}
    for network, (ours, *peers) in CONTESTS.items():
        own = values[f"{ours}_{network}"]
        theirs = [values[name] for peer in peers if (name := f"{peer}_{network}") in values]
        if theirs and network == "wavenet":
            result["wavenet_sampling_ratio"] = min(theirs) / own
        elif theirs:
            result[f"{network}_ratio"] = own / max(theirs)
    if "gluonts_wavenet_defaults" in values:
        result["wavenet_sampling_ratio_defaults"] = values["gluonts_wavenet_defaults"] / values["weatherglass_wavenet"]
    return result


def specification(folder: Path, series: int, seconds: float, sizes: Mapping[str, Mapping[str, int]] = SIZES) -> Spec:
    """Write the panel to ``folder`` and return what every process must know, ready for JSON."""
    frame = synthetic_frame(series * STEPS).drop(columns=list(PAST))
    frame.to_parquet(folder / "panel.parquet", index=False)
    return {
        "panel": str(folder / "panel.parquet"), "levels": list(LEVELS), "horizon": HORIZON, "context": CONTEXT,
        "known": list(KNOWN), "batch_size": BATCH_SIZE, "seconds": seconds, **{name: dict(of) for name, of in sizes.items()},
    }  # fmt: skip


def summary(result: Mapping[str, Any]) -> str:
    rows = []
    for key in (name for name in result if name.startswith(("windows_per_s_", "sampling_s_"))):
        unit, name = ("windows/s", key[14:]) if key.startswith("windows") else ("s, 100 series x 100 paths", key[11:])
        rows.append((name, f"{result[key]:,.2f}" if unit[0] == "s" else f"{result[key]:,.0f}", unit))
    rows += [(key, f"{result[key]:.2f}", f"goal {goal:g}") for key, goal in GOALS.items() if key in result]
    return table(("", "median", ""), rows)


def main(arguments: list[str] | None = None) -> None:
    options = parser("Training and sampling speed beside NeuralForecast, GluonTS and pytorch-forecasting.")
    options.add_argument("--rounds", type=at_least(1), default=3, help="times that each side is measured")
    options.add_argument("--seconds", type=at_least(0.01, float), default=2.0, help="length of a training measure")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has the peers")
    options.add_argument("--no-peers", action="store_true", help="pytorch-forecasting alone, which we carry ourselves")
    given = options.parse_args(arguments)
    if not given.no_peers and not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first or give --no-peers.")
    os.environ.update(KEEP_MEMORY, OMP_NUM_THREADS="1")
    one_thread()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        spec = specification(Path(name), SERIES, given.seconds)
        here = stack.enter_context(worker_here(spec))
        there = here if given.no_peers else stack.enter_context(worker_of_peers(spec, given.peers, Path(name)))
        names = contestants(dict.fromkeys(("neuralforecast", "gluonts"), not given.no_peers))
        workers = {name: here if name.startswith(HERE) else there for name in names}
        values = alternating({name: partial(workers[name], name) for name in names}, given.rounds)
    kinds = {name: "sampling_s" if "wavenet" in name else "windows_per_s" for name in names}
    result = {
        **ratios(values), **{f"{kinds[name]}_{name}": value for name, value in values.items()}, "goals": GOALS,
        "sizes": SIZES, "rounds": given.rounds, "seconds": given.seconds, "machine": machine(),
        "versions": versions(["torch", "lightning", "pytorch-forecasting"]), "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"training: {error}", file=sys.stderr)
        raise SystemExit(2) from None
