"""What the report says temperature and the joint band gained is what the scores say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from scipy import stats

from models.predictive import LEVELS, Predictive
from tasks.repairs import bin_calibration_error
from tasks.report import ReportData
from tasks.report_repairs import repairs
from tasks.summary import load_metrics

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))


def data(**metrics: float) -> ReportData:
    own = {f"ensemble/{key}": value for key, value in metrics.items()}
    return cast(ReportData, SimpleNamespace(metrics=own, ensemble="ensemble"))


def test_bin_calibration_error_is_small_for_a_true_forecast_and_large_for_an_overconfident_one() -> None:
    """The truth is drawn from the forecast; its likeliest bin is right as often as it says, up to sqrt(p (1 - p) / n)."""
    location = 2 * torch.randn((3000, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right, sharp = Predictive(location + NORMAL), Predictive(location + NORMAL / 5)
    target = right.sample(1, torch.Generator().manual_seed(2))[0]
    edges = torch.linspace(-3, 3, 9).expand(3000, 1, 9)
    assert bin_calibration_error(right, target, edges) < 3 * 15 * 0.5 / 3000**0.5 / 15**0.5
    assert bin_calibration_error(sharp, target, edges) > 0.2


def test_the_table_shows_before_after_and_ratio_and_the_band_beside_the_bound() -> None:
    shown = repairs(data(ece_before=0.04, ece_after=0.01, joint_width_90=8.0, bonferroni_width_90=10.0))
    assert [(row.name, row.before, row.after, row.ratio) for row in shown.rows] == [
        ("Quantile calibration error", "0.0400", "0.0100", "0.25")
    ]
    assert "20.0\u00a0% narrower than the 10 that Bonferroni's bound takes" in shown.sentences[0]
    assert "no finite band" in repairs(data(joint_width_90=8.0)).sentences[0]
    assert repairs(data(set_coverage_90=0.914, set_size_90=2.31)).sentences == (
        "The 90 % sets hold 91.4\u00a0% of test values and are 2.3 of a series' ten decile bins wide on average.",
    )
    assert repairs(data()).rows == repairs(data()).sentences == ()


def test_a_run_measures_them(evaluated_project: Path) -> None:
    metrics = load_metrics(evaluated_project)
    assert 0 <= metrics["ensemble/bin_ece_after"] < 0.5
    assert metrics["ensemble/bonferroni_width_90"] > metrics["ensemble/width_90"]
    assert metrics["ensemble/crps_before"] == pytest.approx(metrics["ensemble/crps_after"], rel=0.2)
