"""Heads: each distribution against scipy's, its losses, its draws and its bad input."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from models.heads import (
    HEADS,
    CategoricalHead,
    Head,
    NegativeBinomialHead,
    NormalHead,
    QuantileHead,
    StudentTHead,
    beta_nll,
    build_head,
    gaussian_nll,
)
from models.heads.bins import mu_law_bins, mu_law_compress, mu_law_expand, quantile_bins
from models.heads.student_t import student_t_log_prob
from models.predictive import LEVELS, Predictive, pinball_loss

B, H, WIDTH = 3, 5, 6
LOC = torch.tensor([0.0, -4.0, 250.0], dtype=torch.float64)
COUNT_LOC = torch.tensor([0.3, 6.0, 250.0], dtype=torch.float64)
SCALE = torch.tensor([1.0, 0.5, 40.0], dtype=torch.float64)
GRID = torch.tensor([0.001, 0.05, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
NAMES = list(HEADS)


def made(name: str, **options: object) -> tuple[Head, Tensor, Tensor]:
    """A head, parameters (B, H, P) of random hidden states about a random base, and the windows' locations."""
    torch.manual_seed(1)
    head = build_head(name, WIDTH, **options).double()
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    base = torch.randn(B, H, dtype=torch.float64)
    return head, head(torch.randn(B, H, WIDTH, dtype=torch.float64), base).detach(), COUNT_LOC if "neg" in name else LOC


def reference(name: str, parameters: Tensor, loc: Tensor):  # type: ignore[no-untyped-def]
    """The same distribution by scipy, in the target's units, with arrays (B, H) for parameters."""
    centre, factor = loc[:, None].numpy(), SCALE[:, None].numpy()
    first, second, *rest = (part.numpy() for part in parameters.unbind(-1))
    if name == "normal":
        return stats.norm(centre + factor * first, factor * second)
    if name == "student_t":
        return stats.t(rest[0], centre + factor * first, factor * second)
    mean = factor * np.log1p(np.exp(first + centre / factor))
    dispersion = second / np.sqrt(factor)
    return stats.nbinom(1.0 / dispersion, 1.0 / (1.0 + dispersion * mean))


@pytest.mark.parametrize("name", ["normal", "student_t", "negative_binomial"])
def test_density_cdf_quantiles_and_moments_equal_scipys(name: str) -> None:
    head, parameters, loc = made(name)
    expected = reference(name, parameters, loc)
    quantiles = head.quantiles(parameters, GRID, loc, SCALE)
    for index, level in enumerate(GRID):
        np.testing.assert_allclose(quantiles[..., index], expected.ppf(level.item()), rtol=1e-9, atol=1e-9)
        target = quantiles[..., index]
        density = expected.logpmf if name == "negative_binomial" else expected.logpdf
        np.testing.assert_allclose(head.log_prob(parameters, target, loc, SCALE), density(target.numpy()), rtol=1e-8)
        np.testing.assert_allclose(head.cdf(parameters, target, loc, SCALE), expected.cdf(target.numpy()), rtol=1e-9)
    mean, variance = head.mean_variance(parameters, loc, SCALE)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(variance, expected.var(), rtol=1e-9)


@pytest.mark.parametrize("name", ["normal", "student_t", "categorical", "quantile"])
def test_quantile_is_the_inverse_of_the_cdf_and_never_crosses(name: str) -> None:
    head, parameters, loc = made(name)
    levels = torch.linspace(0.002, 0.998, 101, dtype=torch.float64)
    quantiles = head.quantiles(parameters, levels, loc, SCALE)
    assert quantiles.shape == (B, H, 101)
    assert (quantiles.diff(dim=-1) > 0).all()
    back = torch.stack([head.cdf(parameters, values, loc, SCALE) for values in quantiles.unbind(-1)], dim=-1)
    torch.testing.assert_close(back, levels.expand_as(back), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("kind", ["mu_law", "quantile"])
def test_categorical_density_integrates_to_its_cdf_and_moments(kind: str) -> None:
    head, parameters, loc = made("categorical", bins=12, kind=kind)
    parameters, loc, scale = parameters[:1, :1], loc[:1], SCALE[:1]

    def density(value: float) -> float:
        return float(head.log_prob(parameters, torch.full((1, 1), value, dtype=torch.float64), loc, scale).exp())

    edges = (head.edges + parameters[0, 0, -1]).tolist()  # type: ignore[operator]
    pieces = [-60.0, *edges, 60.0]  # the tails' mean excess is below 4
    parts = np.array(
        [[integrate.quad(lambda y, k=k: y**k * density(y), a, b)[0] for k in range(3)] for a, b in pairwise(pieces)]
    )
    cdf = [float(head.cdf(parameters, torch.full((1, 1), edge, dtype=torch.float64), loc, scale)) for edge in edges]
    np.testing.assert_allclose(parts[:-1, 0].cumsum(), cdf, atol=1e-5)
    mass, mean, square = parts.sum(0)
    assert mass == pytest.approx(1.0, abs=1e-5)
    got_mean, got_variance = head.mean_variance(parameters, loc, scale)
    assert float(got_mean) == pytest.approx(mean, abs=1e-4)
    assert float(got_variance) == pytest.approx(square - mean**2, rel=1e-3)


def test_categorical_inner_bins_are_scipys_histogram() -> None:
    head, parameters, loc = made("categorical", bins=10)
    assert isinstance(head, CategoricalHead)
    logits = head.logits(parameters)
    assert logits.shape == (B, H, 10)
    probabilities = logits[0, 0].softmax(-1)
    edges = head.edges + parameters[0, 0, -1]
    inner = stats.rv_histogram((probabilities[1:-1].numpy(), edges.numpy()), density=False)
    y = torch.linspace(float(edges[0]) + 1e-6, float(edges[-1]) - 1e-6, 41, dtype=torch.float64)
    repeated, one, zero = parameters[:1, :1].expand(1, 41, -1), SCALE[:1], loc[:1]
    share = probabilities[1:-1].sum()
    np.testing.assert_allclose(head.log_prob(repeated, y[None], zero, one).exp()[0], share * inner.pdf(y), rtol=1e-9)
    np.testing.assert_allclose(head.cdf(repeated, y[None], zero, one)[0], probabilities[0] + share * inner.cdf(y), rtol=1e-9)


def test_quantile_head_is_predictives_distribution() -> None:
    head, parameters, loc = made("quantile")
    at_levels = head.quantiles(parameters, torch.tensor(LEVELS), loc, SCALE)
    torch.testing.assert_close(at_levels, parameters * SCALE[:, None, None] + loc[:, None, None], rtol=0.0, atol=0.0)
    distribution = Predictive(at_levels)
    target = loc[:, None] + SCALE[:, None] * torch.randn(B, H, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(parameters, target, loc, SCALE), distribution.log_prob(target))
    torch.testing.assert_close(head.cdf(parameters, target, loc, SCALE), distribution.cdf(target))
    torch.testing.assert_close(head.mean_variance(parameters, loc, SCALE)[1], distribution.variance)
    scaled = (target - loc[:, None]) / SCALE[:, None]
    expected = 2.0 * pinball_loss(parameters, scaled, torch.tensor(LEVELS, dtype=torch.float64)).mean(-1)
    torch.testing.assert_close(head.loss(parameters, target, loc, SCALE), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "negative_binomial"])
def test_a_base_moves_the_whole_distribution(name: str) -> None:
    head, _, loc = made(name)
    hidden, base = torch.randn(B, H, WIDTH, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    moved, still = (head.quantiles(head(hidden, at), GRID, loc, SCALE) for at in (base, None))
    torch.testing.assert_close(moved, still + (base * SCALE[:, None])[..., None])


@pytest.mark.parametrize("name", ["normal", "student_t"])
def test_loss_is_the_negative_log_density_of_the_scaled_target(name: str) -> None:
    head, parameters, loc = made(name)
    target = loc[:, None] + SCALE[:, None] * torch.randn(B, H, dtype=torch.float64)
    expected = -head.log_prob(parameters, target, loc, SCALE) - SCALE.log()[:, None]
    torch.testing.assert_close(head.loss(parameters, target, loc, SCALE), expected)


def test_counts_of_a_large_series_have_the_base_for_mean() -> None:
    head = NegativeBinomialHead(WIDTH).double()
    base = torch.tensor([[-1.0, 0.5]], dtype=torch.float64)
    loc, scale = torch.tensor([500.0]).double(), torch.tensor([20.0]).double()
    mean, _ = head.mean_variance(head(torch.zeros(1, 2, WIDTH, dtype=torch.float64), base), loc, scale)
    torch.testing.assert_close(mean, 500.0 + 20.0 * base, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_distribution(name: str) -> None:
    """Kolmogorov-Smirnov at n = 20,000: a right sampler fails with probability 1e-4 at a fresh seed; the seed is fixed.

    Counts are made continuous by the randomised probability transform (Brockwell 2007).
    """
    head, parameters, loc = made(name)
    n, generator = 20_000, torch.Generator().manual_seed(5)
    for row in range(B):
        repeated, at, factor = parameters[row : row + 1, :1].expand(1, n, -1), loc[row : row + 1], SCALE[row : row + 1]
        draws = head.sample(repeated, at, factor, generator)
        assert draws.shape == (1, n)
        uniform = head.cdf(repeated, draws, at, factor)
        if name == "negative_binomial":
            below = head.cdf(repeated, draws - 1.0, at, factor)
            uniform = below + (uniform - below) * torch.rand(1, n, dtype=torch.float64, generator=generator)
        assert stats.kstest(uniform[0].numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_samples_repeat_with_the_generators_seed(name: str) -> None:
    head, parameters, loc = made(name)
    first, second = (head.sample(parameters, loc, SCALE, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, head.sample(parameters, loc, SCALE, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 1.0, 1e6])
def test_loss_and_gradient_are_finite_at_extremes(name: str, size: float, target: float) -> None:
    torch.manual_seed(0)
    head = build_head(name, WIDTH)
    hidden = (size * torch.randn(2, 4, WIDTH) / 0.02).requires_grad_()
    loc, scale = torch.tensor([0.0, 1e4]), torch.tensor([1e-6, 100.0])
    loss = head.loss(head(hidden, torch.zeros(2, 4)), torch.full((2, 4), target), loc, scale)
    assert loss.isfinite().all()
    loss.mean().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())  # type: ignore[union-attr]


def test_log_density_of_t_keeps_its_digits_in_single_precision() -> None:
    freedom = torch.tensor([2.01, 5.0, 39.9, 40.1, 1e3, 1e6])
    z = torch.tensor([0.0, 1.5, -8.0])[:, None]
    expected = stats.t.logpdf(z.double().numpy(), freedom.double().numpy())
    np.testing.assert_allclose(student_t_log_prob(z, freedom), expected, rtol=2e-6, atol=2e-5)


def test_beta_zero_is_the_likelihood_and_beta_one_has_the_gradient_of_squared_error() -> None:
    torch.manual_seed(0)
    mean, target = torch.randn(50, dtype=torch.float64, requires_grad=True), torch.randn(50, dtype=torch.float64)
    deviation = torch.rand(50, dtype=torch.float64) * 3 + 0.1
    torch.testing.assert_close(beta_nll(mean, deviation, target, 0.0), gaussian_nll(mean, deviation, target))
    expected = stats.norm(mean.detach().numpy(), deviation.numpy()).logpdf(target.numpy())
    np.testing.assert_allclose(-gaussian_nll(mean, deviation, target).detach(), expected)
    (by_beta,) = torch.autograd.grad(beta_nll(mean, deviation, target, 1.0).sum(), mean)
    (by_square,) = torch.autograd.grad(0.5 * (target - mean).square().sum(), mean)
    torch.testing.assert_close(by_beta, by_square)


def test_beta_weighs_without_a_gradient_of_its_own() -> None:
    """d/ds of stop(s^2b) NLL is s^2b dNLL/ds: zero at s = |y - m| for every beta."""
    deviation = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    mean, target = torch.zeros(1, dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    for beta in (0.0, 0.5, 1.0):
        (slope,) = torch.autograd.grad(beta_nll(mean, deviation, target, beta).sum(), deviation)
        assert abs(float(slope)) < 1e-12


def test_mu_law_bins_are_even_after_companding() -> None:
    x = torch.linspace(-1.0, 1.0, 33, dtype=torch.float64)
    torch.testing.assert_close(mu_law_expand(mu_law_compress(x, 255.0), 255.0), x)
    edges, tails = mu_law_bins(16, limit=4.0, mu=255.0)
    companded = mu_law_compress(edges.double() / 4.0, 255.0)
    torch.testing.assert_close(companded.diff(), torch.full((14,), 0.125, dtype=torch.float64), rtol=1e-5, atol=0.0)
    assert float(edges[-1] + tails[1]) == pytest.approx(4.0)


def test_quantile_bins_hold_equal_shares_and_stand_repeats() -> None:
    values = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=5000))
    edges, tails = quantile_bins(values, 20)
    counts = torch.bincount(torch.bucketize(values.float(), edges), minlength=20)
    assert counts.min() >= 249 and counts.max() <= 251
    beyond = values[values > float(edges[-1])]
    assert float(tails[1]) == pytest.approx(float(beyond.mean() - edges[-1]), rel=1e-5)
    repeated, tails = quantile_bins(torch.tensor([0.0] * 50 + [1.0] * 50), 10)
    assert (repeated.diff() > 0).all() and (tails > 0).all()


def test_fitted_bins_give_the_datas_quantiles_at_once_and_travel_with_the_weights() -> None:
    torch.manual_seed(0)
    head = CategoricalHead(WIDTH, bins=32, kind="quantile").double()
    values = torch.distributions.Laplace(0.4, 0.2).sample((4000,)).double()
    head.fit(values)
    torch.nn.init.zeros_(head.project.weight)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    got = head.quantiles(head(torch.zeros(1, 1, WIDTH, dtype=torch.float64)), levels, zero, one)[0, 0]
    torch.testing.assert_close(got, torch.quantile(values, levels), rtol=0.0, atol=0.02)
    other = CategoricalHead(WIDTH, bins=32, kind="quantile").double()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.edges, head.edges)


@pytest.mark.parametrize("value", [-3.0, 0.5, math.nan])
def test_counts_refuse_what_is_no_count(value: float) -> None:
    head, parameters, loc = made("negative_binomial")
    target = torch.ones(B, H, dtype=torch.float64)
    target[1, 2] = value
    with pytest.raises(ValueError, match=f"negative_binomial head takes counts.*has {value:g}"):
        head.loss(parameters, target, loc, SCALE)


def test_unknown_heads_and_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'gaussian' is not a head; there are quantile, normal"):
        build_head("gaussian", 4)
    with pytest.raises(ValueError, match="normal head has no option 'bins'; it has beta"):
        build_head("normal", 4, bins=3)
    with pytest.raises(ValueError, match="beta of the normal head"):
        build_head("normal", 4, beta=1.5)
    with pytest.raises(ValueError, match="at least 4 bins"):
        build_head("categorical", 4, bins=2)
    with pytest.raises(ValueError, match="'uniform' is not a kind of bins"):
        build_head("categorical", 4, kind="uniform")
    assert [type(build_head(name, 4)) for name in NAMES] == [
        QuantileHead,
        NormalHead,
        StudentTHead,
        NegativeBinomialHead,
        CategoricalHead,
    ]


@pytest.mark.parametrize("bins", [64, 12, 7])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_a_draw_of_bins_is_the_sample_of_the_same_random_numbers(bins: int, size: float) -> None:
    """``size`` 300 gives logits that no float could hold the exponentials of."""
    torch.manual_seed(0)
    head = build_head("categorical", 8, bins=bins).double()
    hidden, base = size * torch.randn(4000, 8, dtype=torch.float64), torch.randn(4000, dtype=torch.float64)
    loc, scale = torch.randn(4000, dtype=torch.float64), torch.rand(4000, dtype=torch.float64) + 0.5
    drawn = head.draw(hidden, base, loc, scale, torch.Generator().manual_seed(3))
    expected = head.sample(head(hidden, base), loc, scale, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, expected.detach(), rtol=1e-7, atol=1e-7)
