"""The tables of README.md and docs/, written from benchmarks/results.json.

    python -m benchmarks.tables            # after python -m benchmarks.all

Between ``<!-- measured: NAME ... -->`` and ``<!-- end of measured -->`` stands what was measured of each result named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import HOME, RESULTS
from benchmarks.scale_stages import STAGES
from benchmarks.steps import cells
from benchmarks.steps import header as step_header
from tasks.files import read_json

Result = dict[str, Any]
PAGES = ("README.md", "docs/scale.md")
BLOCK = re.compile(r"(<!-- measured: ([\w ]+) -->\n).*?(\n<!-- end of measured -->)", re.DOTALL)
COLUMNS = ("wql", "wape", "mase", "coverage_90", "joint_coverage_90", "width_90")
PUBLIC = {
    "m4_hourly": "M4 hourly (414 series, the 48 hours after each)",
    "etth1": "ETTh1 (7 series, the last 20 windows of 48 hours)",
}


def lines_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines in Markdown."""
    above, *below = (f"| {' | '.join(told)} |" for told in (header, *rows))
    return [above, "|---" * len(header) + "|", *below]


def leaderboard(metrics: Result) -> list[str]:
    """Models by WQL, lowest first, from keys ``<model>/<metric>``."""
    metrics = {key: value for key, value in metrics.items() if "/" in key}
    models = sorted({key.split("/")[0] for key in metrics}, key=lambda model: metrics[f"{model}/wql"])
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for model in models:
        values = (metrics.get(f"{model}/{column}") for column in COLUMNS)
        lines.append(f"| {model} | " + " | ".join("-" if value is None else f"{value:.4f}" for value in values) + " |")
    return lines


def chicago(metrics: Result) -> list[str]:
    """Scores of the default run, and how its alarm did."""
    return [
        "Default data, test = the last 364 days, a cutoff every 14 days, horizon 14, 20 series (`make run`):",
        "",
        *leaderboard(metrics),
        "",
        f"The gate flags {100 * metrics['ensemble/ood_false_alarm_rate']:.1f} % of clean test windows at a nominal 5 %; its "
        f"AUROC, averaged over kinds of perturbed windows it was not tuned on, is {metrics['ensemble/ood_auroc']:.2f}.",
    ]


def loader(result: Result) -> list[str]:
    """The loader beside pytorch-forecasting's."""
    return [
        f"Loader against pytorch-forecasting's on {result['rows']:,} rows (`python -m benchmarks.loader`): "
        f"{result['windows_per_s_ratio']:.0f} times the windows a second, built {result['build_ratio']:.0f} times as fast "
        f"({result['build_ratio_with_check']:.1f} times with our validation of the data counted in)."
    ]


def accuracy(result: Result) -> list[str]:
    """Scores of our forecasters and the peers on a public set."""
    name, minutes = result["dataset"], result["seconds"]["ours"] / 60
    return [
        f"{PUBLIC[name]}; two networks of each family, {minutes:.0f} minutes for all of ours and at most as long for each peer "
        f"(`python -m benchmarks.accuracy --dataset {name}`):",
        "",
        *leaderboard(result),
    ]


def overhead(result: Result) -> list[str]:
    """What Prefect, MLflow and DVC cost."""
    return [
        f"Prefect, MLflow and DVC add {result['overhead_seconds']:.0f} s ({100 * result['overhead_share']:.1f} %) to the "
        f"{result['bare_seconds']:.0f} s of the default run's bare work; `dvc repro` with nothing to do takes "
        f"{result['no_op_seconds']:.1f} s (`python -m benchmarks.overhead`)."
    ]


def serving(result: Result) -> list[str]:
    """Requests a second and latencies of the service and its peers."""
    lines = [
        f"The service beside `mlflow models serve` with the same bundle ({result['members']} networks) and one NeuralForecast "
        "model (NHITS) behind FastAPI; histories in every request but those by ids. Ours forecasts in two processes of one "
        f"thread and keeps {result['service_cores_weatherglass_100_saturated']:.1f} cores busy at saturation, MLflow's "
        f"{result['service_cores_mlflow_100_saturated']:.1f} and NeuralForecast's "
        f"{result['service_cores_neuralforecast_100_saturated']:.1f} (`python -m benchmarks.serving`):",
        "",
        "| service | series a request | clients | requests/s | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for key, clients in result["clients"].items():
        name, size = key.removesuffix("_one_client").removesuffix("_saturated").rsplit("_", 1)
        values = (f"{result[f'{kind}_{key}']:,.1f}" for kind in ("requests_per_s", "p50_ms", "p99_ms"))
        lines.append(f"| {name.replace('_', ' ')} | {size} | {clients} | " + " | ".join(values) + " |")
    return lines


def projection(result: Result) -> list[str]:
    """Seconds and trustworthiness of maps, ours and the peers'."""
    rows = [
        (name.replace("_", " "), f"{found['seconds']:.1f}", f"{found['trustworthiness']:.4f}", f"{found['preservation']:.4f}")
        for name, found in result["methods"].items()
    ]
    return [
        f"Maps of {result['rows']:,} rows of {result['columns']} columns; trustworthiness and neighbours kept at "
        f"{result['neighborhood']} neighbours (`python -m benchmarks.projection`):",
        "",
        *lines_of(("map", "seconds", "trustworthiness", "neighbours kept"), rows),
    ]


def scale(result: Result) -> list[str]:
    """Seconds and peak memory of each stage and peer by size, where one gave up, exponents, and the ratios."""
    sizes = [str(rows) for rows in result["rows"]]
    lines = [
        f"The path as a panel grows, one thread, one {result['family']} network; a stage or peer gives up at "
        f"{result['limit_seconds']:.0f} s or {result['limit_gb']:.0f} GB (`python -m benchmarks.scale`):",
        "",
        "| stage | " + " | ".join(f"{int(rows):,} rows" for rows in sizes) + " | exponent | of memory |",
        "|---|" + "---|" * (len(sizes) + 2),
    ]
    for name in result["names"]:
        by_rows, cells = result["figures"][name], []
        for found in (by_rows.get(rows, {}) for rows in sizes):
            measured = f"{found.get('seconds', 0):.2f} s, {found.get('peak_mb', 0):,.0f} MB" if "seconds" in found else "-"
            cells.append(f"gave up: {found['gave_up']}" if "gave_up" in found else measured)
        for fitted in (result.get(f"{kind}_{name}") for kind in ("exponent", "memory_exponent")):
            cells.append("-" if fitted is None else f"{fitted:.2f}")
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"- {told}" for told in ratios(result))]


def ratios(result: Result) -> list[str]:
    """A peer's dataset and batches over our prepare and batches, a sentence a peer, and with our ingest counted in."""
    lines = []
    for key in (key for key in result if key.startswith("ratio_") and not key.startswith("ratio_with")):
        peer, told = key.removeprefix("ratio_"), []
        for rows, value in result[key].items():
            with_ingest = result[f"ratio_with_ingest_{peer}"][rows]
            guess = ", extrapolated from where it gave up" * (int(rows) in result.get(f"extrapolated_{peer}", []))
            told.append(f"{value:.1f} at {int(rows):,} rows ({with_ingest:.1f} with our ingest{guess})")
        lines.append(f"{peer.replace('_', '-')}'s seconds to its dataset and batches, over ours: {', '.join(told)}.")
    return lines


def scale_in_short(result: Result) -> list[str]:
    """The longest panel that the path was taken through, its steepest stage and what the peers took."""
    rows = str(max(result["rows"]))
    stages = {name: by[rows] for name, by in result["figures"].items() if "seconds" in by.get(rows, {}) and name in STAGES}
    peak = max(stages, key=lambda name: stages[name]["peak_mb"])
    steep = max(set(STAGES) & {name.removeprefix("exponent_") for name in result}, key=lambda name: result[f"exponent_{name}"])
    minutes = sum(each["seconds"] for each in stages.values()) / 60
    told = [
        f"{int(rows):,} rows go through {len(stages)} stages from ingest to forecast in {minutes:.0f} minutes with one "
        f"thread and at most {stages[peak]['peak_mb'] / 1024:.1f} GB ({peak}); the steepest stage, {steep}, grows as rows to "
        f"the power of {result[f'exponent_{steep}']:.2f}."
    ]
    at = next((rows for rows in result["rows"] if rows >= 10**7), max(result["rows"]))
    for key in (key for key in result if key.startswith("ratio_") and not key.startswith("ratio_with")):
        peer = key.removeprefix("ratio_")
        guess = " (extrapolated from where it gave up)" * (at in result.get(f"extrapolated_{peer}", []))
        if str(at) in result[key]:
            times = f"{result[key][str(at)]:.1f} times as fast as {peer.replace('_', '-')}"
            told.append(f"Prepare and {result['batches']} batches at {at:,} rows: {times}{guess}.")
    return [" ".join(told) + " (`python -m benchmarks.scale`, [docs/scale.md](docs/scale.md))"]


def many(result: Result) -> list[str]:
    """How long forecasts of very many series take."""
    rows = []
    for count, found in result["figures"].items():
        gave_up = (f"gave up: {found['gave_up']}", "-") if "gave_up" in found else None
        rows.append((f"{int(count):,}", *(gave_up or (f"{found['seconds']:.1f}", f"{found['peak_mb']:,.0f}"))))
    return [
        f"Forecasts of many series with intervals and scores of strange input, by one {result['family']} network trained on "
        f"{result['trained']:,}, one thread (`python -m benchmarks.many`):",
        "",
        *lines_of(("series", "seconds", "peak MB"), rows),
    ]


def training(result: Result) -> list[str]:
    """Windows a second of our training and the peers', and the ratios to the best of them."""
    sides, rows = ("weatherglass", "neuralforecast", "gluonts", "pytorch_forecasting"), []
    for network in ("deepar", "tft", "tcn"):
        speeds = (result.get(f"windows_per_s_{side}_{network}") for side in sides)
        told = ("-" if speed is None else f"{speed:,.0f}" for speed in speeds)
        rows.append((network, *told, f"{result[f'{network}_ratio']:.2f}"))
    return [
        f"Training beside the peers, windows a second of one thread, medians of {result['rounds']} rounds "
        "(`python -m benchmarks.training`):",
        "",
        *lines_of(("network", "ours", "neuralforecast", "gluonts", "pytorch-forecasting", "over the best peer"), rows),
    ]


def steps(result: Result) -> list[str]:
    """A training step's cost, and how much less it is by other ways to run it."""
    rows = [(name, *cells(each, result["members"])) for name, each in result["families"].items()]
    return [
        f"A training step of {result['batch']} windows, one thread, and how many times less processor time it takes by other "
        "ways (`python -m benchmarks.steps`):",
        "",
        *lines_of(step_header(result["members"]), rows),
    ]


def startup(result: Result) -> list[str]:
    """What each command costs before it works."""
    rows = [(name, f"{each['help_s']:.2f}", f"{each['imports_s']:.2f}") for name, each in result["commands"].items()]
    return [
        "Seconds of processor time before a command works: its `--help`, and all that its flow may import "
        "(`python -m benchmarks.startup`):",
        "",
        *lines_of(("command", "`--help`", "imports"), rows),
    ]


def uncertainty(result: Result) -> list[str]:
    """Ours and the peers' 90 % intervals on each set, then alarms and doubt, from `benchmarks.uncertainty`."""
    lines = [
        "90 % intervals beside the peers' conformal methods around the same forecasts (`python -m benchmarks.uncertainty`); "
        "a set with one window a series has none of theirs:",
        "",
        "| set | intervals | coverage | mean width |",
        "|---|---|---|---|",
    ]
    for name in ("chicago", *PUBLIC):
        kinds = [key.split("/")[1] for key in result if key.startswith(f"{name}/") and key.endswith("/width_90")]
        peers = sorted(kind for kind in kinds if kind.startswith(("darts", "neuralforecast")))
        for kind in ("ensemble", *peers) if "ensemble" in kinds else ():
            values = (f"{result[f'{name}/{kind}/{key}_90']:.4g}" for key in ("coverage", "width"))
            lines.append(f"| {name} | {'ours' if kind == 'ensemble' else kind} | " + " | ".join(values) + " |")
    lines += [
        "",
        "Alarm for strange input (means over kinds of change it was not tuned on), error of the 80 % most certain forecasts "
        "over that of all (in brackets by the errors themselves, which nothing can beat), and quantile calibration error "
        "before and after temperature:",
        "",
        "| set | AUROC | FPR@95 | error at 80 % | ECE before | after |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in ("chicago", *PUBLIC) if f"{name}/ensemble/ood_auroc" in result):
        names = ("ood_auroc", "ood_fpr95", "error_ratio_80", "error_ratio_80_oracle", "ece_before", "ece_after")
        auroc, fpr95, ratio, oracle, before, after = (f"{result[f'{name}/ensemble/{key}']:.3f}" for key in names)
        lines.append(f"| {name} | {auroc} | {fpr95} | {ratio} ({oracle}) | {before} | {after} |")
    return lines


WRITERS: dict[str, Callable[[Result], list[str]]] = {
    "chicago": chicago,
    "loader": loader,
    "accuracy_m4_hourly": accuracy,
    "accuracy_etth1": accuracy,
    "uncertainty": uncertainty,
    "overhead": overhead,
    "serving": serving,
    "projection": projection,
    "training": training,
    "steps": steps,
    "startup": startup,
    "scale": scale,
    "scale_in_short": scale_in_short,
    "many": many,
}
"""What a block may name; ``scale_in_short`` is of the result ``scale``."""


def filled(text: str, results: Mapping[str, Result]) -> str:
    """``text`` with every block written anew; names without a result are left out. Raises KeyError for unknown names."""

    def block(found: re.Match[str]) -> str:
        parts = []
        for name in found[2].split():
            write, result = WRITERS[name], results.get(name.removesuffix("_in_short"))
            if result is not None:
                parts.append("\n".join(write(result)))
        return found[1] + ("\n" + "\n\n".join(parts) + "\n" if parts else "") + found[3]

    return BLOCK.sub(block, text)


def main() -> None:
    results = read_json(RESULTS)
    for name in PAGES:
        page: Path = HOME / name
        page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
