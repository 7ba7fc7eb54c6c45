"""Every family on an accelerator: the CPU's numbers, training speed in float32 and bfloat16, memory, and waits in the loop.

``python -m benchmarks.device --json device.json`` builds a panel in memory and takes each family through it on the device
(``--device cpu`` to try the program itself): the loss and direct forecasts of equal weights against the CPU's, training steps
from the loader's batches, forecasts. It needs nothing but torch, numpy, pydantic and this folder. One that fails is told, and
the others go on.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from benchmarks.common import at_least, machine, parser, report, table, versions
from models.calendar import Calendar
from models.forecasters import config as configs
from models.forecasters.base import Forecaster
from models.forecasters.factory import NETWORKS, build_forecaster
from models.loading import ahead
from models.panel import Batch, Panel, PanelSchema, WindowLoader

SERIES, LENGTH, CONTEXT, HORIZON, WARM_UP, LAST = 200, 2000, 168, 48, 3, 10
COMPARED = 128
"""Windows whose loss and forecasts are compared."""
NAMES = ("TFT", "DeepAR", "TCN", "WaveNet", "S4D", "Mamba", "Mamba2", "Hybrid", "TiDE")
CONFIGS = dict(zip(NETWORKS, (getattr(configs, f"{name}Config") for name in NAMES), strict=True))
NOTES = (
    f"{SERIES} series of {LENGTH} steps of a day, a week, a trend and noise, 2 known covariates, 1 past-only, 2 lags; context "
    f"{CONTEXT}, horizon {HORIZON}; default sizes of each family with quantile heads, DeepAR's normal and WaveNet's bins.",
    "difference: the largest relative difference of the loss and of direct forecasts (sampled ones draw other numbers) from "
    "the CPU's, equal weights, float32 without TF32.",
    f"windows_per_s: batches gathered on the CPU, pinned, sent ahead of the step that takes them; after {WARM_UP} steps. bf16: "
    f"autocast. loss: mean of the last {LAST} steps. waits: places in a step where the CPU waits for the device.",
)


def build_panel() -> Panel:
    """Series of a day, a week, a trend and noise, with covariates of which one is in the target."""
    generator, step = torch.Generator().manual_seed(1), torch.arange(LENGTH)
    level = 10 + 5 * torch.rand(SERIES, 1, generator=generator)
    season = torch.sin(2 * torch.pi * step / 24) + 0.5 * torch.sin(2 * torch.pi * step / 168)
    others = torch.randn(SERIES, LENGTH, 3, generator=generator)
    noise = 0.3 * torch.randn(SERIES, LENGTH, generator=generator)
    target = level * (1 + 0.2 * season) + 0.002 * step + others[..., 0] + noise
    rows = torch.cat([target[..., None], others], dim=-1).flatten(0, 1)
    schema = PanelSchema(
        ("price", "plan"), ("visitors",), (("series", SERIES + 1),), (("hour", 24),), (48, 168), CONTEXT, HORIZON, 24
    )
    offsets = torch.arange(SERIES + 1) * LENGTH
    calendar = Calendar(torch.zeros(LENGTH, 0), (step % 24)[:, None], torch.zeros(SERIES, dtype=torch.int64))
    static = torch.arange(1, SERIES + 1)[:, None]
    return Panel(schema, rows, calendar, static, offsets, torch.full((SERIES,), LENGTH))


def build(family: str, schema: PanelSchema) -> Forecaster:
    """A network of the family at its default sizes, always the same weights."""
    config: Any = CONFIGS[family]()
    if "head" in type(config).model_fields and config.head is None:
        config = config.model_copy(update={"head": "quantile"})
    torch.manual_seed(1)
    return build_forecaster(family, schema, config)


def loader(panel: Panel, size: int, batches: int) -> WindowLoader:
    first = np.full(SERIES, LENGTH // 2)
    windows = panel.window_grid(first, np.full(SERIES, LENGTH - HORIZON - 1), stride=1, minimum=1)
    return WindowLoader(panel, windows, size, batches, seed=1)


def difference(family: str, panel: Panel, device: torch.device) -> float:
    """Largest relative difference from the CPU's loss and, for direct families, forecasts."""
    batch = next(iter(loader(panel, COMPARED, 1)))
    found: list[list[torch.Tensor]] = []
    for place in (torch.device("cpu"), device):
        network = build(family, panel.schema).to(place).eval()
        with torch.no_grad():
            here = {key: value.to(place) for key, value in batch.items()}
            values = [network.loss(here)] + ([] if sampled(family) else [network.predict(here).quantiles])
        found.append([value.double().cpu() for value in values])
    return max(float((one - other).abs().max() / one.abs().mean()) for one, other in zip(*found, strict=True))


def sampled(family: str) -> bool:
    """Whether the family forecasts by sampled paths."""
    return family in ("deepar", "wavenet")


def synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def trained(
    family: str, panel: Panel, device: torch.device, size: int, steps: int, half: bool, compiled: bool = False
) -> dict[str, float]:
    """Windows a second, the last losses, peak memory and waits of ``steps`` training steps after the warm-up."""
    network: Any = build(family, panel.schema).to(device).train()
    loss_of: Callable[[Batch], torch.Tensor] = torch.compile(network.loss) if compiled else network.loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    losses: list[torch.Tensor] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step(batch: Batch) -> None:
        with autocast(device, half):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    started, waits = 0.0, 0
    for number, batch in enumerate(ahead(loader(panel, size, WARM_UP + steps), device)):
        if number == WARM_UP:
            synchronised(device)
            started = time.perf_counter()
        if number == WARM_UP - 1:
            waits = count_waits(lambda batch=batch: step(batch), device)  # type: ignore[misc]
        else:
            step(batch)
    synchronised(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    last = torch.stack(losses[-LAST:]).float().mean()
    return {"windows_per_s": steps * size / seconds, "loss": float(last), "peak_mb": peak, "waits": waits}


def autocast(device: torch.device, half: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def count_waits(work: Callable[[], None], device: torch.device) -> int:
    """Calls of ``work`` that made the CPU wait for the device, as torch's own check tells."""
    if device.type != "cuda":
        work()
        return 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [each for each in told if "synchroniz" in str(each.message)]
    for each in found:
        print(f"  waits at {each.filename.rsplit('/', 1)[-1]}:{each.lineno}", file=sys.stderr)
    return len(found)


def forecast_speed(family: str, panel: Panel, device: torch.device, size: int) -> float:
    """Windows a second of forecasts, the second batch's."""
    network, took = build(family, panel.schema).to(device).eval(), 0.0
    for batch in loader(panel, size, 2):
        here = {key: value.to(device) for key, value in batch.items()}
        synchronised(device)
        started = time.perf_counter()
        with torch.inference_mode():
            network.predict(here)
        synchronised(device)
        took = time.perf_counter() - started
    return size / took


def measure(family: str, panel: Panel, device: torch.device, size: int, steps: int, compiled: bool) -> dict[str, Any]:
    """All that is measured of a family; what fails is told in ``failed`` by name."""
    found: dict[str, Any] = {}
    works: dict[str, Callable[[], Any]] = {
        "difference": lambda: difference(family, panel, device),
        "float32": lambda: trained(family, panel, device, size, steps, half=False),
        "bf16": lambda: trained(family, panel, device, size, steps, half=True),
        "forecasts_per_s": lambda: forecast_speed(family, panel, device, size),
    }
    if compiled:
        works["compiled"] = lambda: trained(family, panel, device, size, steps, half=False, compiled=True)
    for name, work in works.items():
        try:
            found[name] = work()
        except Exception as error:
            found.setdefault("failed", {})[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            print(f"  {family} {name} failed: {found['failed'][name]}", file=sys.stderr)
    return found


def summary(result: dict[str, Any]) -> str:
    def cells(found: dict[str, Any]) -> tuple[str, ...]:
        speeds = (f"{found[kind]['windows_per_s']:,.0f}" if kind in found else "-" for kind in ("float32", "bf16"))
        losses = (f"{found[kind]['loss']:.4f}" if kind in found else "-" for kind in ("float32", "bf16"))
        other = f"{found['difference']:.1e}" if "difference" in found else "-"
        waits = str(found["float32"]["waits"]) if "float32" in found else "-"
        forecasts = f"{found['forecasts_per_s']:,.0f}" if "forecasts_per_s" in found else "-"
        return other, *speeds, *losses, waits, forecasts

    header = ("family", "difference", "windows/s", "in bf16", "loss", "in bf16", "waits", "forecasts/s")
    return table(header, ((name, *cells(found)) for name, found in result["families"].items()))


def main(arguments: list[str] | None = None) -> None:
    options = parser("Every family on an accelerator, beside the CPU's numbers.")
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    options.add_argument("--families", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--batch", type=at_least(1), default=1024, help="windows a step")
    options.add_argument("--steps", type=at_least(1), default=60, help="training steps that are timed")
    options.add_argument("--compile", nargs="*", choices=NETWORKS, default=["tft", "tcn"], help="those compiled, too")
    given = options.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device: torch finds no CUDA device; give --device cpu to try the program itself.")
    panel, found = build_panel(), {}
    for family in given.families:
        started = time.perf_counter()
        found[family] = measure(family, panel, device, given.batch, given.steps, family in given.compile)
        print(f"{family}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result = {
        "families": found, "device": name, "batch": given.batch, "steps": given.steps, "machine": machine(),
        "versions": versions(("torch", "numpy")) | {"cuda": torch.version.cuda}, "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


if __name__ == "__main__":
    main()
