"""Results as text: the best model first, nothing made up where a metric is missing."""

from __future__ import annotations

from tasks.summary import leaderboard, leaderboard_text, receipt_text

METRICS = {
    "tcn/wql": 0.03,
    "tcn/coverage_90": 0.88,
    "ensemble/wql": 0.02,
    "ensemble/joint_coverage_90": 0.91,
    "ensemble/aurc": 0.4,
    "seasonal_naive/wql": 0.05,
}


def test_models_are_ordered_by_wql_and_a_missing_metric_is_a_dash() -> None:
    rows = leaderboard(METRICS)
    assert [row["model"] for row in rows] == ["ensemble", "tcn", "seasonal_naive"]
    assert (rows[0]["wql"], rows[0]["joint_coverage_90"], rows[0]["coverage_90"]) == ("0.0200", "0.9100", "-")
    assert rows[1]["joint_coverage_90"] == "-"


def test_the_text_is_a_table_whose_columns_line_up() -> None:
    lines = leaderboard_text(METRICS).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:2] == ["model", "wql"]
    start = lines[0].index("wql")
    assert [line[start : start + 6].strip() for line in lines] == ["wql", "0.0200", "0.0300", "0.0500"]


def test_a_receipt_says_what_was_registered_and_how_a_challenger_compares() -> None:
    receipt = {"model": "weatherglass", "version": "1", "alias": "champion", "metrics": {"wql": 0.02}}
    assert receipt_text(receipt) == "registered weatherglass version 1 as @champion"
    champion = {"version": "1", "metrics": {"wql": 0.03}}
    challenger = receipt | {"version": "2", "alias": "challenger", "metrics": {"wql": 0.02, "crps": 1.0}, "champion": champion}
    lines = receipt_text(challenger).splitlines()
    assert "version 2 as @challenger; the champion is version 1" in lines[0]
    assert lines[1].split() == ["wql", "challenger", "0.0200", "champion", "0.0300"]
    assert lines[2].split() == ["crps", "challenger", "1.0000", "champion", "-"]
