"""How MLflow shows the runs of a project without any set-up: a shared view, which MLflow keeps as a tag of the experiment.

MLflow keeps the columns and charts that a person chooses in the browser. What its button *Share* makes is a tag
``mlflow.sharedViewState.<key>`` and an address with ``viewStateShareKey=<key>``; we write such a tag ourselves, as JSON that
MLflow 3.17 reads: what is left out is as it is by default, and a tag that another version does not read shows its default view.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

SHARE_KEY = "weatherglass"
VIEW_TAG = f"mlflow.sharedViewState.{SHARE_KEY}"
KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"  # shown as "Machine learning": else MLflow asks, and offers pages for traces of chatbots
WHOLE_RUNS = "metrics.`ensemble/wql` >= 0 and tags.`weatherglass.kind` IS NOT NULL"  # not the stages below them
COLUMNS = ("wql", "crps", "coverage_90", "joint_coverage_90", "width_90", "ood_auroc")
TITLES = {
    "wql": "WQL, lower is better",
    "crps": "CRPS, lower is better",
    "coverage_90": "Coverage of the 90 % intervals, 0.90 is best",
    "joint_coverage_90": "Coverage of the joint 90 % band, 0.90 is best",
    "width_90": "Width of the 90 % intervals, lower is better at equal coverage",
}
NAIVE = "seasonal_naive/wql"
FIRST = "Which is better"
WIDTHS = {"metrics": 150, "tags": 220}  # pixels, so that headings are not cut off


def view_address(experiment_id: str, charts: bool = True) -> str:
    """Where the view is, below the address of MLflow's server."""
    mode = "compareRunsMode=CHART&" if charts else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&{mode}viewStateShareKey={SHARE_KEY}"


def run_address(experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Where a run's page is, or one of its artefacts, below the address of MLflow's server."""
    below = f"/artifacts/{artifact}" if artifact else ""
    return f"#/experiments/{experiment_id}/runs/{run_id}{below}?workflowType=machine_learning"


def comparison_view(metrics: Iterable[str]) -> str:
    """The view as the tag holds it: whole runs, best first, with the columns and charts that tell them apart.

    ``metrics`` are keys ``<model>/<metric>`` of a run. The ensemble's WQL comes first and beside it what the runs differ in,
    then its other metrics and WQL of every model; MLflow adds its own charts of all metrics, folded, a section a model.
    """
    known = sorted(set(metrics))
    models = sorted({key.rpartition("/")[0] for key in known if "/" in key})
    shown = [f"ensemble/{name}" for name in COLUMNS if f"ensemble/{name}" in known]
    charts = [_bars([key], TITLES[name]) for key in shown if (name := key.split("/")[1]) in TITLES]
    if {"ensemble/coverage_90", "ensemble/width_90"} <= set(known):
        charts.append(_scatter("ensemble/coverage_90", "ensemble/width_90"))
    every = [f"{model}/wql" for model in models if f"{model}/wql" in known]
    charts.append(_bars(every, "WQL of every model"))
    charts.insert(1, _differences())
    columns = [
        *(_column("metrics", key) for key in shown),
        *(_column("metrics", key) for key in every if key == NAIVE),
        _column("tags", "weatherglass.changed"),
        _column("tags", "weatherglass.kind"),
    ]
    view = {
        "searchFilter": WHOLE_RUNS,
        "orderByKey": _column("metrics", "ensemble/wql"),
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: WIDTHS[column.split(".")[0]] for column in columns},
        "isAccordionReordered": True,  # else sections are sorted by name
        "compareRunCharts": [
            chart | {"uuid": f"{SHARE_KEY}-{number}", "metricSectionId": SHARE_KEY, "deleted": False, "isGenerated": False}
            for number, chart in enumerate(charts)
        ],
        "compareRunSections": [
            _section(SHARE_KEY, FIRST, display=True) | {"columns": 2},
            *(_section(f"{SHARE_KEY}-{model}", model, display=False) for model in models),
        ],
    }
    return json.dumps(view, separators=(",", ":"))


def _column(kind: str, key: str) -> str:
    return f"{kind}.`{key}`"


def _section(uuid: str, name: str, display: bool) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": display, "isReordered": False, "deleted": False, "isGenerated": False}


def _bars(keys: Sequence[str], title: str) -> dict[str, Any]:
    more = {"selectedMetricKeys": list(keys)} if len(keys) > 1 else {}
    return {"type": "BAR", "runsCountToCompare": 10, "metricKey": keys[0], "displayName": title, **more}


def _scatter(across: str, up: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"}}
    return {"type": "SCATTER", "runsCountToCompare": 100, "displayName": "Coverage against width", **axes}


def _differences() -> dict[str, Any]:
    return {
        "type": "DIFFERENCE",
        "runsCountToCompare": 10,
        "chartName": "What the runs differ in",
        "displayName": "What the runs differ in",
        "compareGroups": ["Parameters", "Model metrics"],
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
