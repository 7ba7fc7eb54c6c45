"""The selective scan, forward and backward, beside mambapy's parallel scan.

``python -m benchmarks.scan --json s.json`` takes turns between our process and one of the peers' interpreter (``make
peers``), one thread each, on the same numbers; memory is torch's own account of its allocations.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from benchmarks.peer_training import forward_backward, peak_bytes, scan_arguments, seconds_of
from benchmarks.training import worker_of_peers
from models.layers.selective_scan import selective_scan, selective_scan_reference
from tasks.errors import UserError
from tasks.train import KEEP_MEMORY

LENGTHS = (168, 1024)
SHAPE = {"batch": 32, "channels": 128, "states": 16}
GOALS = {"ratio_168": 8.0, "ratio_1024": 8.0, "memory_ratio": 0.2, "max_error_float64": 1e-6}
NOTES = (
    "Times are processor time of one thread. The malloc settings are those of our training; under the C library's defaults "
    "page faults double mambapy's time at L = 168.",
    "Work: y and the gradients of all six arguments for batch 32, 128 channels, 16 states, float32; mambapy's is "
    "MambaBlock.selective_scan with its parallel scan. The same malloc settings for both.",
    "ratio_L is mambapy's median time over ours. memory_L is the most bytes of tensors that each held at once beyond the "
    "arguments; memory_ratio is ours over mambapy's, the larger of both lengths.",
    "max_error_float64 is the largest absolute difference between our scan and the loop over time, over output and "
    "gradients, each divided by the largest number of the loop's, in float64, at lengths that are not multiples of the "
    "chunk also.",
)


def output_and_gradients(scan: Callable[..., Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Output of ``scan`` and the gradients of all ``parts``, for a loss that weighs every output differently."""
    output = scan(*parts)
    weights = torch.linspace(-1.0, 2.0, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, list(parts), weights)]


def error_float64(scan: Callable[..., Tensor], lengths: Sequence[int], channels: int = 16) -> float:
    """Largest difference of ``scan`` from `selective_scan_reference` in float64, relative to the largest number.

    Over output and gradients, at each of ``lengths``, for a batch of 2 with ``channels`` channels of 16 states.
    """
    worst = 0.0
    for steps in lengths:
        parts = scan_arguments(2, steps, channels, 16, torch.float64)
        expectations = output_and_gradients(selective_scan_reference, parts)
        for found, expected in zip(output_and_gradients(scan, parts), expectations, strict=True):
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def compare(peer: Callable[[str], Any], lengths: Sequence[int], shape: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Times and peaks of both sides at ``lengths``; ``peer`` takes a measure of `benchmarks.peer_training` by name."""
    result: dict[str, Any] = {}
    for steps in lengths:
        work = forward_backward(
            selective_scan, scan_arguments(shape["batch"], steps, shape["channels"], shape["states"], torch.float32)
        )
        work()
        peer(f"seconds_{steps}")
        taken = alternating({"ours": partial(seconds_of, work), "mambapy": partial(peer, f"seconds_{steps}")}, rounds)
        held = {"ours": peak_bytes(work), "mambapy": peer(f"bytes_{steps}")}
        result |= {f"ms_{steps}_{side}": 1e3 * value for side, value in taken.items()}
        result |= {f"memory_{steps}_{side}": value for side, value in held.items()}
        result[f"ratio_{steps}"] = taken["mambapy"] / taken["ours"]
        result[f"memory_ratio_{steps}"] = held["ours"] / held["mambapy"]
    result["memory_ratio"] = max(result[f"memory_ratio_{steps}"] for steps in lengths)
    return result


def summary(result: Mapping[str, Any], lengths: Sequence[int]) -> str:
    rows = []
    for steps in lengths:
        ours, theirs = result[f"ms_{steps}_ours"], result[f"ms_{steps}_mambapy"]
        rows.append((f"L={steps}, ms", f"{ours:.0f}", f"{theirs:.0f}", f"{result[f'ratio_{steps}']:.1f}"))
        ours, theirs = (result[f"memory_{steps}_{side}"] / 2**20 for side in ("ours", "mambapy"))
        rows.append((f"L={steps}, MiB", f"{ours:.0f}", f"{theirs:.0f}", f"{result[f'memory_ratio_{steps}']:.3f}"))
    head = f"largest error in float64: {result['max_error_float64']:.1e}"
    return f"{head}\n{table(('', 'weatherglass', 'mambapy', 'ratio'), rows)}"


def restart_with_kept_memory() -> None:
    """Start the program anew where its malloc settings differ from the peers': the C library reads them at its start."""
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.environ.update(KEEP_MEMORY, OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.scan", *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> None:
    options = parser("The selective scan beside mambapy's.")
    options.add_argument("--rounds", type=at_least(1), default=5, help="times that each side is measured")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has mambapy")
    given = options.parse_args(arguments)
    if not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first.")
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        spec = {**SHAPE, "lengths": list(LENGTHS)}
        with worker_of_peers(spec, given.peers, Path(folder)) as peer:
            result = compare(peer, LENGTHS, SHAPE, given.rounds)
    result["max_error_float64"] = error_float64(selective_scan, [*LENGTHS, 1, 37])
    result |= {
        "goals": GOALS, "shape": SHAPE, "rounds": given.rounds, "machine": machine(), "versions": versions(["torch"]),
        "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result, LENGTHS), given.json)


if __name__ == "__main__":
    restart_with_kept_memory()
    try:
        main()
    except UserError as error:
        print(f"scan: {error}", file=sys.stderr)
        raise SystemExit(2) from None
