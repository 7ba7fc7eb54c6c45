"""What is said of many windows part by part is, to the bit, what `Predictive` says of all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.predictive_parts import PredictiveParts
from models.uncertainty import scores
from models.uncertainty.calibration import INTERVAL_LEVELS, Calibration
from models.uncertainty.conformal_scores import SCORES
from models.uncertainty.temperature import QuantileTemperature

N, HORIZON = 1000, 5


@pytest.fixture(scope="module")
def folds() -> list[tuple[Predictive, PredictiveParts, Tensor]]:
    """Two folds, each whole and in parts of 96 windows, with truths."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(2):
        centre = 10 * torch.randn((N, HORIZON, 1), generator=generator)
        values = (centre + torch.randn((N, HORIZON, len(LEVELS)), generator=generator).sort(-1).values).float()
        truth = (centre[..., 0] + 1.5 * torch.randn((N, HORIZON), generator=generator)).float()
        made.append((Predictive(values), PredictiveParts(values, rows=96), truth))
    return made


ASKED: dict[str, Callable[[Predictive, Tensor], object]] = {
    "median": lambda p, y: p.median,
    "moments": lambda p, y: p.moments(),
    "mean": lambda p, y: p.mean,
    "variance": lambda p, y: p.variance,
    "at": lambda p, y: p.at(3),
    "one level": lambda p, y: p.quantile(torch.tensor(0.37)),
    "a level a step": lambda p, y: p.quantile(torch.linspace(0.001, 0.999, HORIZON)),
    "a level a window": lambda p, y: p.quantile(torch.linspace(0.001, 0.999, N * HORIZON).view(N, HORIZON)),
    "tail": lambda p, y: p.tail_quantile(torch.tensor(1e-4), upper=True),
    "cdf": lambda p, y: p.cdf(y),
    "cdf of one": lambda p, y: p.cdf(torch.zeros((N, 1))),
    "log_prob": lambda p, y: p.log_prob(y),
    "values": lambda p, y: p.values,
    "levels": lambda p, y: p.levels,
    "crps": lambda p, y: scores.crps(p, y),
    "reliability": lambda p, y: scores.reliability(p, y),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_is_that_of_all_windows_at_once(
    name: str, folds: list[tuple[Predictive, PredictiveParts, Tensor]]
) -> None:
    whole, parts, truth = folds[0]
    torch.testing.assert_close(ASKED[name](parts, truth), ASKED[name](whole, truth), rtol=0, atol=0)


def test_sums_over_windows_differ_by_rounding_alone(folds: list[tuple[Predictive, PredictiveParts, Tensor]]) -> None:
    whole, parts, truth = folds[0]
    assert scores.wql(parts, truth) == pytest.approx(scores.wql(whole, truth), rel=1e-12)


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("groups", [None, [str(index % 7) for index in range(N)]])
def test_a_calibration_fitted_in_parts_is_that_of_the_whole_folds(
    score: str, groups: list[str] | None, folds: list[tuple[Predictive, PredictiveParts, Tensor]]
) -> None:
    first, second = folds
    whole = Calibration.fit("per_step", (first[0], first[2]), (second[0], second[2]), score, groups, 9)
    parts = Calibration.fit("per_step", (first[1], first[2]), (second[1], second[2]), score, groups, 9)
    assert parts.state() == whole.state()
    names = [str(index % 7) for index in range(N)]
    repaired = parts.apply(second[1])
    assert isinstance(repaired, PredictiveParts), "temperature reads nothing yet"
    for level in INTERVAL_LEVELS:
        given = parts.interval(repaired, level, names), whole.interval(whole.apply(second[0]), level, names)
        torch.testing.assert_close(*given, rtol=0, atol=0)
    torch.testing.assert_close(parts.joint.band(repaired), whole.joint.band(whole.apply(second[0])), rtol=0, atol=0)


def test_a_temperature_is_the_least_of_the_loss_over_all_windows_at_once(
    folds: list[tuple[Predictive, PredictiveParts, Tensor]],
) -> None:
    """The loss in parts of 512 windows, beside the plain formula on all of them."""
    from models.predictive import pinball_loss
    from models.uncertainty.temperature import SIDES, _golden_section, _minimise_stretch

    whole, _, truth = folds[0]
    for side in SIDES:
        levels, median = whole.levels[side], whole.median[..., None]
        offset = whole.values[..., side] - median
        weight = 1.0 / (whole.values[..., -1] - whole.values[..., 0]).mean()

        def plain(log_factor: Tensor, median=median, offset=offset, levels=levels, weight=weight) -> Tensor:  # type: ignore[no-untyped-def]
            stretched = median + offset * log_factor.exp()[:, None]
            return (pinball_loss(stretched, truth.double(), levels).mean(-1) * weight).mean(0)

        expected = _golden_section(plain, HORIZON, 3.0)
        assert torch.equal(_minimise_stretch(whole, truth.double(), side, False), expected)


def test_repairs_follow_one_another(folds: list[tuple[Predictive, PredictiveParts, Tensor]]) -> None:
    whole, parts, _ = folds[0]
    wider = QuantileTemperature(torch.full((HORIZON,), 1.5).double(), torch.full((HORIZON,), 2.0).double())
    twice = wider.apply(wider.apply(parts))
    torch.testing.assert_close(twice.values, wider.apply(wider.apply(whole)).values, rtol=0, atol=0)
