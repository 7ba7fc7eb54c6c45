"""The hot paths against their slow oracles, as ratios: has a change made one slower than it was when last accepted?

``python -m benchmarks.hot_paths --check`` ends with 1 where a path gains less than ``LEAST`` of what
``benchmarks/accepted.json`` says over its oracle, in three attempts of growing length; ``--accept`` writes that file. Both
sides take turns in one process, so a ratio hardly depends on the machine; seconds would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table
from benchmarks.peer_training import forward_backward, scan_arguments, seconds_of
from models.calendar import Calendar
from models.decoding.streaming import extend, trail, trail_reference
from models.forecasters import config as configs
from models.forecasters.factory import build_backbone
from models.layers.causal_residual import causal_residual, causal_residual_reference
from models.layers.gated_sum import gated_sum, gated_sum_reference
from models.layers.selective_scan import selective_scan, selective_scan_reference
from models.layers.shared_value_attention import shared_value_attention, shared_value_attention_reference
from models.layers.ssd import ssd, ssd_reference
from models.panel import Panel, PanelSchema, Windows
from tasks.files import read_json, write_json

ACCEPTED = Path(__file__).resolve().parent / "accepted.json"
LEAST = 0.6
"""Share of the accepted ratio below which a path counts as slower: two runs of one path differ by less."""


class Sides(NamedTuple):
    """One piece of work done both ways."""

    fast: Callable[[], object]
    slow: Callable[[], object]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _leaf(*shape: int) -> Tensor:
    return _normal(*shape).requires_grad_()


def gather() -> Sides:
    """A batch of windows gathered at once, and window by window."""
    series, length, context, horizon = 20, 1000, 56, 14
    schema = PanelSchema(("a", "b"), ("c",), (("id", series + 1),), (), (14, 28), context, horizon, 7)
    offsets = torch.arange(0, series * length + 1, length)
    panel = Panel(
        schema, _normal(series * length, 4), Calendar.none(offsets), torch.arange(series)[:, None] + 1, offsets,
        torch.full((series,), length),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    windows = Windows(
        torch.randint(series, (128,), generator=generator), torch.randint(300, length - horizon, (128,), generator=generator)
    )
    return Sides(lambda: panel.gather(windows), lambda: [panel.gather(windows[i : i + 1]) for i in range(len(windows))])


def scan() -> Sides:
    """Mamba's selective scan, forward and backward, and the loop over time."""
    leaves = scan_arguments(8, 168, 96, 16, torch.float32)
    return Sides(forward_backward(selective_scan, leaves), forward_backward(selective_scan_reference, leaves))


def duality() -> Sides:
    """Mamba-2's chunks, forward and backward, and the loop over time."""
    batch, steps, heads, channels, states = 8, 168, 8, 12, 16
    rates = [torch.nn.functional.softplus(_normal(batch, steps, heads)).requires_grad_(), _leaf(heads)]
    leaves = [_leaf(batch, steps, heads, channels), *rates, _leaf(batch, steps, states), _leaf(batch, steps, states)]
    start = torch.zeros(batch, heads, channels, states)

    def of(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], None]:
        return forward_backward(lambda x, delta, A, B, C: function(x, delta, -A.exp(), B, C, start)[0], leaves)

    return Sides(of(ssd), of(ssd_reference))


def selection() -> Sides:
    """TFT's variable selection of twenty numbers, forward and backward, and the same by torch's own operations."""
    count, columns, hidden, output = 20, 64 * 70, 8, 24
    shapes = [
        (count, columns), (count, hidden, 2), (count, hidden, hidden), (count, hidden), (count, 2 * output, hidden + 1),
        (count, columns), (count, columns), (count, output, 3), (count, output), (count, output), (count, columns),
    ]  # fmt: skip
    leaves = [_leaf(*shape) for shape in shapes]

    def of(function: Callable[..., Tensor]) -> Callable[[], None]:
        def called(x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, gate: Tensor, *rest: Tensor) -> Tensor:
            return function(x, inner, outer, bias, None, gate, (rest[0], rest[1]), *rest[2:])

        return forward_backward(called, leaves)

    return Sides(of(gated_sum), of(gated_sum_reference))


def attention() -> Sides:
    """TFT's attention, forward and backward, and the same by torch's own operations."""
    batch, horizon, steps, heads, width = 64, 48, 216, 4, 6
    leaves = [_leaf(batch, horizon, heads * width), _leaf(batch, steps, heads * width), _leaf(batch, steps, width)]
    mask = torch.ones(horizon, steps).triu(steps - horizon + 1).bool()[None]

    def of(function: Callable[..., Any]) -> Callable[[], None]:
        def called(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            read = function(query, key, value, mask, heads)
            result: Tensor = read[0] if isinstance(read, tuple) else read
            return result

        return forward_backward(called, leaves)

    return Sides(of(shared_value_attention), of(shared_value_attention_reference))


def convolutions() -> Sides:
    """A block of TCN of which the last steps alone are read, forward and backward, and the whole block by torch."""
    steps, batch, channels, taps = 70, 128, 48, 3
    leaves = [
        _leaf(steps, batch, channels),
        *(_leaf(*shape) for _ in range(2) for shape in ((channels, channels, taps), (channels,))),
    ]

    def of(function: Callable[..., Tensor]) -> Callable[[], None]:
        def called(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
            return function(x, (w1, b1, None), (w2, b2, None), 4, 14)

        return forward_backward(called, leaves)

    return Sides(of(causal_residual), of(causal_residual_reference))


def _mamba() -> tuple[Any, int]:
    torch.manual_seed(1)
    config = configs.MambaConfig()
    return build_backbone("mamba", config).eval(), config.width


def stream() -> Sides:
    """Eight more steps of a Mamba stream from its state, and from the whole window again."""
    network, width = _mamba()
    x = _normal(1, 264, width)
    _, state = extend(network, x[:, :256], network.initial_state(1, "cpu", torch.float32))

    def steps() -> None:
        after = state
        for x_t in x[:, 256:].unbind(1):
            _, after = network.step(x_t, after)

    return Sides(steps, lambda: [network(x[:, : 257 + step]) for step in range(8)])


def verification() -> Sides:
    """Six drafted tokens judged by Mamba in one pass that can be rolled back, and one after another."""
    network, width = _mamba()
    piece, state = _normal(8, 6, width), network.initial_state(8, "cpu", torch.float32)
    return Sides(lambda: trail(network, piece, state), lambda: trail_reference(network, piece, state))


PATHS: dict[str, Callable[[], Sides]] = {
    each.__name__: each
    for each in (gather, scan, duality, selection, attention, convolutions, stream, verification)
}  # fmt: skip
WITHOUT_GRADIENTS = (gather, stream, verification)


def gain(name: str, rounds: int) -> float:
    """The slow side's time over the fast one's, medians of ``rounds`` in turn; each side repeated to about 20 ms."""
    with torch.set_grad_enabled(PATHS[name] not in WITHOUT_GRADIENTS):
        sides = PATHS[name]()
        repeats: dict[str, int] = {}
        for side, work in sides._asdict().items():
            work()
            repeats[side] = max(1, round(0.02 / max(seconds_of(work), 1e-5)))

        def each(side: str) -> float:
            work = getattr(sides, side)
            return seconds_of(lambda: [work() for _ in range(repeats[side])]) / repeats[side]

        medians = alternating({side: partial(each, side) for side in repeats}, rounds)
    return medians["slow"] / medians["fast"]


def slower(
    accepted: Mapping[str, float], attempts: Sequence[int], measure: Callable[[str, int], float] = gain
) -> dict[str, float]:
    """Gains of the paths that stay below ``LEAST`` of their accepted gain in every attempt, with its number of rounds."""
    behind = {name: 0.0 for name in PATHS}
    for rounds in attempts:
        behind = {name: measure(name, rounds) for name in behind}
        behind = {name: found for name, found in behind.items() if found < LEAST * accepted.get(name, float("inf"))}
        if not behind:
            break
    return behind


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("The hot paths against their slow oracles.")
    options.add_argument("--rounds", type=at_least(1), default=9, help="times that each side is measured")
    either = options.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", help="end with 1 where a path is slower than accepted")
    either.add_argument("--accept", action="store_true", help=f"write {ACCEPTED.name}")
    given = options.parse_args(arguments)
    one_thread()
    if given.check:
        accepted = read_json(ACCEPTED)
        behind = slower(accepted, (given.rounds, 2 * given.rounds, 4 * given.rounds))
        for name, found in behind.items():
            told = f"{accepted[name]:.1f} times were accepted" if name in accepted else f"{ACCEPTED.name} does not name it"
            print(f"{name}: {found:.1f} times as fast as its oracle, {told}", file=sys.stderr)
        print(f"{len(PATHS) - len(behind)} of {len(PATHS)} hot paths are as fast as accepted")
        raise SystemExit(1 if behind else 0)
    gains = {name: gain(name, given.rounds) for name in PATHS}
    if given.accept:
        write_json(ACCEPTED, {name: round(value, 2) for name, value in gains.items()})
    text = table(("path", "gain over its oracle"), [(name, f"{value:.2f}") for name, value in gains.items()])
    report({"gains": gains, "rounds": given.rounds, "machine": machine()}, text, given.json)


if __name__ == "__main__":
    main()
