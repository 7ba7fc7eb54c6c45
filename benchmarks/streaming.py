"""The time of a streaming step: does it grow with the context, and what does it save over running the whole window again?

``python -m benchmarks.streaming --json st.json`` measures every family that streams, with its default sizes, one series
and one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from benchmarks.peer_training import seconds_of
from models.decoding.streaming import State, extend
from models.forecasters import config as configs
from models.forecasters.deepar_network import DeepARNetwork
from models.forecasters.factory import build_backbone
from models.forecasters.wavenet import WaveNetBackbone
from models.panel import PanelSchema

SHORT, LONG, STEPS = 128, 4096, 64
GOALS = {"step_ratio_worst": 1.2, "recompute_ratio_worst": 20.0}
NOTES = (
    "Times are processor time of one thread.",
    f"A measure of a step is the mean of {STEPS} steps that follow the short or the long context; both take turns and their "
    "medians are compared. step_ratio is the long context's over the short one's.",
    "recompute_ratio is the time of one pass over a window of the long context over that of a step after it.",
    "Default sizes of params.yaml, one series, float32, one thread, no gradients. DeepAR reads two inputs, the others "
    "their own width.",
)


class Stream(NamedTuple):
    """A network as this benchmark sees it: a whole pass ``(1, T, width)``, a step ``(1, width)``, and the first state."""

    width: int
    whole: Callable[[Tensor], Any]
    extend: Callable[[Tensor, State], tuple[Tensor, State]]
    step: Callable[[Tensor, State], tuple[Tensor, State]]
    start: State


def _of_backbone(backbone: nn.Module, width: int) -> Stream:
    backbone.eval()
    network: Any = backbone
    start = network.initial_state(1, "cpu", torch.float32)
    return Stream(width, backbone, lambda x, state: extend(network, x, state), network.step, start)


def _of_deepar() -> Stream:
    schema = PanelSchema(("known",), (), (), (), (), SHORT, 1, 1)
    config = configs.DeepARConfig()
    network = DeepARNetwork(schema, config).eval()
    zero = torch.zeros(config.layers, 1, config.hidden_size)

    def step(x_t: Tensor, state: State) -> tuple[Tensor, State]:
        parameters, after = network.decode_all(x_t[:, None], (state[0], state[1]))
        return parameters[:, 0], after

    def whole(x: Tensor) -> Tensor:
        return network.decode_all(x, (zero, zero))[0]

    return Stream(2, whole, lambda x, state: network.decode_all(x, (state[0], state[1])), step, (zero, zero))


def streams() -> dict[str, Stream]:
    """Every family that streams, with the default sizes and random weights."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "tcn": configs.TCNConfig(), "s4d": configs.S4DConfig(), "mamba": configs.MambaConfig(),
        "mamba2": configs.Mamba2Config(), "hybrid": configs.HybridConfig(),
    }  # fmt: skip
    result = {family: _of_backbone(build_backbone(family, config), config.width) for family, config in sizes.items()}
    wave = configs.WaveNetConfig()
    backbone = WaveNetBackbone(wave.width, wave.levels, wave.stacks, wave.kernel_size, wave.dropout)
    return {**result, "wavenet": _of_backbone(backbone, wave.width), "deepar": _of_deepar()}


def measure(stream: Stream, short: int, long: int, steps: int, rounds: int) -> dict[str, float]:
    """Seconds of a step after each context and of a whole pass over the longer one: medians of ``rounds``.

    Raises
    ------
    AssertionError
        Where the step after the longer context is not what the whole pass says.
    """
    x = torch.randn(1, long, stream.width, generator=torch.Generator().manual_seed(2))
    after = {length: stream.extend(x[:, -length:], stream.start)[1] for length in (short, long)}
    before = stream.extend(x[:, :-1], stream.start)[1]
    torch.testing.assert_close(stream.step(x[:, -1], before)[0], stream.whole(x)[:, -1], rtol=1e-3, atol=1e-4)
    inputs = x[:, :steps].unbind(1)

    def walk(state: State) -> None:
        for x_t in inputs:
            _, state = stream.step(x_t, state)

    def of_step(length: int) -> Callable[[], float]:
        return lambda: seconds_of(lambda: walk(after[length])) / len(inputs)

    measures = {"short": of_step(short), "long": of_step(long), "whole": lambda: seconds_of(lambda: stream.whole(x))}
    for once in measures.values():
        once()
    return alternating(measures, rounds)


def compare(families: Mapping[str, Stream], short: int, long: int, steps: int, rounds: int) -> dict[str, Any]:
    """Times and ratios of every family, and the worst of each ratio."""
    result: dict[str, Any] = {}
    with torch.no_grad():
        for family, stream in families.items():
            taken = measure(stream, short, long, steps, rounds)
            result[f"step_ratio_{family}"] = taken["long"] / taken["short"]
            result[f"recompute_ratio_{family}"] = taken["whole"] / taken["long"]
            result |= {f"step_us_{short}_{family}": 1e6 * taken["short"], f"step_us_{long}_{family}": 1e6 * taken["long"]}
            result[f"recompute_ms_{family}"] = 1e3 * taken["whole"]
    result["step_ratio_worst"] = max(result[f"step_ratio_{family}"] for family in families)
    result["recompute_ratio_worst"] = min(result[f"recompute_ratio_{family}"] for family in families)
    return result


def summary(result: Mapping[str, Any], families: Sequence[str], short: int, long: int) -> str:
    rows = [
        (
            family,
            f"{result[f'step_us_{short}_{family}']:.0f}",
            f"{result[f'step_us_{long}_{family}']:.0f}",
            f"{result[f'step_ratio_{family}']:.2f}",
            f"{result[f'recompute_ms_{family}']:.1f}",
            f"{result[f'recompute_ratio_{family}']:.0f}",
        )
        for family in families
    ]
    worst = ("worst", "", "", f"{result['step_ratio_worst']:.2f}", "", f"{result['recompute_ratio_worst']:.0f}")
    return table(("", f"step at {short}, us", f"at {long}, us", "ratio", "recompute, ms", "over a step"), [*rows, worst])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("The time of a streaming step at a short and a long context, and of recomputing the window.")
    options.add_argument("--rounds", type=at_least(1), default=15, help="times that each measure is taken")
    options.add_argument("--short", type=at_least(1), default=SHORT, help="steps of the shorter context")
    options.add_argument("--long", type=at_least(STEPS), default=LONG, help="steps of the longer context")
    given = options.parse_args(arguments)
    one_thread()
    families = streams()
    result = compare(families, given.short, given.long, STEPS, given.rounds)
    result |= {
        "goals": GOALS, "short": given.short, "long": given.long, "steps": STEPS, "rounds": given.rounds,
        "machine": machine(), "versions": versions(["torch"]), "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result, list(families), given.short, given.long), given.json)


if __name__ == "__main__":
    main()
