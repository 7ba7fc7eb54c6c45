"""A training step as it is, beside other ways to run it on a CPU: compiled, in bfloat16, several members as one network.

``python -m benchmarks.steps --json st.json`` says for each family what a step costs by each way, one thread, taking turns.
Members as one network are run by torch.func (stacked weights, vmap), beside as many networks one after the other.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.func import functional_call, stack_module_state

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from benchmarks.device import autocast, build, build_panel, loader
from models.forecasters.factory import NETWORKS, Forecaster
from models.layers.causal_residual import causal_residual_reference
from models.panel import Batch

Step = Callable[[], None]

CPU = torch.device("cpu")
NOTES = (
    "A step: loss, gradients, clipping and AdamW on one batch that lies in memory, default sizes, in processor time.",
    "compiled: torch.compile of the loss; compile_s is what the first step costs more, pays_after_steps when that is earned.",
    "bf16: autocast, as train.precision has it.",
    "batched: members as one network by torch.func, all reading one batch (ours draw each its own), over as many steps "
    "one after the other. vmap knows no rule for our own gradients, so TCN's blocks are torch's operations there; a dash is a "
    "network that vmap cannot run at all.",
)


def step_of(network: Forecaster, batch: Batch, loss_of: Callable[[Batch], torch.Tensor], half: bool = False) -> Step:
    """A step of descent of ``network`` on ``batch``."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(CPU, half):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def batched_step(family: str, networks: Sequence[Forecaster], batch: Batch) -> tuple[Step, dict[str, torch.Tensor]]:
    """A step of descent of all ``networks``, of one family, as one network that torch.func makes of them, and its weights."""
    shape = copy.deepcopy(networks[0]).to("meta")
    weights, buffers = stack_module_state(list(networks))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, fused=True)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = shape

        def forward(self, given: Batch) -> torch.Tensor:
            return self.network.loss(given)

    loss_of = Loss().train()

    def loss(own: dict[str, Any], fixed: dict[str, Any]) -> Any:
        state = {f"network.{name}": value for name, value in (own | fixed).items()}
        return functional_call(loss_of, state, (batch,))

    def step() -> None:
        with plain_blocks(family):
            torch.vmap(loss, randomness="different")(weights, buffers).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, weights


def plain_blocks(family: str) -> AbstractContextManager[Any]:
    """TCN's residual blocks by torch's own operations, which vmap knows."""
    if family != "tcn":
        return nullcontext()

    def plain(*given: Any, rectified: bool = False) -> torch.Tensor:
        return causal_residual_reference(*given)

    return mock.patch("models.forecasters.tcn.causal_residual", plain)


def seconds(step: Step, steps: int) -> float:
    """Processor time of a step, the mean of ``steps``."""
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def variants(family: str, batch: Batch, schema: Any, members: Sequence[int], told: dict[str, Any]) -> dict[str, Step]:
    """Ways to take a step, by name, each having taken its first; what fails is told in ``told``."""
    made: dict[str, Callable[[], Step]] = {}

    def network() -> Forecaster:
        return build(family, schema).train()

    def plain(half: bool, compiled: bool) -> Step:
        own = network()
        return step_of(own, batch, torch.compile(own.loss) if compiled else own.loss, half)

    made["plain"] = partial(plain, half=False, compiled=False)
    made["bf16"] = partial(plain, half=True, compiled=False)
    made["compiled"] = partial(plain, half=False, compiled=True)
    for count in members:
        made[f"batched_{count}"] = lambda count=count: batched_step(family, [network() for _ in range(count)], batch)[0]  # type: ignore[misc]
    ready: dict[str, Step] = {}
    for name, make in made.items():
        started = time.process_time()
        try:
            step = make()
            step()
        except Exception as error:
            told.setdefault("failed", {})[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        told.setdefault("first_step_s", {})[name] = time.process_time() - started
        step()
        ready[name] = step
    return ready


def measure(family: str, size: int, steps: int, rounds: int, members: Sequence[int]) -> dict[str, Any]:
    """Seconds a step of each way, and what a plain step costs over it."""
    panel = build_panel()
    batch, found = next(iter(loader(panel, size, 1))), dict[str, Any]()
    ready = variants(family, batch, panel.schema, members, found)
    taken = alternating({name: partial(seconds, step, steps) for name, step in ready.items()}, rounds)
    found["step_s"] = taken
    for name in ("bf16", "compiled"):
        if name in taken:
            found[f"{name}_ratio"] = taken["plain"] / taken[name]
    for count in members:
        if f"batched_{count}" in taken:
            found[f"batched_{count}_ratio"] = count * taken["plain"] / taken[f"batched_{count}"]
    if "compiled" in taken:
        found["compile_s"] = found["first_step_s"]["compiled"] - taken["compiled"]
        gain = taken["plain"] - taken["compiled"]
        found["pays_after_steps"] = found["compile_s"] / gain if gain > 0 else None
    return found


def cells(found: dict[str, Any], members: Sequence[int]) -> tuple[str, ...]:
    """What a table says of one family."""

    def ratio(name: str) -> str:
        return f"{found[name]:.2f}" if name in found else "-"

    pays = found.get("pays_after_steps")
    compiled = (
        f"{found['compile_s']:.0f} s, {'never' if pays is None else f'{pays:,.0f} steps'}" if "compile_s" in found else "-"
    )
    batched = (ratio(f"batched_{count}_ratio") for count in members)
    return f"{1000 * found['step_s']['plain']:.1f}", ratio("bf16_ratio"), ratio("compiled_ratio"), compiled, *batched


def header(members: Sequence[int]) -> tuple[str, ...]:
    return ("family", "ms a step", "bf16", "compiled", "compiling takes, pays after", *(f"{n} members as one" for n in members))


def summary(result: dict[str, Any]) -> str:
    return table(
        header(result["members"]), ((name, *cells(found, result["members"])) for name, found in result["families"].items())
    )


def main(arguments: list[str] | None = None) -> None:
    options = parser("A training step as it is, compiled, in bfloat16, and of several members as one network.")
    options.add_argument("--families", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--members", nargs="*", type=at_least(2), default=[2, 4], help="members as one network")
    options.add_argument("--batch", type=at_least(1), default=128, help="windows a step")
    options.add_argument("--steps", type=at_least(1), default=5, help="steps of a measure")
    options.add_argument("--rounds", type=at_least(1), default=3, help="times that each is measured")
    given = options.parse_args(arguments)
    one_thread()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # of graphs that break
    families = {}
    for family in given.families:
        families[family] = measure(family, given.batch, given.steps, given.rounds, given.members)
        print(family, *cells(families[family], given.members), flush=True)
    result = {
        "families": families, "members": given.members, "batch": given.batch, "steps": given.steps, "rounds": given.rounds,
        "machine": machine(), "versions": versions(["torch"]), "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


if __name__ == "__main__":
    main()
