"""Epistemic uncertainty falls with data and aleatoric tracks the noise; entropy splits into its two parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty.decomposition import bin_index, bin_probabilities, entropy, split_entropy
from models.uncertainty.ensemble import decompose

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
MEMBERS = 40
GRID = np.linspace(-0.9, 0.9, 7)
Split = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sigma(x: np.ndarray) -> np.ndarray:
    """Known noise of the heteroscedastic problem y = 1 + 2 x + sigma(x) e."""
    return np.exp(-0.5 + x)


def ensemble(count: int, seed: int) -> Tensor:
    """Members' quantiles ``(M, 7, Q)`` at `GRID`: each is fitted to a bootstrap of ``count`` draws.

    Mean by least squares; log sigma by least squares on log |residual|, whose expectation is log sigma + E log |e|.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=count)
    y = 1 + 2 * x + sigma(x) * rng.normal(size=count)
    shift = -0.5 * (np.euler_gamma + math.log(2.0))  # E log |e|
    members = []
    for _ in range(MEMBERS):
        chosen = rng.integers(count, size=count)
        design, target = np.column_stack([np.ones(count), x[chosen]]), y[chosen]
        line = np.linalg.lstsq(design, target, rcond=None)[0]
        spread = np.linalg.lstsq(design, np.log(np.abs(target - design @ line)) - shift, rcond=None)[0]
        mean, deviation = (parameters[0] + parameters[1] * GRID for parameters in (line, spread))
        members.append(torch.from_numpy(mean)[:, None] + torch.from_numpy(np.exp(deviation))[:, None] * NORMAL)
    return torch.stack(members)


def least_squares_variance(count: int) -> np.ndarray:
    """Var of the fitted mean at `GRID` with weights of the sandwich: (X'X)^-1 X' diag(sigma^2) X (X'X)^-1, X random."""
    x = np.linspace(-1, 1, 20001)
    design = np.column_stack([np.ones_like(x), x])
    bread = np.linalg.inv(design.T @ design / len(x))
    meat = (design * (sigma(x) ** 2)[:, None]).T @ design / len(x)
    at = np.column_stack([np.ones_like(GRID), GRID])
    return np.einsum("ij,jk,ik->i", at, bread @ meat @ bread / count, at)


def parts_mean_what_they_say(split: Split) -> bool:
    """Aleatoric is sigma^2 and epistemic the variance of the fit, at little and at much data, averaged over 8 data sets.

    The variance of 40 members has relative error sqrt(2 / 39) = 0.23 a data set, so 0.08 over 8: four errors and a bias of
    the bootstrap of 0.1 or so stay below 0.5. The fit of log sigma errs by at most 2 pi / sqrt(8 n) at the ends of the grid.
    """
    weights = torch.full((MEMBERS,), 1 / MEMBERS)
    for count in (100, 1600):
        parts = [split(ensemble(count, seed), weights) for seed in range(8)]
        aleatoric, epistemic = (np.mean([part[i].numpy() for part in parts], axis=0) for i in (0, 1))
        if np.abs(epistemic / least_squares_variance(count) - 1).max() > 0.5:
            return False
        if np.abs(0.5 * np.log(aleatoric / sigma(GRID) ** 2)).max() > 4 * 2 * math.pi / math.sqrt(8 * count * 8) + 0.05:
            return False
    return True


def test_epistemic_falls_with_data_and_aleatoric_tracks_the_noise() -> None:
    assert parts_mean_what_they_say(decompose)


def test_a_split_with_its_parts_exchanged_or_pooled_is_rejected() -> None:
    def exchanged(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        aleatoric, epistemic = decompose(values, weights)
        return epistemic, aleatoric

    def unsquared(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        aleatoric, epistemic = decompose(values, weights)
        return aleatoric, epistemic.sqrt()

    def total_as_epistemic(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        aleatoric, epistemic = decompose(values, weights)
        return aleatoric, aleatoric + epistemic

    for mutant in (exchanged, unsquared, total_as_epistemic):
        assert not parts_mean_what_they_say(mutant)


def probabilities(members: int = 5, bins: int = 6) -> Tensor:
    return torch.randn(members, 4, 3, bins, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


def test_entropy_in_nats() -> None:
    torch.testing.assert_close(entropy(torch.full((8,), 1 / 8)), torch.tensor(math.log(8), dtype=torch.float64))
    assert float(entropy(torch.tensor([0.0, 1.0, 0.0]))) == 0.0
    for row in probabilities().flatten(0, 2)[:5]:
        assert float(entropy(row)) == pytest.approx(stats.entropy(row.numpy()))


def test_parts_sum_to_the_entropy_of_the_pool() -> None:
    members, weights = probabilities(), torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.float64)
    split = split_entropy(members, weights)
    assert split.total.shape == (4, 3)
    torch.testing.assert_close(split.total, entropy(torch.einsum("m,m...->...", weights, members)))
    torch.testing.assert_close(split.aleatoric, torch.einsum("m,m...->...", weights, entropy(members)))
    torch.testing.assert_close(split.aleatoric + split.epistemic, split.total)
    assert (split.epistemic > 0).all()


def test_extremes_by_hand() -> None:
    """Certain members that disagree are all epistemic; uncertain members that agree all aleatoric."""
    certain = split_entropy(torch.eye(4, dtype=torch.float64))
    assert [float(part) for part in certain] == pytest.approx([math.log(4), 0.0, math.log(4)])
    agreed = split_entropy(torch.full((4, 4), 0.25))
    assert [float(part) for part in agreed] == pytest.approx([math.log(4), math.log(4), 0.0])


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6])
def test_mutual_information_of_nearly_equal_members_is_never_negative(noise: float) -> None:
    row = torch.rand(1, 200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jitter = torch.randn(5, 200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    members = (row * (1 + noise * jitter)).log().softmax(-1)
    epistemic = split_entropy(members).epistemic
    assert (epistemic >= 0).all()
    assert float(epistemic.max()) <= 10 * noise**2 + 1e-12


@pytest.mark.parametrize(
    ("members", "weights", "said"),
    [
        (torch.ones(2, 3), None, "probabilities must be"),
        (torch.tensor([[1.5, -0.5]]), None, "probabilities must be"),
        (torch.full((2, 2), 0.5), torch.tensor([1.0, 1.0]), "weights must be"),
        (torch.full((2, 2), 0.5), torch.tensor([1.0]), "there are 2 members"),
    ],
)
def test_what_is_no_probability_is_refused(members: Tensor, weights: Tensor | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split_entropy(members, weights)


def test_bin_probabilities_of_a_normal() -> None:
    """Against the Normal's own, where quantiles are linear between levels: within the width of a level's cell."""
    edges = torch.linspace(-2, 2, 9)
    mass = bin_probabilities(Predictive(NORMAL.expand(2, 3, -1)), edges)
    assert mass.shape == (2, 3, 10)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    expected = np.diff(np.concatenate([[0.0], stats.norm.cdf(edges.numpy()), [1.0]]))
    np.testing.assert_allclose(mass[0, 0].numpy(), expected, atol=0.01)
    with pytest.raises(ValueError, match="do not fall"):
        bin_probabilities(Predictive(NORMAL), torch.tensor([1.0, 0.0]))


def test_bins_of_each_window_by_its_own_edges() -> None:
    """Equal edges leave an empty bin; a bin holds its upper edge, for probabilities and for truths alike."""
    edges = torch.tensor([[[-1.0, 0.0, 0.0]], [[-1.0, 0.5, 1.0]]])
    predictive = Predictive(NORMAL.expand(2, 3, -1))
    mass = bin_probabilities(predictive, edges)
    for window in range(2):
        torch.testing.assert_close(mass[window], bin_probabilities(Predictive(predictive.values[window]), edges[window, 0]))
    assert (mass[0, :, 2] == 0).all()
    assert bin_index(torch.tensor([[-3.0, 0.0, 0.1], [0.5, 0.6, 2.0]]), edges).tolist() == [[0, 1, 3], [1, 2, 3]]
