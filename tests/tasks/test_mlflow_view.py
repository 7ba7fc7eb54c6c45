"""The view in which MLflow compares runs: it names only what they have (tests/tasks/test_tracking.py asks a store by it)."""

from __future__ import annotations

import json

from tasks.mlflow_view import comparison_view

METRICS = {
    "ensemble/wql": 0.02,
    "ensemble/coverage_90": 0.9,
    "ensemble/width_90": 1.5,
    "tcn/wql": 0.03,
    "seasonal_naive/wql": 1,
}


def test_the_view_shows_what_the_runs_have() -> None:
    view = json.loads(comparison_view(METRICS))
    metrics = [column for column in view["selectedColumns"] if column.startswith("metrics.")]
    assert metrics == [
        f"metrics.`{name}`" for name in ("ensemble/wql", "ensemble/coverage_90", "ensemble/width_90", "seasonal_naive/wql")
    ]
    bars = [
        chart.get("selectedMetricKeys", [chart["metricKey"]]) for chart in view["compareRunCharts"] if chart["type"] == "BAR"
    ]
    assert bars[0] == ["ensemble/wql"] and bars[-1] == ["ensemble/wql", "seasonal_naive/wql", "tcn/wql"]
    first, *folded = view["compareRunSections"]
    assert first["display"] and {chart["metricSectionId"] for chart in view["compareRunCharts"]} == {first["uuid"]}
    assert [(section["name"], section["display"]) for section in folded] == [
        ("ensemble", False),
        ("seasonal_naive", False),
        ("tcn", False),
    ]
    assert len({chart["uuid"] for chart in view["compareRunCharts"]}) == len(view["compareRunCharts"])
    many = comparison_view([f"model {number}/{name}" for number in range(30) for name in ("wql", "crps")])
    assert len(many) < 20_000, "MLflow keeps no longer tag of an experiment"
