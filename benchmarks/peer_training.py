"""What the peers do in `benchmarks.training` and `benchmarks.scan`, run by an interpreter that has them (`make peers`).

    python benchmarks/peer_training.py SPEC.json

Reads names of measures from stdin, one a line, takes each and answers with its value as a line of JSON, so that the
other side can take turns with it. Times are the process's own processor time, which with one thread is that of the clock
on an idle machine, and does not count what others do on a busy one. Knows nothing of Weatherglass.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

Spec = dict[str, Any]
WARM_UP = 3
"""Steps before the clock starts: buffers are allocated, kernels chosen and caches of the data filled."""


class Enough(Exception):
    """The clock has seen enough steps, at the rate that this holds; ends a training run, whoever wrote its loop."""


def windows_per_second(fit: Callable[[dict[str, Any]], object], batch_size: int, seconds: float) -> float:
    """Windows a second that ``fit(options of Lightning's Trainer)`` trains: loader, network and optimiser together.

    ``fit`` must train in batches of ``batch_size`` and have at least ``seconds`` to go.
    """
    from lightning.pytorch import Callback

    class Clock(Callback):
        started, steps = 0.0, 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps += 1
            now = time.process_time()
            if self.steps == WARM_UP:
                self.started = now
            elif self.steps > WARM_UP and now - self.started >= seconds:
                raise Enough((self.steps - WARM_UP) / (now - self.started))

    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit({"callbacks": [Clock()], "accelerator": "cpu", "default_root_dir": folder, **quiet})
        except Enough as enough:
            return float(enough.args[0]) * batch_size
    raise RuntimeError(f"training ended before its {seconds} s were over")


def serve(measures: dict[str, Callable[[], Any]], names: Iterable[str], answer: Callable[[Any], None]) -> None:
    """Take the named measures in the order in which they are asked for."""
    for name in names:
        answer(measures[name.strip()]())


def neuralforecast(network: str, spec: Spec) -> float:
    """Windows a second of NeuralForecast's DeepAR, TFT or TCN; a batch draws its windows from one series, the fastest."""
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import DistributionLoss, MQLoss
    from neuralforecast.models import TCN, TFT, DeepAR

    tcn, width = spec["tcn"], spec["tcn"]["width"]
    quantiles = {"loss": MQLoss(quantiles=spec["levels"])}
    of_tcn = {"kernel_size": tcn["kernel_size"], "encoder_hidden_size": width, "decoder_hidden_size": width}
    kind, sizes = {
        "deepar": (DeepAR, {
            "loss": DistributionLoss("Normal", return_params=False),
            "lstm_n_layers": spec["deepar"]["layers"], "lstm_hidden_size": spec["deepar"]["hidden_size"],
            "h_train": spec["horizon"] if network == "deepar" else 1,
        }),
        "tft": (TFT, {"hidden_size": spec["tft"]["hidden_size"], "n_head": spec["tft"]["attention_heads"], **quantiles}),
        "tcn": (TCN, {"dilations": [2**i for i in range(tcn["levels"]) for _ in range(2)], **of_tcn, **quantiles}),
        "tcn_shallow": (TCN, {"dilations": [2**i for i in range(tcn["levels"])], **of_tcn, **quantiles}),
    }[network.removesuffix("_one_step")]  # fmt: skip
    frame = pd.read_parquet(spec["panel"])

    def fit(options: dict[str, Any]) -> None:
        model = kind(
            h=spec["horizon"], input_size=spec["context"], futr_exog_list=spec["known"], scaler_type="standard",
            windows_batch_size=spec["batch_size"], batch_size=1, max_steps=10**6, enable_checkpointing=False,
            **sizes, **options,
        )  # fmt: skip
        NeuralForecast(models=[model], freq=1).fit(frame, val_size=0)

    return windows_per_second(fit, spec["batch_size"], spec["seconds"])


def series_of(spec: Spec, known: int) -> list[dict[str, Any]]:
    """GluonTS's entries: the target, the series' number and ``known`` steps of covariates beyond the target's end."""
    import pandas as pd

    start, reals = pd.Period("2000-01-01", freq="h"), spec["known"]
    groups = [group for _, group in pd.read_parquet(spec["panel"]).groupby("unique_id", sort=True)]
    return [
        {
            "start": start, "target": group["y"].to_numpy("float32")[: len(group) - known], "feat_static_cat": [index],
            "feat_dynamic_real": group[reals].to_numpy("float32").T,
        }
        for index, group in enumerate(groups)
    ]  # fmt: skip


def gluonts(network: str, spec: Spec) -> float:
    """Windows a second of GluonTS's DeepAR or TFT, its transformed series cached; no time features, no lags but 1."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator, TemporalFusionTransformerEstimator
    from gluonts.torch.distributions import NormalOutput

    entries, reals = series_of(spec, known=0), len(spec["known"])
    if network == "tft":
        kind, sizes = TemporalFusionTransformerEstimator, {
            "hidden_dim": spec["tft"]["hidden_size"], "num_heads": spec["tft"]["attention_heads"],
            "variable_dim": spec["tft"]["hidden_continuous_size"], "quantiles": spec["levels"],
            "static_cardinalities": [len(entries)], "dynamic_dims": [1] * reals,
        }  # fmt: skip
    else:
        kind, sizes = DeepAREstimator, {
            "hidden_size": spec["deepar"]["hidden_size"], "num_layers": spec["deepar"]["layers"], "lags_seq": [1],
            "num_feat_static_cat": 1, "cardinality": [len(entries)], "num_feat_dynamic_real": reals,
            "distr_output": NormalOutput(),
        }  # fmt: skip

    def fit(options: dict[str, Any]) -> None:
        estimator = kind(
            freq="h", prediction_length=spec["horizon"], context_length=spec["context"], time_features=[],
            batch_size=spec["batch_size"], num_batches_per_epoch=10**6, trainer_kwargs=options, **sizes,
        )  # fmt: skip
        estimator.train(ListDataset(entries, freq="h"), cache_data=True)

    return windows_per_second(fit, spec["batch_size"], spec["seconds"])


def gluonts_wavenet(spec: Spec, defaults: bool = False) -> float:
    """Seconds in which an untrained WaveNet of GluonTS samples all series' paths over the horizon.

    With ``defaults``, of its documented sizes and not those of ``spec``.
    """
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import WaveNetEstimator

    given, entries = spec["wavenet"], series_of(spec, known=spec["horizon"])
    sizes = {} if defaults else {
        "num_bins": given["bins"], "num_residual_channels": given["width"], "num_skip_channels": given["width"],
        "dilation_depth": given["levels"], "num_stacks": given["stacks"], "time_features": [],
    }  # fmt: skip
    estimator = WaveNetEstimator(
        freq="h", prediction_length=spec["horizon"], num_feat_dynamic_real=len(spec["known"]), num_feat_static_cat=1,
        cardinality=[len(entries)], num_parallel_samples=given["paths"], **sizes,
    )  # fmt: skip
    module = estimator.create_lightning_module().eval()
    predictor = estimator.create_predictor(estimator.create_transformation(), module)
    started = time.process_time()
    forecasts = list(predictor.predict(ListDataset(entries, freq="h")))
    taken = time.process_time() - started
    assert len(forecasts) == len(entries) and forecasts[0].samples.shape == (given["paths"], spec["horizon"])
    return taken


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that ``work`` held at once on the CPU, by torch's own account of its allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def scan_arguments(batch: int, time_steps: int, channels: int, states: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Leaves (u, delta, A, B, C, D) of a selective scan, the same in every process."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    step = torch.nn.functional.softplus(normal(batch, time_steps, channels) - 3.0)
    A = -torch.arange(1.0, states + 1.0, dtype=torch.float64).repeat(channels, 1)
    inputs = [normal(batch, time_steps, channels), step, A]
    inputs += [normal(batch, time_steps, states), normal(batch, time_steps, states), normal(channels)]
    return [values.to(dtype).requires_grad_() for values in inputs]


def forward_backward(scan: Callable[..., torch.Tensor], arguments: list[torch.Tensor]) -> Callable[[], None]:
    """One pass of ``scan`` forward and backward to all its arguments."""

    def work() -> None:
        output = scan(*arguments)
        torch.autograd.grad(output, arguments, torch.ones_like(output))

    return work


def seconds_of(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def mambapy_scan(spec: Spec, steps: int, measure: Callable[[Callable[[], None]], Any]) -> Any:
    """``measure`` of mambapy's selective scan by its parallel scan, forward and backward."""
    from mambapy.mamba import MambaBlock

    arguments = scan_arguments(spec["batch"], steps, spec["channels"], spec["states"], torch.float32)
    return measure(forward_backward(lambda *inputs: MambaBlock.selective_scan(None, *inputs), arguments))


def measures_of(spec: Spec) -> dict[str, Callable[[], Any]]:
    """All that can be asked for, by name."""
    measures: dict[str, Callable[[], Any]] = {"gluonts_wavenet": partial(gluonts_wavenet, spec)}
    measures["gluonts_wavenet_defaults"] = partial(gluonts_wavenet, spec, defaults=True)
    for network in ("deepar", "deepar_one_step", "tft", "tcn", "tcn_shallow"):
        measures[f"neuralforecast_{network}"] = partial(neuralforecast, network, spec)
    for network in ("deepar", "tft"):
        measures[f"gluonts_{network}"] = partial(gluonts, network, spec)
    for steps in spec.get("lengths", ()):
        measures[f"seconds_{steps}"] = partial(mambapy_scan, spec, steps, seconds_of)
        measures[f"bytes_{steps}"] = partial(mambapy_scan, spec, steps, peak_bytes)
    return measures


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peers print goes to stderr, so that stdout holds answers alone
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    serve(measures_of(spec), sys.stdin, lambda value: print(json.dumps(value), file=answers, flush=True))


if __name__ == "__main__":
    main()
