"""Guards of a map against scikit-learn, SciPy and plain sets, and what they say of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from models.projection.arrangement import distance_correlation, procrustes_similarity
from models.projection.neighbours import chance_preservation, neighbourhoods


def points(n: int = 600, dims: int = 12, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Points far from the origin, and their first two coordinates, which keep some of it."""
    source = torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 100
    return source, source[:, :2].clone()


def near(values: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k).fit(values).kneighbors(return_distance=False)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_trustworthiness_and_continuity_are_scikit_learns(k: int) -> None:
    source, mapped = points()
    found = neighbourhoods(source, mapped, k)
    assert found.trustworthiness == pytest.approx(trustworthiness(source.numpy(), mapped.numpy(), n_neighbors=k), abs=1e-12)
    assert found.continuity == pytest.approx(trustworthiness(mapped.numpy(), source.numpy(), n_neighbors=k), abs=1e-12)


def test_preservation_is_the_share_of_common_neighbours() -> None:
    source, mapped = points()
    true, shown = near(source.numpy(), 9), near(mapped.numpy(), 9)
    common = [len(set(a) & set(b)) / 9 for a, b in zip(true, shown, strict=True)]
    assert neighbourhoods(source, mapped, 9).preservation == pytest.approx(np.mean(common), abs=1e-12)


def test_a_map_that_is_the_points_themselves_is_perfect() -> None:
    source, _ = points(100, 2)
    assert neighbourhoods(source, source * 3 + 1, 10) == (1.0, 1.0, 1.0)
    assert distance_correlation(source, source * 3) == pytest.approx(1.0)


def test_a_map_drawn_at_random_keeps_what_luck_keeps() -> None:
    source, _ = points(500)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    found = neighbourhoods(source, noise, 10)
    # each of 500 x 10 neighbours is kept with 10 / 499, hypergeometric in a row; four standard deviations of the mean
    chance = chance_preservation(500, 10)
    assert abs(found.preservation - chance) < 4 * np.sqrt(chance * (1 - chance) / 5000)
    assert 0.45 < found.trustworthiness < 0.55
    assert abs(distance_correlation(source, noise)) < 0.1


def test_a_sample_of_points_estimates_the_mean_over_all() -> None:
    source, mapped = points(800)
    rows = torch.randperm(800, generator=torch.Generator().manual_seed(1))
    whole = neighbourhoods(source, mapped, 10)
    parts = [neighbourhoods(source, mapped, 10, half) for half in (rows[:400], rows[400:])]
    for name in whole._fields:
        assert np.mean([getattr(part, name) for part in parts]) == pytest.approx(getattr(whole, name), abs=1e-12)


def test_distance_correlation_is_spearmans_of_all_pairs() -> None:
    source, mapped = points(150)
    exact = spearmanr(pdist(source.numpy()), pdist(mapped.numpy())).statistic
    assert distance_correlation(source, mapped) == pytest.approx(exact, abs=1e-9)
    # 5,000 pairs of 150 points: the standard error of a rank correlation of independent pairs is below 1 / sqrt(5000)
    assert distance_correlation(source, mapped, seed=4, pairs=5000) == pytest.approx(exact, abs=4 / np.sqrt(5000))


def test_procrustes_similarity_is_scipys_and_forgets_turn_size_and_place() -> None:
    source, mapped = points(80)
    other = mapped + 0.3 * source[:, 2:4]
    assert procrustes_similarity(mapped, other) == pytest.approx(1 - procrustes(mapped.numpy(), other.numpy())[2], abs=1e-9)
    turned = mapped @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64) * -5 + 3
    assert procrustes_similarity(mapped, turned) == pytest.approx(1.0, abs=1e-12)


def test_what_cannot_be_measured_is_refused() -> None:
    source, mapped = points(20)
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k is {k}; with 20 points"):
            neighbourhoods(source, mapped, k)
    with pytest.raises(ValueError, match="not the same points"):
        neighbourhoods(source, mapped[1:], 3)
    with pytest.raises(ValueError, match="in one place"):
        procrustes_similarity(mapped, torch.ones(20, 2))
    with pytest.raises(ValueError, match="too few distances"):
        distance_correlation(source[:2], mapped[:2])
