"""The repairs of one model: intervals by score and by group, bands beside one another, and their state as JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.calibration import INTERVAL_LEVELS, Calibration
from models.uncertainty.conformal import conformal_rank
from models.uncertainty.scores import coverage

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
HORIZON = 5
NAMES = ("calm", "rough", "rare")
WINDOWS = [*["calm"] * 60, *["rough"] * 60, *["rare"] * 3]


def fold(seed: int) -> tuple[Predictive, Tensor]:
    """Unit Normal forecasts for all, of truths that spread 0.5 in calm series and 2 elsewhere, and share a path's shift."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(WINDOWS), HORIZON), generator=generator, dtype=torch.float64)
    noise = 0.6 * noise + 0.8 * torch.randn((len(WINDOWS), 1), generator=generator, dtype=torch.float64)
    spread = torch.tensor([0.5 if name == "calm" else 2.0 for name in WINDOWS], dtype=torch.float64)
    return Predictive(NORMAL.expand(len(WINDOWS), HORIZON, -1)), noise * spread[:, None]


def fitted(score: str = "tail", grouped: bool = False) -> Calibration:
    return Calibration.fit("global", fold(1), fold(2), score, WINDOWS if grouped else None)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("score", ["tail", "cqr", "scaled_residual"])
def test_state_survives_json_bit_by_bit(score: str, grouped: bool) -> None:
    calibration = fitted(score, grouped)
    again = Calibration.from_state(json.loads(json.dumps(calibration.state())))
    predictive = calibration.apply(fold(3)[0])
    for level in INTERVAL_LEVELS:
        for one, other in zip(
            calibration.interval(predictive, level, WINDOWS), again.interval(predictive, level, WINDOWS), strict=True
        ):
            assert torch.equal(one, other)
    assert torch.equal(torch.stack(calibration.joint.band(predictive)), torch.stack(again.joint.band(predictive)))
    assert torch.equal(torch.stack(calibration.bonferroni.band(predictive)), torch.stack(again.bonferroni.band(predictive)))
    assert again.grouped is grouped


@pytest.mark.parametrize("score", ["tail", "cqr", "scaled_residual"])
def test_groups_cover_their_own_rank_and_small_ones_get_the_radius_of_all(score: str) -> None:
    """The interval of the whole covers calm windows too often and rough ones too seldom; of their own groups, exactly k."""
    predictive, target = fold(2)
    marginal, grouped = fitted(score), fitted(score, grouped=True)
    scaled = grouped.apply(predictive)
    for name, rank in ((name, conformal_rank(60, 0.9)) for name in NAMES[:2]):
        mine = torch.tensor([each == name for each in WINDOWS])
        count = coverage(*grouped.interval(scaled, 90, WINDOWS), target)[mine].sum(0)
        assert ((count == rank) | (count == rank + 1)).all(), "a bound's slack may take in the next"
    over_all = coverage(*marginal.interval(scaled, 90, WINDOWS), target)
    assert over_all[:60].double().mean() > 0.97
    assert over_all[60:120].double().mean() < 0.87
    lower, upper = grouped.interval(scaled, 90, ["rare"] * len(WINDOWS))
    unseen = grouped.interval(scaled, 90, ["never seen"] * len(WINDOWS))
    expected = marginal.interval(scaled, 90, WINDOWS)
    for mine, of_all in zip((lower, upper, *unseen), expected * 2, strict=True):
        torch.testing.assert_close(mine, of_all)


def test_a_joint_band_is_narrower_than_the_union_bound_where_errors_go_together() -> None:
    calibration = fitted()
    predictive = calibration.apply(fold(3)[0])
    width = lambda bounds: float((bounds[1] - bounds[0]).mean())  # noqa: E731
    assert width(calibration.joint.band(predictive)) < width(calibration.bonferroni.band(predictive))


def test_point_masses_that_miss_get_no_silently_narrow_interval() -> None:
    """A forecast with no spread that is off by one in every window: no finite multiple of its spread is known to reach."""
    still = Predictive(torch.zeros(40, HORIZON, len(LEVELS)))
    near = torch.linspace(0.0, 1e-3, 40, dtype=torch.float64)[:, None].expand(40, HORIZON)
    off = torch.ones(40, HORIZON, dtype=torch.float64)
    calibration = Calibration.fit("none", (still, near), (still, off))
    lower, upper = calibration.interval(still, 90, [])
    assert (lower == -math.inf).all()
    assert (upper == math.inf).all()
