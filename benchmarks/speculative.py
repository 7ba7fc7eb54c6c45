"""Speculative decoding against compiled ancestral sampling, for a large target and a draft that is distilled on the spot.

``python -m benchmarks.speculative --json sp.json`` trains a target of 8 layers and width 256 on predictable series, distils
its draft, and samples 1, 8 and 100 paths with both, compiled where `torch.compile` works.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from models.calendar import Calendar
from models.decoding.speculative import ancestral_paths
from models.decoding.streams import Streams
from models.forecasters import config as configs
from models.forecasters.autoregressive import Autoregressive
from models.forecasters.binned_paths import BinnedPaths, can_compile, values_in_bins
from models.forecasters.drafts import build_draft, distillation_loss, warm_cosine
from models.forecasters.factory import build_forecaster
from models.forecasters.sampler import PathSampler
from models.panel import Batch, Panel, PanelSchema, WindowLoader, Windows

CONTEXT, HORIZON, SEASON = 72, 48, 24
SERIES, LENGTH = 16, 1200
FAMILIES = ("mamba2", "hybrid", "mamba", "s4d", "wavenet", "tcn", "deepar")
GOALS = {"speed_up_1": 1.5, "speed_up_worst": 0.95}
NOTES = (
    "speed_up is the time of compiled ancestral sampling over that of the speculative sampler, which samples ancestrally, "
    "with the same compiled steps, where its planner predicts a gain below 1.1. Processor time of one thread, medians of "
    "alternating runs; reading the history and the planner's own measurements, once for a number of paths, are not in it.",
    "tokens_per_call and acceptance are those of a run with the planned length, of the planner's trial where it is off.",
    f"Series: a season of {SEASON} steps, a level and autoregressive noise; {CONTEXT} steps of history, {HORIZON} sampled; "
    "64 bins.",
)


def build_panel(seed: int = 1) -> Panel:
    """Series of a season, a level and a little autoregressive noise, as predictable as an hourly load."""
    schema = PanelSchema((), (), (("series", SERIES + 1),), (), (HORIZON,), CONTEXT, HORIZON, SEASON)
    rng = np.random.default_rng(seed)
    step, rows = np.arange(LENGTH + HORIZON), []
    for number in range(SERIES):
        noise, level = np.zeros(len(step)), 0.0
        for at, shock in enumerate(rng.normal(0.0, 0.3, len(step))):
            level = 0.8 * level + shock
            noise[at] = level
        rows.append(10.0 * (number + 1) + 4.0 * np.sin(2 * np.pi * (step + number) / SEASON) + noise)
    target = np.concatenate(rows).astype(np.float32)[:, None]
    lengths = torch.full((SERIES,), LENGTH)
    offsets = torch.arange(SERIES + 1) * len(step)
    calendar = Calendar.none(offsets)
    return Panel(schema, torch.from_numpy(target), calendar, torch.arange(1, SERIES + 1)[:, None], offsets, lengths)


def target_config(family: str, width: int, layers: int) -> Any:
    """A family's configuration with paths of bins, ``layers`` layers of ``width``."""
    common: dict[str, Any] = {"dropout": 0.0}
    if family == "deepar":
        return configs.DeepARConfig(hidden_size=width, layers=layers, head="categorical", **common)
    if family == "wavenet":
        return configs.WaveNetConfig(width=width, levels=layers, **common)
    if family == "tcn":
        return configs.TCNConfig(width=width, levels=layers, decoding="paths", **common)
    kinds = {"s4d": configs.S4DConfig, "mamba": configs.MambaConfig, "mamba2": configs.Mamba2Config}
    if family == "hybrid":
        return configs.HybridConfig(width=width, layers=layers, window=128, decoding="paths", **common)
    return kinds[family](width=width, layers=layers, decoding="paths", **common)


def train(model: Autoregressive, panel: Panel, steps: int, rate: float, teacher: Autoregressive | None = None) -> float:
    """Train a model on random windows, by the data or by a teacher; returns its last loss."""
    first = panel.schema.reference
    windows = panel.window_grid(np.full(SERIES, first), np.full(SERIES, LENGTH - HORIZON), 1, first)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, steps=steps))
    loss = torch.zeros(())
    model.train()
    for batch in WindowLoader(panel, windows, 8 if teacher is None else 16, steps, 1):
        loss = model.loss(batch) if teacher is None else distillation_loss(teacher, model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())


def compare(
    target: Autoregressive, draft: Autoregressive, batch: Batch, paths: int, options: Mapping[str, Any]
) -> dict[str, float]:
    """Both samplers' times for ``paths`` paths of one window, and what the speculative one did."""
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    sampler = PathSampler(target, "speculative", draft, compiled=options["compiled"], lengths=options["lengths"])
    keys, runs = torch.arange(paths), []
    with torch.no_grad():
        for seed in range(options["rounds"] + 1):
            streams = Streams(seed, keys, HORIZON)
            values = values_in_bins(target, batch, paths, streams)
            runs.append((BinnedPaths(sampler.target, batch, paths, values), values, streams))
        turns = {"ancestral": itertools.cycle(runs), "speculative": itertools.cycle(runs)}

        def ancestral() -> float:
            model, _, streams = next(turns["ancestral"])
            begun = time.process_time()
            ancestral_paths(model, streams)
            return time.process_time() - begun

        def speculative() -> float:
            model, values, streams = next(turns["speculative"])
            begun = time.process_time()
            sampler.tokens(model, batch, paths, values, streams)
            return time.process_time() - begun

        ancestral()
        speculative()  # plans, and compiles what is left to compile
        taken = alternating({"ancestral": ancestral, "speculative": speculative}, options["rounds"])
    record = sampler.records[paths]
    plan = record.plan
    assert plan is not None
    tally = record.tally if record.tally.turns else plan.tally
    return {
        "speed_up": taken["ancestral"] / taken["speculative"],
        "predicted_gain": plan.gain,
        "length": float(plan.length),
        "acceptance": tally.acceptance_rate,
        "tokens_per_call": tally.tokens_per_call,
        "cost_ratio": plan.figures()["cost_ratio"],
        "verify_cost": plan.figures()["verify_cost"],
        "ancestral_ms": 1e3 * taken["ancestral"],
        "speculative_ms": 1e3 * taken["speculative"],
    }


def summary(result: Mapping[str, Any], counts: Sequence[int]) -> str:
    keys = (
        "speed_up",
        "predicted_gain",
        "length",
        "acceptance",
        "tokens_per_call",
        "cost_ratio",
        "verify_cost",
        "ancestral_ms",
    )
    rows = [(str(count), *(f"{result[f'{key}_{count}']:.2f}" for key in keys)) for count in counts]
    return table(("paths", *(key.replace("_", " ") for key in keys)), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, distil, measure, print, and write JSON where asked to."""
    options = parser(__doc__.partition("\n\n")[0])
    options.add_argument("--family", choices=FAMILIES, default="mamba2", help="of the target and its draft")
    options.add_argument("--layers", type=at_least(2), default=8, help="of the target")
    options.add_argument("--width", type=at_least(16), default=256, help="of the target")
    options.add_argument("--paths", type=at_least(1), nargs="+", default=[1, 8, 100], help="paths sampled together")
    options.add_argument("--steps", type=at_least(1), default=150, help="training steps of the target")
    options.add_argument("--distil-steps", type=at_least(1), default=200, help="training steps of the draft")
    options.add_argument("--lengths", type=at_least(1), nargs="+", default=[3, 6], help="tokens a round may draft")
    options.add_argument("--rounds", type=at_least(1), default=9, help="alternating runs of which the median counts")
    options.add_argument("--uncompiled", action="store_true", help="leave steps as they are")
    given = options.parse_args(arguments)
    one_thread()
    torch.manual_seed(1)
    panel, config = build_panel(), target_config(given.family, given.width, given.layers)
    target = build_forecaster(given.family, panel.schema, config)
    assert isinstance(target, Autoregressive)
    result: dict[str, Any] = {"family": given.family, "target_loss": train(target, panel, given.steps, 1e-3)}
    draft = build_draft("distilled", target, panel.schema, given.family, config)
    result["divergence"] = train(draft, panel, given.distil_steps, 4e-3, target)
    result |= {
        f"parameters_{name}": sum(part.numel() for part in model.parameters())
        for name, model in (("target", target), ("draft", draft))
    }
    compiled = not given.uncompiled and can_compile()
    batch = panel.gather(Windows(torch.tensor([3]), torch.tensor([LENGTH])))
    how = {"compiled": compiled, "lengths": given.lengths, "rounds": given.rounds}
    for count in given.paths:
        result |= {f"{key}_{count}": value for key, value in compare(target, draft, batch, count, how).items()}
    result["compiled"] = compiled
    result["speed_up_worst"] = min(result[f"speed_up_{count}"] for count in given.paths)
    result |= {"goals": GOALS, "notes": NOTES, "machine": machine(), "versions": versions(["torch"])}
    report(result, summary(result, given.paths), given.json)


if __name__ == "__main__":
    main()
