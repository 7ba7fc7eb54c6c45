"""Stratified draws: each path as independent draws would make it, quantiles nearer to the truth, windows on their own."""

from __future__ import annotations

import torch
from torch.special import ndtr

from models.decoding.noise import stratified_normal
from models.predictive import LEVELS, sample_quantiles


def draws(seed: int, steps: int, paths: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return stratified_normal(steps, paths, torch.zeros((), dtype=torch.float64))


def test_every_step_has_one_draw_in_each_interval() -> None:
    uniform = ndtr(draws(0, 5, 40)) * 40
    torch.testing.assert_close(uniform.floor().sort(dim=1).values, torch.arange(40.0).double().expand(5, -1))
    assert len({tuple(row.argsort().tolist()) for row in uniform}) == 5, "each step in an order of its own"


def test_one_path_is_made_of_independent_normals() -> None:
    """The first path over 4000 seeds: mean, variance and the steps' correlation within 4.5 standard errors."""
    first = torch.stack([draws(seed, 2, 3)[:, 0] for seed in range(4000)])
    error = 4.5 / 4000**0.5
    assert (first.mean(0).abs() < error).all()
    assert ((first.var(0) - 1.0).abs() < error * 2**0.5).all()
    assert abs(float((first[:, 0] * first[:, 1]).mean())) < error


def test_quantiles_vary_less_than_over_independent_draws() -> None:
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    truth = torch.special.ndtri(levels)
    stratified = sample_quantiles(draws(0, 200, 100).t()[None], levels)
    independent = sample_quantiles(torch.randn(1, 100, 200, dtype=torch.float64), levels)
    assert (stratified - truth).square().mean() < 0.3 * (independent - truth).square().mean()
