"""Write the README's table of measured figures from docs/measured/*.json.

    python tools/measured.py [--run ROOT]    # --run copies metrics/test.json of a finished run first

chicago.json comes from `make run`, loader.json from `python -m benchmarks.loader --json docs/measured/loader.json`, and
accuracy_<dataset>.json from `python -m benchmarks.accuracy`, and uncertainty.json, overhead.json, serving.json, scale.json,
many.json and projection.json from the benchmarks of these names.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
MEASURED = HOME / "docs" / "measured"
START, END = "<!-- measured: written by tools/measured.py -->", "<!-- end of measured -->"
COLUMNS = ("wql", "wape", "mase", "coverage_90", "joint_coverage_90", "width_90")
PUBLIC = {
    "m4_hourly": "M4 hourly (414 series, the 48 hours after each)",
    "etth1": "ETTh1 (7 series, the last 20 windows of 48 hours)",
}


def leaderboard(metrics: dict[str, float]) -> list[str]:
    metrics = {key: value for key, value in metrics.items() if "/" in key}
    models = sorted({key.split("/")[0] for key in metrics}, key=lambda model: metrics[f"{model}/wql"])
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for model in models:
        values = (metrics.get(f"{model}/{column}") for column in COLUMNS)
        lines.append(f"| {model} | " + " | ".join("-" if value is None else f"{value:.4f}" for value in values) + " |")
    return lines


def table() -> str:
    metrics = json.loads((MEASURED / "chicago.json").read_text(encoding="utf-8"))
    loader = json.loads((MEASURED / "loader.json").read_text(encoding="utf-8"))
    lines = [
        "Default data, test = the last 364 days, a cutoff every 14 days, horizon 14, 20 series (`make run`):",
        "",
        *leaderboard(metrics),
        "",
        f"The gate flags {100 * metrics['ensemble/ood_false_alarm_rate']:.1f} % of clean test windows at a nominal 5 %; its "
        f"AUROC, averaged over kinds of perturbed windows it was not tuned on, is {metrics['ensemble/ood_auroc']:.2f}.",
        "",
        f"Loader against pytorch-forecasting's on {loader['rows']:,} rows (`python -m benchmarks.loader`): "
        f"{loader['windows_per_s_ratio']:.0f} times the windows a second, built {loader['build_ratio']:.0f} times as fast "
        f"({loader['build_ratio_with_check']:.1f} times with our validation of the data counted in).",
    ]
    for name, told in PUBLIC.items():
        path = MEASURED / f"accuracy_{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        minutes = result["seconds"]["ours"] / 60
        lines += [
            "",
            f"{told}; two networks of each family, {minutes:.0f} minutes for all of ours and at most as long for each peer "
            f"(`python -m benchmarks.accuracy --dataset {name}`):",
            "",
            *leaderboard(result),
        ]
    if (MEASURED / "uncertainty.json").exists():
        lines += ["", *intervals(json.loads((MEASURED / "uncertainty.json").read_text(encoding="utf-8")))]
    for name, told_by in (
        ("overhead", overhead),
        ("serving", serving),
        ("projection", projection),
        ("scale", scale),
        ("many", many),
    ):
        if (MEASURED / f"{name}.json").exists():
            lines += ["", *told_by(json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8")))]
    return "\n".join(lines)


def overhead(result: dict[str, Any]) -> list[str]:
    """What Prefect, MLflow and DVC cost."""
    return [
        f"Prefect, MLflow and DVC add {result['overhead_seconds']:.0f} s ({100 * result['overhead_share']:.1f} %) to the "
        f"{result['bare_seconds']:.0f} s of the default run's bare work; `dvc repro` with nothing to do takes "
        f"{result['no_op_seconds']:.1f} s (`python -m benchmarks.overhead`)."
    ]


def serving(result: dict[str, Any]) -> list[str]:
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


def projection(result: dict[str, Any]) -> list[str]:
    """Seconds and trustworthiness of maps, ours and the peers'."""
    lines = [
        f"Maps of {result['rows']:,} rows of {result['columns']} columns; trustworthiness and neighbours kept at "
        f"{result['neighborhood']} neighbours (`python -m benchmarks.projection`):",
        "",
        "| map | seconds | trustworthiness | neighbours kept |",
        "|---|---|---|---|",
    ]
    for name, found in result["methods"].items():
        figures = f"{found['seconds']:.1f} | {found['trustworthiness']:.4f} | {found['preservation']:.4f}"
        lines.append(f"| {name.replace('_', ' ')} | {figures} |")
    return lines


def scale(result: dict[str, Any]) -> list[str]:
    """Seconds and peak memory of each stage and peer by size, and where one gave up."""
    sizes = [str(rows) for rows in result["rows"]]
    lines = [
        f"The path as a panel grows, one thread, one {result['family']} network; a stage or peer gives up at "
        f"{result['limit_seconds']:.0f} s or {result['limit_gb']:.0f} GB (`python -m benchmarks.scale`):",
        "",
        "| stage | " + " | ".join(f"{int(rows):,} rows" for rows in sizes) + " | exponent |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for name in result["names"]:
        by_rows, cells = result["figures"][name], []
        for found in (by_rows.get(rows, {}) for rows in sizes):
            measured = f"{found.get('seconds', 0):.2f} s, {found.get('peak_mb', 0):,.0f} MB" if "seconds" in found else "-"
            cells.append(f"gave up: {found['gave_up']}" if "gave_up" in found else measured)
        exponent = result.get(f"exponent_{name}")
        shown = "-" if exponent is None else f"{exponent:.2f}"
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + f" | {shown} |")
    return lines


def many(result: dict[str, Any]) -> list[str]:
    """How long forecasts of very many series take."""
    lines = [
        f"Forecasts of many series with intervals and scores of strange input, by one {result['family']} network trained on "
        f"{result['trained']:,}, one thread (`python -m benchmarks.many`):",
        "",
        "| series | seconds | peak MB |",
        "|---|---|---|",
    ]
    for count, found in result["figures"].items():
        figures = (
            f"gave up: {found['gave_up']} | -" if "gave_up" in found else f"{found['seconds']:.1f} | {found['peak_mb']:,.0f}"
        )
        lines.append(f"| {int(count):,} | {figures} |")
    return lines


def intervals(result: dict[str, Any]) -> list[str]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a project folder with a finished run on the default data")
    run = parser.parse_args().run
    MEASURED.mkdir(parents=True, exist_ok=True)
    if run is not None:
        shutil.copyfile(run / "metrics/test.json", MEASURED / "chicago.json")
    readme = HOME / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(START)
    readme.write_text(f"{head}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
