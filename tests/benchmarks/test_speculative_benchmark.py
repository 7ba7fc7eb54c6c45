"""The speculative benchmark at a tiny size: what it reports, and that each number has its goal's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speculative
from models.forecasters.autoregressive import Autoregressive
from models.forecasters.factory import build_forecaster

TINY = ["--layers", "2", "--width", "16", "--steps", "2", "--distil-steps", "2", "--rounds", "1", "--uncompiled"]


def test_it_reports_every_count_of_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speculative.main([*TINY, "--paths", "1", "3", "--lengths", "2", "--json", str(tmp_path / "sp.json")])
    result = json.loads((tmp_path / "sp.json").read_text())
    for count in (1, 3):
        assert result[f"speed_up_{count}"] > 0 and 0 <= result[f"acceptance_{count}"] <= 1
        assert 1 <= result[f"tokens_per_call_{count}"] <= 3 and result[f"length_{count}"] in (0.0, 2.0)
        assert (result[f"predicted_gain_{count}"] >= 1.1) == (result[f"length_{count}"] == 2.0)
    assert result["speed_up_worst"] == min(result["speed_up_1"], result["speed_up_3"])
    assert set(result["goals"]) <= set(result) and not result["compiled"]
    assert "tokens per call" in capsys.readouterr().out


@pytest.mark.parametrize("family", speculative.FAMILIES)
def test_every_family_can_be_the_target(family: str) -> None:
    panel = speculative.build_panel()
    model = build_forecaster(family, panel.schema, speculative.target_config(family, 16, 2))
    assert isinstance(model, Autoregressive)


def test_the_panel_is_predictable_and_the_same_again() -> None:
    first, second = speculative.build_panel(), speculative.build_panel()
    assert bool((first.rows == second.rows).all())
    series = first.rows[: speculative.LENGTH, 0]
    season = speculative.SEASON
    assert float((series[season:] - series[:-season]).var() / series.var()) < 0.1
