"""The temperature of each head type recovers a known distortion within its standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.heads import build_head
from models.uncertainty.scores import expected_calibration_error
from models.uncertainty.temperature import HEAD_TYPES, HeadTemperature, scaled_parameters

COUNT, HORIZON, FREEDOM, MEAN, DISPERSION = 3000, 2, 5.0, 20.0, 0.3


def forecasts(kind: str, truths: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Parameters ``(n, H, P)`` and truths ``(n, H)`` drawn so that the factor ``truths`` ``(n, H)`` repairs the former."""
    rng = np.random.default_rng(seed)
    factor, shape = truths.numpy(), tuple(truths.shape)
    location = rng.normal(size=shape) * 3
    if kind == "logits":
        true = rng.normal(size=(*shape, 8)) * 1.5
        target = (true + rng.gumbel(size=true.shape)).argmax(-1)
        parameters = true * factor[..., None]
    elif kind == "normal":
        target = location + 2.0 * factor * rng.normal(size=shape)
        parameters = np.stack([location, np.full(shape, 2.0)], axis=-1)
    elif kind == "student_t":
        target = location + 2.0 * factor * rng.standard_t(FREEDOM, size=shape)
        parameters = np.stack([location, np.full(shape, 2.0), np.full(shape, FREEDOM)], axis=-1)
    else:
        size = 1.0 / (DISPERSION * factor)
        target = rng.negative_binomial(size, size / (size + MEAN))
        parameters = np.stack([np.full(shape, MEAN), np.full(shape, DISPERSION)], axis=-1)
    return torch.from_numpy(parameters), torch.from_numpy(target)


def relative_error(kind: str, factor: float, count: int) -> float:
    """Standard error of log T: one over the root of its Fisher information from ``count`` truths."""
    if kind == "logits":  # of 1 / T it is the variance of the logits under the true probabilities
        true = np.random.default_rng(9).normal(size=(20000, 8)) * 1.5
        mass = np.exp(true) / np.exp(true).sum(1, keepdims=True)
        information = ((mass * true**2).sum(1) - (mass * true).sum(1) ** 2).mean()
    elif kind == "normal":
        information = 2.0
    elif kind == "student_t":
        information = 2.0 * FREEDOM / (FREEDOM + 3.0)  # Lange, Little and Taylor (1989), appendix B
    else:
        counts = np.arange(2000)

        def log_mass(log_factor: float) -> np.ndarray:
            size = 1.0 / (DISPERSION * math.exp(log_factor))
            return stats.nbinom.logpmf(counts, size, size / (size + MEAN))

        at, step = math.log(factor), 1e-4
        score = (log_mass(at + step) - log_mass(at - step)) / (2 * step)
        information = float((np.exp(log_mass(at)) * score**2).sum())
    return 1.0 / math.sqrt(count * information)


Fit = Callable[[str, Tensor, Tensor, str], Tensor]


def fit(kind: str, parameters: Tensor, target: Tensor, mode: str) -> Tensor:
    return HeadTemperature.fit(kind, parameters, target, mode).factor


def recovers(fit: Fit, kind: str, mode: str) -> bool:
    """Both a factor above and one below 1, each within 4.5 standard errors."""
    for factors in ((2.0, 2.0), (0.5, 0.5)) if mode == "global" else ((2.0, 0.5),):
        found = fit(kind, *forecasts(kind, torch.tensor(factors).expand(COUNT, -1)), mode)
        count = COUNT * HORIZON if mode == "global" else COUNT
        for value, truth in zip(found.tolist(), factors, strict=True):
            if abs(math.log(value / truth)) > 4.5 * relative_error(kind, truth, count):
                return False
    return True


@pytest.mark.parametrize("mode", ["global", "per_step"])
@pytest.mark.parametrize("kind", HEAD_TYPES)
def test_recovers_a_known_distortion(kind: str, mode: str) -> None:
    assert recovers(fit, kind, mode)


@pytest.mark.parametrize("kind", HEAD_TYPES)
def test_wrong_factors_are_rejected(kind: str) -> None:
    """A variance in the place of a deviation, the inverse, and doing nothing."""
    for mutant in (torch.square, torch.reciprocal, torch.ones_like):
        assert not recovers(lambda *inputs, mutant=mutant: mutant(fit(*inputs)), kind, "global")


@pytest.mark.parametrize("kind", HEAD_TYPES)
def test_each_group_has_its_own_factor_and_others_the_global_one(kind: str) -> None:
    groups = torch.arange(COUNT) % 2 * 3  # groups 0 and 3
    groups[-10:] = 7  # too few for a factor of its own
    truths = torch.where(groups == 0, 2.0, 0.5)[:, None].expand(-1, HORIZON)
    parameters, target = forecasts(kind, truths)
    temperature = HeadTemperature.fit(kind, parameters, target, "per_group", groups)
    assert temperature.groups.keys() == {0, 3}
    for group, truth in ((0, 2.0), (3, 0.5)):
        error = relative_error(kind, truth, int((groups == group).sum()) * HORIZON)
        assert abs(math.log(temperature.groups[group] / truth)) < 4.5 * error
    shared = HeadTemperature.fit(kind, parameters, target, "global").factor
    torch.testing.assert_close(temperature.factor, shared)
    scaled = temperature.apply(parameters[:4], torch.tensor([0, 7, 3, 99]))
    for row, factor in enumerate([temperature.groups[0], float(shared[0]), temperature.groups[3], float(shared[0])]):
        expected = scaled_parameters(kind, parameters[row], torch.full((HORIZON,), factor, dtype=torch.float64))
        torch.testing.assert_close(scaled[row], expected)


def test_a_group_whose_truths_are_all_one_has_the_global_factor() -> None:
    parameters, target = forecasts("normal", torch.ones(200, 2))
    groups = torch.arange(200) % 2
    target[groups == 1] = 4.0
    assert HeadTemperature.fit("normal", parameters, target, "per_group", groups).groups.keys() == {0}


def test_normal_factor_is_the_root_mean_square_of_z() -> None:
    parameters, target = forecasts("normal", torch.full((50, 2), 3.0))
    z = (target - parameters[..., 0]) / parameters[..., 1]
    expected = z.square().mean(0).sqrt()
    torch.testing.assert_close(fit("normal", parameters, target, "per_step"), expected)


def test_softening_halves_the_calibration_error_of_new_logits() -> None:
    temperature = HeadTemperature.fit("logits", *forecasts("logits", torch.full((2000, 2), 2.5)))
    parameters, target = forecasts("logits", torch.full((2000, 2), 2.5), seed=1)
    before = expected_calibration_error(parameters, target)
    after = expected_calibration_error(temperature.apply(parameters), target)
    assert before > 0.1
    assert after < 0.5 * before
    assert torch.equal(temperature.apply(parameters).argmax(-1), parameters.argmax(-1))


def test_counts_no_wilder_than_poissons_end_at_the_lower_bound() -> None:
    counts = torch.from_numpy(np.random.default_rng(0).binomial(40, 0.5, size=(500, 2)))
    parameters = torch.tensor([MEAN, DISPERSION]).expand(500, 2, 2)
    assert float(fit("negative_binomial", parameters, counts, "global")[0]) == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(
    ("name", "kind", "power"),
    [
        ("normal", "normal", 2.0),
        ("student_t", "student_t", 2.0),
        ("negative_binomial", "negative_binomial", 1.0),
        ("categorical", "logits", None),
    ],
)
def test_acts_on_what_a_head_gives(name: str, kind: str, power: float | None) -> None:
    """Means stay and the spread grows as it should; a categorical head's probabilities are those of logits / T."""
    torch.manual_seed(0)
    head = build_head(name, 4)
    loc, scale = torch.full((3,), 30.0), torch.full((3,), 5.0)
    parameters = head(torch.randn(3, HORIZON, 4), torch.randn(3, HORIZON)).detach()
    scaled = HeadTemperature(kind, torch.tensor([3.0, 1.0])).apply_to_head(parameters)
    torch.testing.assert_close(scaled[:, 1], parameters[:, 1])
    if power is None:
        torch.testing.assert_close(scaled[:, 0, :-1], parameters[:, 0, :-1] / 3.0)
        torch.testing.assert_close(scaled[..., -1], parameters[..., -1])
        return
    mean, variance = head.mean_variance(parameters, loc, scale)
    new_mean, new_variance = head.mean_variance(scaled, loc, scale)
    torch.testing.assert_close(new_mean, mean)
    rest = mean if name == "negative_binomial" else 0.0  # Poisson's part of the variance
    torch.testing.assert_close((new_variance - rest)[:, 0], 3.0**power * (variance - rest)[:, 0])


@pytest.mark.parametrize("kind", HEAD_TYPES)
def test_state_survives_json(kind: str) -> None:
    parameters, target = forecasts(kind, torch.full((80, 2), 2.0))
    groups = torch.arange(80) % 2
    temperature = HeadTemperature.fit(kind, parameters, target, "per_group", groups)
    again = HeadTemperature.from_state(json.loads(json.dumps(temperature.state())))
    assert torch.equal(again.apply(parameters, groups), temperature.apply(parameters, groups))


def test_none_changes_nothing() -> None:
    parameters, target = forecasts("student_t", torch.full((10, 2), 2.0))
    assert torch.equal(HeadTemperature.fit("student_t", parameters, target, "none").apply(parameters), parameters)


NAN = float("nan")
NORMAL_PARAMETERS = torch.tensor([1.0, 2.0]).expand(3, 1, 2)


@pytest.mark.parametrize(
    ("kind", "parameters", "target", "said"),
    [
        ("normal", NORMAL_PARAMETERS, [4.0, 4.0, 4.0], "fold is constant: all its truths are 4"),
        ("normal", NORMAL_PARAMETERS, [4.0, NAN, 5.0], "1 truths of 3 that are missing"),
        ("normal", NORMAL_PARAMETERS[:0], [], "no windows"),
        ("normal", NORMAL_PARAMETERS * 0, [1.0, 2.0, 3.0], "spread must be above 0"),
        ("gamma", NORMAL_PARAMETERS, [1.0, 2.0, 3.0], "'gamma' is not a head type"),
        ("logits", torch.zeros(3, 1, 2), [0.0, 1.0, 2.0], "indices of their 2 bins"),
        ("negative_binomial", NORMAL_PARAMETERS, [1.0, 2.5, 3.0], "are counts"),
        ("negative_binomial", NORMAL_PARAMETERS - torch.tensor([1.0, 0.0]), [1.0, 2.0, 3.0], "mean must be above 0"),
    ],
)
def test_what_cannot_be_fitted_is_named(kind: str, parameters: Tensor, target: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HeadTemperature.fit(kind, parameters, torch.tensor(target)[:, None])


def test_a_mode_per_group_takes_groups() -> None:
    with pytest.raises(ValueError, match="takes the group of every window"):
        HeadTemperature.fit("normal", NORMAL_PARAMETERS, torch.tensor([[1.0], [2.0], [3.0]]), "per_group")
    with pytest.raises(ValueError, match="'per_window' is not a temperature mode"):
        HeadTemperature.fit("normal", NORMAL_PARAMETERS, torch.tensor([[1.0], [2.0], [3.0]]), "per_window")
