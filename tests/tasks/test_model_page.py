"""What MLflow's pages say: the leaderboard of a run, the guarantee card of a version."""

from __future__ import annotations

from tasks.model_page import markdown_table, run_note, version_note


def test_a_table_keeps_its_cells_whatever_they_hold() -> None:
    assert markdown_table([("a", "b"), ("x|y", "two\nlines")]) == "| a | b |\n| --- | --- |\n| x\\|y | two lines |"


def test_a_run_tells_its_leaderboard_best_first_and_what_it_is_a_run_of() -> None:
    note = run_note({"tcn/wql": 0.03, "ensemble/wql": 0.02}, {"git_commit": "abc"}, "4", "c0ffee")
    assert note.index("ensemble") < note.index("tcn") and "0.0200" in note
    assert "| git_commit | `abc` |" in note and "[Report](#/experiments/4/runs/c0ffee/artifacts/report.html?" in note


def test_a_version_tells_its_metrics_and_its_guarantee() -> None:
    note = version_note({"assumption": "exchangeable windows", "alpha": 0.1}, {"wql": 0.0251})
    assert "| wql | 0.0251 |" in note
    assert "| Assumption | exchangeable windows | What must be true of the new data for the guarantee to hold. |" in note
