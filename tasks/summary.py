"""What a run leaves for people: where it lies, and results in a few lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.files import read_json
from tasks.terminal import aligned

METRICS = Path("metrics/test.json")
REPORT = Path("reports/report.html")
PROJECTION, MAP = Path("artifacts/projection"), "map.html"
COLUMNS = ("wql", "wape", "mase", "coverage_90", "joint_coverage_90", "width_90")


def load_metrics(root: Path) -> dict[str, float]:
    """``metrics/test.json``."""
    return dict(read_json(root / METRICS))


def leaderboard(metrics: dict[str, float]) -> list[dict[str, str]]:
    """One row a model, best WQL first; a metric that a model lacks is a dash."""
    models = sorted({key.split("/")[0] for key in metrics}, key=lambda model: metrics.get(f"{model}/wql", float("inf")))
    rows = []
    for model in models:
        cells = {name: metrics.get(f"{model}/{name}") for name in COLUMNS}
        rows.append({"model": model} | {name: "-" if value is None else f"{value:.4f}" for name, value in cells.items()})
    return rows


def leaderboard_text(metrics: dict[str, float]) -> str:
    """The leaderboard as aligned plain text."""
    return aligned(leaderboard_rows(metrics))


def leaderboard_rows(metrics: dict[str, float]) -> list[list[str]]:
    """The leaderboard as rows of text, the first of them headings."""
    return [["model", *COLUMNS], *(list(row.values()) for row in leaderboard(metrics))]


def guard_rows(guards: dict[str, Any]) -> list[list[str]]:
    """How far maps may be believed, a row a map, the first row headings."""
    names = list(next(iter(guards["maps"].values())))
    return [["map", *names], *([key, *(f"{row[name]:.3f}" for name in names)] for key, row in guards["maps"].items())]


CAUTION = "In t-SNE and UMAP the size of a group and the space between groups mean little."


def receipt_text(receipt: dict[str, Any]) -> str:
    """What was registered, and how it compares with the champion where it is a challenger."""
    if receipt["version"] is None:
        name = receipt["experiment"]
        return f"experiment {name} is not registered; `dvc exp apply {name}` and `weatherglass run` make it the challenger"
    head = f"registered {receipt['model']} version {receipt['version']} as @{receipt['alias']}"
    if "champion" not in receipt:
        return head
    champion = receipt["champion"]
    lines = [f"{head}; the champion is version {champion['version']} (each on its own test fold):"]
    for metric, value in receipt["metrics"].items():
        other = champion["metrics"].get(metric)
        lines.append(f"  {metric:<18} challenger {value:.4f}  champion {'-' if other is None else f'{other:.4f}'}")
    return "\n".join(lines)
