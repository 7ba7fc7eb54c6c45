"""What MLflow's pages say in words: a run's, the registered model's and each version's, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.mlflow_view import KIND, KIND_TAG, VIEW_TAG, comparison_view, run_address, view_address
from tasks.report_card import card_rows
from tasks.summary import leaderboard_rows
from tasks.tracking_store import current_client, retry

NOTE_TAG = "mlflow.note.content"
ABOUT_MODEL = (
    "Probabilistic forecasts with intervals, a joint band, an alarm for strange input and the right to abstain.\n\n"
    "`@champion` answers forecasts, `@challenger` is the newest that has not met it yet, `@previous_champion` is what "
    "`weatherglass rollback` brings back. Each version's page has its guarantee card; its tag `weatherglass.decisions` says "
    "what was decided of it and why.\n\n"
    "    weatherglass forecast --output forecast.parquet\n"
)
ABOUT_EXPERIMENT = (
    "**Which run is better, and why?** [Charts]({charts}) and [table]({table}) of whole runs, best first.\n\n"
    "A run of kind `pipeline` or `experiment` is a whole run of the pipeline, with one for each stage and member below it. "
    "Metrics are named `<model>/<metric>`: `ensemble/wql`, `ensemble/crps` (lower is better), `ensemble/coverage_90` (0.90 is "
    "best), `ensemble/width_90` (lower at equal coverage). The tag `weatherglass.changed` says which params differ from the "
    "committed ones. Each run's description has its leaderboard, and its artefacts the report (`report.html`) and the map of "
    "embeddings (`map.html`).\n"
)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them headings, as a table; what would end a cell is escaped."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run_note(metrics: Mapping[str, float], identity: Mapping[str, str], experiment_id: str, run_id: str) -> str:
    """A pipeline run's description: where to look, its leaderboard and what it is a run of."""
    about = [["of", "identity"], *([key, f"`{value}`"] for key, value in identity.items())]
    board = markdown_table(leaderboard_rows(dict(metrics)))
    report, map_ = (run_address(experiment_id, run_id, page) for page in ("report.html", "map.html"))
    links = f"[Report]({report}), [map of embeddings]({map_}), [beside other runs]({view_address(experiment_id)})"
    return f"{links}\n\n### Test fold, by WQL\n\n{board}\n\n{markdown_table(about)}\n"


def version_note(card: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """A version's description: its metrics on the test fold and its guarantee card."""
    shown = markdown_table([["metric", "test fold"], *([name, f"{value:.4f}"] for name, value in metrics.items())])
    rows = [["", "what is guaranteed", "meaning"], *([row.label, "; ".join(row.lines), row.meaning] for row in card_rows(card))]
    return f"{shown}\n\n### Guarantee card\n\n{markdown_table(rows)}\n"


def describe_run(run_id: str, metrics: Mapping[str, float], identity: Mapping[str, str]) -> None:
    """Set a run's description."""
    client = current_client()
    experiment_id = str(retry(client.get_run, run_id).info.experiment_id)
    retry(client.set_tag, run_id, NOTE_TAG, run_note(metrics, identity, experiment_id, run_id))


def describe_experiment(run_id: str, metrics: Iterable[str]) -> None:
    """Set the view in which a run's experiment compares its runs, and its kind and description where a person has set none.

    ``metrics`` are the keys of the run's metrics.
    """
    client = current_client()
    experiment = retry(client.get_experiment, retry(client.get_run, run_id).info.experiment_id)
    number = experiment.experiment_id
    addresses = {"charts": view_address(number), "table": view_address(number, charts=False)}
    own = {KIND_TAG: KIND, NOTE_TAG: ABOUT_EXPERIMENT.format(**addresses)}
    tags = {key: value for key, value in own.items() if not experiment.tags.get(key)} | {VIEW_TAG: comparison_view(metrics)}
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            retry(client.set_experiment_tag, number, key, value)


def describe_version(name: str, version: str, card: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Set a version's description, and the registered model's where a person has not written one."""
    client = current_client()
    if not retry(client.get_registered_model, name).description:
        retry(client.update_registered_model, name, ABOUT_MODEL)
    retry(client.update_model_version, name, version, version_note(card, metrics))
