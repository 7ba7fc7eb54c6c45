"""How the path scales: seconds and peak memory of every stage as a panel grows, beside three peers' datasets and loaders.

``python -m benchmarks.scale --sizes 1e4 1e5 1e6 --json sc.json`` writes a panel of each size and takes it through every stage
from ingest to evaluate, each in a process of its own with one thread, then through the peers' datasets and loaders, until one
passes a limit of time or memory: there it gives up, which is said, and it is not asked for larger sizes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import scale_data
from benchmarks.common import HOME, at_least, machine, parser, report, table, versions
from benchmarks.peer_scale import FINISHED, PEERS
from benchmarks.scale_stages import STAGES, Spec
from models.forecasters.factory import FAMILIES
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.train import KEEP_MEMORY

Figures = dict[str, Any]
"""Of a stage at a size: ``seconds``, ``start_mb``, ``peak_mb`` and what else it tells; or ``gave_up`` with the reason."""

Limits = tuple[float, float]
"""Seconds and gigabytes at which a stage or peer gives up."""

PROGRAM = Path(__file__).with_name("peer_scale.py").resolve()
HORIZON, CONTEXT, BATCH_SIZE = 14, 56, 128
IN_WORKERS = ("load", "train", "predict")
"""Stages that the pipeline does in the processes of members, which keep the memory they have had from the system."""
STRAIGHT_FROM = 100_000
"""Rows from which exponents are fitted: below, what a stage costs at any size outweighs what it costs a row."""
GOALS = {
    "exponent": "at most 1.05 for every stage, from 10^5 rows",
    "peak_mb": "at most 6,144 at 10^8 rows",
    "ratio_pytorch_forecasting": "at least 50 at 10^7 rows",
    "ratio_neuralforecast": "at least 3 at 10^7 rows",
}
NOTES = (
    f"Panel: daily demand with a week, a year, trend, 2 known covariates, 1 past-only, 1 static, three series in ten "
    f"intermittent (benchmarks/scale_data.py); {scale_data.STEPS} steps a series up to {scale_data.MOST_SERIES:,} series.",
    f"Horizon {HORIZON}, context {CONTEXT}, batches of {BATCH_SIZE}; one network of one family, no baselines.",
    "load, train, predict and the peers keep freed memory for the next batch, as the processes of members do; the others give "
    "it back, as the stages do.",
    "Each stage in a process of its own, one thread; seconds of the clock, without start and imports, begun when what "
    "came before lies on the disk. peak_mb is the most that the process held, imports (start_mb) and pages of mapped files "
    "counted.",
    "load and train do a fixed number of batches, so they should not grow; train ends with the look at the early-stopping fold "
    "that ends an epoch. predict forecasts the windows of the five folds after training, of each at most as many as "
    "folds.most_windows says (100,000), drawn at random; bundle writes what is "
    "registered; forecast answers for every series, a horizon before its end, into a Parquet file.",
    "exponent is the slope of log seconds over log rows by least squares, from 10^5 rows where there are two such sizes; "
    "memory_exponent that of peak_mb less start_mb.",
    "A peer's build_s is from the same file to its dataset, load_s as many batches of as many windows. A ratio is its build "
    "and load over our prepare and load; ratio_with_ingest counts our ingest, with its checks of the data, too.",
    "pytorch-forecasting: target normalised per series, its faster setting. NeuralForecast: batches from one series, its "
    "fastest; its windows are not yet scaled, as ours are.",
    "GluonTS: DeepAR's loader over ListDataset, without the past-only covariate, which it does not take; its time features.",
    "extrapolated: beyond where the peer gave up, along the line through its two largest sizes in logarithms, or in proportion "
    "to rows where that line is less steep.",
)


def run(command: Sequence[str], folder: Path, limits: Limits, settings: Mapping[str, str]) -> Figures:
    """Figures that a process prints last, or where it gave up: ``time``, ``memory``, or ``failure`` with its last words."""
    os.sync()  # what came before has its own figures, and writes meanwhile would be charged to this one
    log, started, most, (seconds, gigabytes) = folder / "log.txt", time.monotonic(), 0, limits
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WEATHERGLASS_")}
    variables |= {**settings, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w+", encoding="utf-8", errors="replace") as stream:
        process = subprocess.Popen(command, cwd=HOME, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        watched, gave_up = psutil.Process(process.pid), ""
        while process.poll() is None:
            try:
                most = max(most, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
            if most > gigabytes * 2**30:
                gave_up = "memory"
            elif time.monotonic() - started > seconds:
                gave_up = "time"
            if gave_up:
                process.kill()
                process.wait()
            time.sleep(0.02)
        stream.seek(0)
        lines = stream.read().splitlines()
    figures = next((line.removeprefix(FINISHED) for line in reversed(lines) if line.startswith(FINISHED)), None)
    if process.returncode == 0 and figures is not None:
        return dict(json.loads(figures))
    gave_up = gave_up or ("memory" if process.returncode == -9 else "failure")
    told = {"words": " ".join(lines[-2:])[-300:]} if gave_up == "failure" else {}
    return {"gave_up": gave_up, "after_s": time.monotonic() - started, "seen_mb": most / 2**20, **told}


def spec_of(root: Path, panel: Path, family: str, batches: int) -> Spec:
    """What the stages must know of the panel and of what to do with it."""
    return {
        "root": str(root), "panel": str(panel), "family": family, "batches": batches, "batch_size": BATCH_SIZE,
        "horizon": HORIZON, "context": CONTEXT, "known": list(scale_data.KNOWN), "past": list(scale_data.PAST),
        "static": list(scale_data.STATIC), "forecast": None, "cutoff": None,
    }  # fmt: skip


def measure_size(spec: Spec, peers: Mapping[str, Sequence[str]], stages: Sequence[str], limits: Limits) -> dict[str, Figures]:
    """Figures of every stage asked for (until one gives up) and of each peer's command on the spec's panel."""
    root, found = Path(spec["root"]), dict[str, Figures]()
    write_json(root / "spec.json", spec)
    here = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale_stages"]
    for name in stages:
        settings = KEEP_MEMORY if name in IN_WORKERS else {}
        found[name] = told(name, run([*here, name, str(root / "spec.json")], root, limits, settings))
        if "gave_up" in found[name]:
            break
    for name, command in peers.items():
        found[name] = told(name, run([*command, str(root / "spec.json")], root, limits, KEEP_MEMORY))
    return found


def told(name: str, figures: Figures) -> Figures:
    """The same figures, told on stderr."""
    text = f"{figures.get('seconds', 0.0):.2f} s, {figures.get('peak_mb', 0.0):,.0f} MB"
    if "gave_up" in figures:
        text = f"gave up ({figures['gave_up']}) after {figures['after_s']:.1f} s at {figures['seen_mb']:,.0f} MB"
    print(f"  {name}: {text} {figures.get('words', '')}".rstrip(), file=sys.stderr, flush=True)
    return figures


def measure(
    sizes: Sequence[int],
    stages: Sequence[str],
    peers: Mapping[str, Sequence[str]],
    family: str,
    batches: int,
    limits: Limits,
    folder: Path | None,
) -> dict[str, Any]:
    """Take panels of every size through the path and the peers, smallest first; ``limits`` are seconds and gigabytes.

    Returns ``rows`` and ``series`` of each size, ``names`` of stages and peers in order, and their figures
    ``{name: {rows: figures}}``.
    """
    found: dict[str, dict[str, Figures]] = {}
    rows_of: list[int] = []
    asked = dict(peers)
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory(prefix="scale-", dir=folder) as name:
            started, panel = time.perf_counter(), Path(name) / "panel.parquet"
            rows = scale_data.write(panel, size)
            print(f"{rows:,} rows, written in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
            cutoff = (
                scale_data.START + scale_data.shape_of(rows)[1] - 1 - HORIZON
            )  # so that known covariates reach a horizon on
            spec = spec_of(Path(name), panel, family, batches) | {"cutoff": str(cutoff)}
            at_size = measure_size(spec, asked, stages, limits)
        rows_of.append(rows)
        for name, figures in at_size.items():
            found.setdefault(name, {})[str(rows)] = figures
            if "gave_up" in figures:
                asked.pop(name, None)
                stages = () if name in STAGES else stages
    series = [scale_data.shape_of(rows)[0] for rows in rows_of]
    return {"rows": rows_of, "series": series, "names": list(found), "figures": found}


def with_earlier(found: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure` has found, and of an ``earlier`` result what was not measured again."""
    sizes = dict(zip(earlier["rows"], earlier["series"], strict=True)) | dict(zip(found["rows"], found["series"], strict=True))
    figures = {name: dict(found["figures"].get(name, {})) for name in dict.fromkeys((*earlier["names"], *found["names"]))}
    for name, by_rows in earlier["figures"].items():
        figures[name] = dict(by_rows) | figures[name]
    rows = sorted(sizes)
    return {"rows": rows, "series": [sizes[size] for size in rows], "names": list(figures), "figures": figures}


def slope(points: Mapping[float, float]) -> float:
    """Slope of log value over log size by least squares; NaN for fewer than two sizes."""
    if len(points) < 2:
        return math.nan
    size, value = np.log(list(points)), np.log(list(points.values()))
    return float(np.polyfit(size, value, 1)[0])


def points_of(by_rows: Mapping[str, Figures], key: str) -> dict[float, float]:
    """``key`` by rows where it was measured; from `STRAIGHT_FROM` on where there are two such sizes."""
    every = {float(rows): figures[key] for rows, figures in by_rows.items() if key in figures}
    large = {rows: value for rows, value in every.items() if rows >= STRAIGHT_FROM}
    return large if len(large) > 1 else every


def exponents(found: Mapping[str, Mapping[str, Figures]]) -> dict[str, float]:
    """``exponent_<name>`` of seconds and ``memory_exponent_<name>`` of the memory above the start's, where two sizes tell."""
    result: dict[str, float] = {}
    for name, by_rows in found.items():
        held = {
            rows: {"mb": max(each["peak_mb"] - each["start_mb"], 1.0)} for rows, each in by_rows.items() if "peak_mb" in each
        }
        fitted = {"exponent": slope(points_of(by_rows, "seconds")), "memory_exponent": slope(points_of(held, "mb"))}
        result |= {f"{key}_{name}": value for key, value in fitted.items() if not math.isnan(value)}
    return result


def extrapolated(by_rows: Mapping[str, Figures], rows: int) -> float | None:
    """Seconds at ``rows``, larger than those measured, from the two largest sizes; None for fewer than two.

    Along their line in logarithms, or in proportion to rows where that is less steep: a flat line shows what any size costs.
    """
    every = sorted((float(size), figures["seconds"]) for size, figures in by_rows.items() if "seconds" in figures)
    if len(every) < 2:
        return None
    (_, _), (last, seconds) = every[-2:]
    return float(seconds * (rows / last) ** max(slope(dict(every[-2:])), 1.0))


def ratios(found: Mapping[str, Mapping[str, Figures]], peers: Sequence[str]) -> dict[str, Any]:
    """A peer's build and load over our prepare and load by rows, with our ingest counted in, and which are extrapolated."""
    result: dict[str, Any] = {}
    ours = {name: found.get(name, {}) for name in ("ingest", "prepare", "load")}
    for rows in ours["load"]:
        if not all("seconds" in ours[name].get(rows, {}) for name in ours):
            continue
        ingest, *rest = (ours[name][rows]["seconds"] for name in ours)
        for peer in peers:
            figures = found.get(peer, {})
            measured = figures.get(rows, {}).get("seconds")
            seconds = measured or extrapolated(figures, int(rows))
            if seconds is not None:
                result.setdefault(f"ratio_{peer}", {})[rows] = seconds / sum(rest)
                result.setdefault(f"ratio_with_ingest_{peer}", {})[rows] = seconds / (ingest + sum(rest))
            if seconds is not None and measured is None:
                result.setdefault(f"extrapolated_{peer}", []).append(int(rows))
    return result


def summary(result: Mapping[str, Any]) -> str:
    """Seconds and peak memory by size, the exponents, the points where somebody gave up, and the ratios."""
    sizes, found = [str(rows) for rows in result["rows"]], result["figures"]

    def cell(figures: Figures | None) -> str:
        if figures is None:
            return "-"
        if "gave_up" in figures:
            return f"gave up: {figures['gave_up']}"
        return f"{figures['seconds']:.2f} s {figures['peak_mb']:,.0f} MB"

    rows = [(name, *(cell(by_rows.get(size)) for size in sizes), *_fitted(result, name)) for name, by_rows in found.items()]
    lines = [table(("", *(f"{int(size):,} rows" for size in sizes), "exponent", "of memory"), rows)]
    for key in (key for key in result if key.startswith("ratio_")):
        guessed = result.get(f"extrapolated_{key.removeprefix('ratio_').removeprefix('with_ingest_')}", [])
        each = (
            f"{value:.1f} at {int(size):,}{' (extrapolated)' * (int(size) in guessed)}" for size, value in result[key].items()
        )
        lines.append(f"{key}: {', '.join(each)}")
    return "\n".join(lines)


def _fitted(result: Mapping[str, Any], name: str) -> tuple[str, str]:
    values = (result.get(f"{kind}_{name}") for kind in ("exponent", "memory_exponent"))
    first, second = ("-" if value is None else f"{value:.2f}" for value in values)
    return first, second


def size_of(text: str) -> int:
    """Rows as a whole number or as 1e6; at least 2,000, which the folds need."""
    return int(at_least(2000, float)(text))


def main(arguments: list[str] | None = None) -> None:
    options = parser("Seconds and peak memory of every stage as a panel grows, beside the peers' datasets and loaders.")
    options.add_argument("--sizes", type=size_of, nargs="+", default=[10**4, 10**5, 10**6], metavar="ROWS", help="such as 1e6")
    options.add_argument("--family", choices=sorted(set(FAMILIES) - {"gradient_boosting"}), default="tcn", help="whose network")
    options.add_argument("--stages", choices=list(STAGES), nargs="+", default=list(STAGES), help="each needs those before it")
    options.add_argument("--batches", type=at_least(10), default=100, help="batches of loading and of training")
    options.add_argument("--limit-seconds", type=at_least(1, float), default=600.0, help="when a stage or peer gives up")
    options.add_argument("--limit-gb", type=at_least(0.1, float), default=16.0, help="where a stage or peer gives up")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter with them")
    options.add_argument("--no-peers", action="store_true", help="pytorch-forecasting alone, which we carry ourselves")
    options.add_argument("--folder", type=Path, help="for panels and artefacts meanwhile; None: the system's")
    options.add_argument("--keep", action="store_true", help="what --json's file has of other sizes and stages stays in it")
    given = options.parse_args(arguments)
    if given.keep and (given.json is None or not given.json.exists()):
        raise UserError(f"--keep wants the file of --json to be there, and {given.json} is not.")
    if not given.no_peers and not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first or give --no-peers.")
    here = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale_stages", "pytorch_forecasting"]
    peers: dict[str, Sequence[str]] = {"pytorch_forecasting": here}
    if not given.no_peers:
        peers |= {name: [str(given.peers.absolute()), "-P", str(PROGRAM), name] for name in PEERS}
    stages = [name for name in STAGES if name in given.stages]
    limits = (given.limit_seconds, given.limit_gb)
    found = measure(given.sizes, stages, peers, given.family, given.batches, limits, given.folder)
    if given.keep:
        found = with_earlier(found, read_json(given.json))
    others = [name for name in found["names"] if name not in STAGES]
    result = {
        **found, **exponents(found["figures"]), **ratios(found["figures"], others), "goals": GOALS,
        "family": given.family, "batches": given.batches, "limit_seconds": limits[0], "limit_gb": limits[1],
        "machine": machine() | {"torch_threads": 1}, "versions": versions(("torch", "numpy", "pandas", "pyarrow")),
        "notes": list(NOTES),
    }  # fmt: skip
    failed = [f"{name}: {each['words']}" for by in found["figures"].values() for name, each in by.items() if "words" in each]
    report(result, summary(result), given.json)
    if failed:
        raise UserError(f"not all was measured; at {failed[0]}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"scale: {error}", file=sys.stderr)
        raise SystemExit(2) from None
