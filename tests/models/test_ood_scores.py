"""Further out-of-distribution scores: the ranks of pytorch-ood's formulas, and what they can and cannot see."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from models.uncertainty import neighbours
from models.uncertainty.neighbours import NearestNeighbours
from models.uncertainty.ood import RelativeMahalanobis, TiedMahalanobis, conformal_p_value, constant_features
from models.uncertainty.ood_logits import Energy, MaximumSoftmax
from models.uncertainty.scores import detection_intervals, detection_intervals_by_kind, detection_scores


def grouped(count: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Correlated features ``(count, 4)`` about a mean for each class, and the classes, of unequal size."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(4, 4))
    means = np.random.default_rng(98).normal(size=(classes, 4)) * 4
    which = rng.choice(classes, size=count, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    return torch.from_numpy(rng.normal(size=(count, 4)) @ mix + means[which]), torch.from_numpy(which)


def theirs_mahalanobis(features: Tensor, classes: Tensor, new: Tensor, *, relative: bool) -> np.ndarray:
    """pytorch-ood's ``Mahalanobis`` and ``RMD`` (``fit_features``, ``predict_features``) written out in numpy.

    Scatter about class means with 1e-6 on its diagonal, less than a sum's own rounding here, and its inverse; half the
    distance for the first. Their scatter is not divided by the number of windows, which leaves ranks as they are.
    """
    z, y, x = features.numpy(), classes.numpy(), new.numpy()
    means = np.stack([z[y == c].mean(0) for c in np.unique(y)])
    precision = np.linalg.inv(sum((z[y == c] - means[c]).T @ (z[y == c] - means[c]) for c in np.unique(y)) + 1e-6 * np.eye(4))
    per_class = np.stack([np.einsum("ij,jk,ik->i", x - mean, precision, x - mean) for mean in means], axis=1)
    if not relative:
        return -(-0.5 * per_class).max(1)
    centred = z - z.mean(0)
    background = np.linalg.inv(centred.T @ centred + 1e-6 * np.eye(4))
    return (per_class - np.einsum("ij,jk,ik->i", x - z.mean(0), background, x - z.mean(0))[:, None]).min(1)


@pytest.mark.parametrize("relative", [False, True])
def test_mahalanobis_ranks_are_pytorch_oods(relative: bool) -> None:
    features, classes = grouped(300, 0)
    new = torch.cat([grouped(200, 1)[0], grouped(200, 2)[0] * 2 + 3])
    kind = RelativeMahalanobis if relative else TiedMahalanobis
    ours = kind.fit(features, classes, shrinkage=0.0).score(new).numpy()
    expected = theirs_mahalanobis(features, classes, new, relative=relative)
    assert np.array_equal(stats.rankdata(ours), stats.rankdata(expected))


def test_shrinkage_is_ledoit_and_wolfs_on_what_is_left_of_the_class_means() -> None:
    features, classes = grouped(60, 0)
    means = torch.stack([features[classes == c].mean(0) for c in range(3)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit((features - means[classes]).numpy()).covariance_)
    new = grouped(20, 1)[0].numpy()
    expected = [min((x - mean) @ inverse @ (x - mean) for mean in means.numpy()) for x in new]
    np.testing.assert_allclose(TiedMahalanobis.fit(features, classes).score(torch.from_numpy(new)).numpy(), expected, rtol=1e-5)


def test_tied_distance_knows_the_gap_between_classes() -> None:
    """A window between two classes is strange, though it lies at the centre of all."""
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 2
    features = torch.randn(200, 2, generator=rng) + torch.where(classes == 0, -10.0, 10.0)[:, None]
    gap, typical = torch.zeros(1, 2), torch.full((1, 2), 10.0)
    tied = TiedMahalanobis.fit(features, classes)
    assert float(tied.score(gap)) > 50
    assert float(tied.score(typical)) < 1
    assert float(TiedMahalanobis.fit(features, torch.zeros(200)).score(gap)) < 1


def test_relative_distance_discounts_directions_that_classes_share() -> None:
    """Near misses differ where classes do; rare values of a feature that tells no class apart hide them (Ren et al.)."""
    rng = np.random.default_rng(0)
    classes = torch.arange(900) % 3
    means = np.array([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]])

    def windows(of: np.ndarray) -> Tensor:
        """Two features about the means of classes and twelve heavy-tailed ones that are alike for all."""
        return torch.from_numpy(np.column_stack([of + rng.normal(size=(len(of), 2)), rng.standard_t(3, size=(len(of), 12))]))

    train, clean = windows(means[classes.numpy()]), windows(means[np.arange(400) % 3])
    near = windows(np.full((400, 2), 2.0))
    scores = {kind: kind.fit(train, classes) for kind in (TiedMahalanobis, RelativeMahalanobis)}
    auroc = {kind: detection_scores(score.score(clean), score.score(near))[0] for kind, score in scores.items()}
    assert auroc[RelativeMahalanobis] > auroc[TiedMahalanobis] + 0.1
    assert auroc[RelativeMahalanobis] > 0.95


def test_one_class_has_no_relative_distance() -> None:
    with pytest.raises(ValueError, match="only one"):
        RelativeMahalanobis.fit(grouped(30, 0)[0], torch.zeros(30))


def test_a_feature_that_does_not_vary_is_told_and_survived() -> None:
    features, classes = grouped(100, 0)
    features = torch.cat([features, torch.full((100, 1), 0.1, dtype=torch.float64), features[:, :1]], dim=1)
    assert constant_features(features) == [4]
    fits: list[Callable[[], Any]] = [
        lambda: TiedMahalanobis.fit(features, classes),
        lambda: RelativeMahalanobis.fit(features, classes),
        lambda: NearestNeighbours.fit(features),
    ]
    for fit in fits:
        with pytest.warns(UserWarning, match="features 4 of 6 do not vary"):
            score = fit().score(features)
        assert torch.isfinite(score).all()


def test_a_singular_covariance_without_shrinkage_is_named() -> None:
    features, classes = grouped(5, 0)
    wide = torch.cat([features, features.flip(1), features * 2], dim=1)
    with pytest.raises(ValueError, match="singular"):
        TiedMahalanobis.fit(wide, torch.zeros_like(classes), shrinkage=0.0)
    assert torch.isfinite(TiedMahalanobis.fit(wide, torch.zeros_like(classes)).score(wide)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_missing_features_are_named(value: float) -> None:
    features, classes = grouped(30, 0)
    features[3, 1] = value
    with pytest.raises(ValueError, match="must be finite"):
        TiedMahalanobis.fit(features, classes)
    with pytest.raises(ValueError, match="must be finite"):
        NearestNeighbours.fit(features)


def logits(count: int, scale: float, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, 7)) * scale)


EnergyScore = Callable[[Tensor, float], Tensor]


def energy(values: Tensor, temperature: float) -> Tensor:
    return Energy.fit(values, temperature).score(values)


def has_the_ranks_of_pytorch_ood(score: EnergyScore) -> bool:
    """Of its ``EnergyBased``: -t logsumexp(logits / t), and larger where logits are low, as for inputs unlike any seen."""
    values = logits(300, 3.0, 0)
    for temperature in (0.5, 1.0, 10.0):
        expected = -temperature * logsumexp(values.numpy() / temperature, axis=1)
        if not np.array_equal(stats.rankdata(score(values, temperature).numpy()), stats.rankdata(expected)):
            return False
    return detection_scores(score(logits(300, 3.0, 1) + 4.0, 1.0), score(logits(300, 3.0, 2), 1.0))[0] > 0.8


def test_energy_ranks_are_pytorch_oods() -> None:
    assert has_the_ranks_of_pytorch_ood(energy)


def test_an_energy_of_the_wrong_sign_or_without_temperature_is_rejected() -> None:
    assert not has_the_ranks_of_pytorch_ood(lambda values, temperature: -energy(values, temperature))
    assert not has_the_ranks_of_pytorch_ood(lambda values, temperature: energy(values, 1.0))
    assert not has_the_ranks_of_pytorch_ood(lambda values, temperature: MaximumSoftmax.fit(values).score(values))


def test_maximum_softmax_is_less_the_largest_probability() -> None:
    values = logits(50, 3.0, 0)
    np.testing.assert_allclose(MaximumSoftmax.fit(values).score(values).numpy(), -softmax(values.numpy(), axis=1).max(1))


def test_scores_of_a_window_are_means_over_its_steps() -> None:
    values = logits(60, 3.0, 0)
    for kind in (MaximumSoftmax, Energy):
        score = kind.fit(values)
        torch.testing.assert_close(score.score(values.view(20, 3, 7)), score.score(values).view(20, 3).mean(1))


def test_energy_moves_with_a_constant_that_changes_no_probability() -> None:
    """Why energies of two models do not compare."""
    values = logits(50, 3.0, 0)
    score = Energy.fit(values, 2.0)
    torch.testing.assert_close(score.score(values + 5.0), score.score(values) - 5.0)
    softmax_score = MaximumSoftmax.fit(values)
    torch.testing.assert_close(softmax_score.score(values + 5.0), softmax_score.score(values))


def test_other_bins_and_temperatures_are_refused() -> None:
    for kind in (MaximumSoftmax, Energy):
        with pytest.raises(ValueError, match="5 bins; the score was fitted to 7"):
            kind.fit(logits(5, 1.0, 0)).score(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="above 0, got 0"):
        Energy.fit(logits(5, 1.0, 0), 0.0)


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("k", [1, 5, 80])
def test_kth_distance_equals_scikit_learns(k: int, unit_length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact whatever the chunks, of which the last is smaller."""
    train, new = grouped(80, 0)[0] * torch.tensor([1.0, 100.0, 0.01, 1.0]), grouped(33, 1)[0]
    monkeypatch.setattr(neighbours, "CELLS", 80 * 7)
    actual = NearestNeighbours.fit(train, k, unit_length).score(new).numpy()
    centre, spread = train.numpy().mean(0), train.numpy().std(0)
    bank, queries = ((values.numpy() - centre) / spread for values in (train, new))
    if unit_length:
        bank, queries = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (bank, queries))
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank).kneighbors(queries)[0][:, -1]
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


def test_unit_length_forgets_how_far_out_a_window_lies() -> None:
    train = grouped(200, 0)[0]
    centre, far = train.mean(0), 50.0 * (train[:20] - train.mean(0))
    with_length, without = (NearestNeighbours.fit(train, 1, unit_length) for unit_length in (False, True))
    assert (with_length.score(centre + far) > with_length.score(train).max() + 10).all()
    torch.testing.assert_close(without.score(centre + far), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [0, 31])
def test_impossible_numbers_of_neighbours_are_named(k: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 30 training windows, got {k}"):
        NearestNeighbours.fit(grouped(30, 0)[0], k)


def fitted() -> list[tuple[Any, Tensor, Tensor]]:
    """Each score, fitted, with clean windows of a gate fold and windows that are strange to it."""
    features, classes = grouped(300, 0)
    clean, strange = grouped(199, 1)[0], grouped(200, 2)[0] + 15.0
    on_features = [TiedMahalanobis.fit(features, classes), RelativeMahalanobis.fit(features, classes)]
    on_features += [NearestNeighbours.fit(features, 5, False)]
    sharp, flat = logits(199, 8.0, 1), logits(200, 0.1, 2)
    on_logits = [Energy.fit(sharp, 0.7), MaximumSoftmax.fit(sharp)]
    return [(score, clean, strange) for score in on_features] + [(score, sharp, flat) for score in on_logits]


def test_state_survives_safetensors_bit_for_bit() -> None:
    for score, clean, _ in fitted():
        again = type(score).from_state(load(save(score.state())))
        assert torch.equal(again.score(clean), score.score(clean))


def test_every_score_raises_the_alarm_on_strange_windows_and_not_on_clean_ones() -> None:
    """Flags by conformal p-value at 5 %: of strange windows most, of new clean ones no more than chance allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = fitted()
    for score, clean, strange in cases:
        new = grouped(500, 3)[0] if clean.shape[1] == 4 else logits(500, 8.0, 3)
        calibration = score.score(clean)
        assert float((conformal_p_value(score.score(strange), calibration) <= 0.05).double().mean()) > 0.7, score
        alarms = int((conformal_p_value(score.score(new), calibration) <= 0.05).sum())
        assert alarms <= stats.betabinom(500, 10, 190).ppf(1 - 1e-4), score


def test_the_interval_of_a_mean_over_kinds_is_that_of_the_mean() -> None:
    """Two kinds whose scores are the same have the mean's interval themselves; one alone has that of `detection_intervals`."""
    rng = np.random.default_rng(0)
    clean, strange, weak = (torch.from_numpy(rng.normal(shift, 1, 120)) for shift in (0.0, 1.5, 0.3))
    block = torch.arange(120) // 10
    kinds = {"strange": strange, "again": strange, "weak": weak}
    by_kind, mean = detection_intervals_by_kind(clean, kinds, block, block, ("strange", "again"), resamples=40)
    assert mean == by_kind["strange"] == by_kind["again"] == detection_intervals(clean, strange, block, block, resamples=40)
    both = detection_intervals_by_kind(clean, kinds, block, block, ("strange", "weak"), resamples=40)[1]
    middle = (by_kind["strange"]["auroc"].estimate + by_kind["weak"]["auroc"].estimate) / 2
    assert both["auroc"].estimate == pytest.approx(middle)
    assert both["auroc"].lower < middle < both["auroc"].upper
