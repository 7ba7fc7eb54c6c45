"""The energy alarm is a p-value that holds its rate, also together with another alarm."""

from __future__ import annotations

import torch
from scipy import stats

from models.uncertainty.energy import EnergyAlarm, either_p_value


def logits(count: int, seed: int, lower: float = 0.0) -> torch.Tensor:
    return torch.randn((count, 3, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - lower


def test_low_logits_raise_it_and_ordinary_ones_at_its_rate_alone() -> None:
    """Of 4000 new windows the share flagged at 5 % lies in the beta-binomial band of 199 scores, 1 - 1e-4."""
    alarm = EnergyAlarm.fit(logits(199, 0))
    again = EnergyAlarm.from_tensors(alarm.tensors())
    score = again.score(logits(4000, 1))
    assert torch.equal(score, alarm.score(logits(4000, 1)))
    flagged = int((again.p_value(score) <= 0.05).sum())
    law = stats.betabinom(4000, 10, 190)  # the ten largest of 199 scores and a new one
    assert law.ppf(5e-5) <= flagged <= law.ppf(1 - 5e-5)
    assert (again.p_value(again.score(logits(50, 2, lower=3.0))) == 1 / 200).all()


def test_either_alarm_keeps_the_rate_however_the_two_depend() -> None:
    first = torch.rand(100_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    other = torch.rand(100_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for second in (first, 1 - first, other):
        share = float((either_p_value(first, second) <= 0.05).double().mean())
        assert share <= 0.05 + 4 * (0.05 * 0.95 / 100_000) ** 0.5
    assert float(either_p_value(torch.tensor([0.9]), torch.tensor([0.8]))) == 1.0
