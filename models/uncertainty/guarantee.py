"""What a finite calibration set can promise: effective sample size and the band in which coverage must fall."""

from __future__ import annotations

import torch
from torch import Tensor

from models.uncertainty.conformal import conformal_rank


def effective_sample_size(covered: Tensor, block: Tensor) -> float:
    """Number of independent observations that carry what dependent ones do (Kish design effect over blocks).

    ``covered`` ``(n,)`` is 0/1 or a share per window, ``block`` ``(n,)`` names the stretch of time a window belongs
    to. Windows of one block share weather, holidays and overlapping targets, so the variance of block means, not the
    count of windows, says how much is known: ``B p (1 - p) / Var(block mean)``, between B and n. Where all or none are
    covered nothing tells how much windows depend on one another, and it is B.
    """
    covered = covered.to(torch.float64)
    names, index = torch.unique(block, return_inverse=True)
    count = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, torch.ones_like(covered))
    total = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, covered)
    share = float(covered.mean())
    if len(names) < 2 or share in (0.0, 1.0):
        return float(len(names))
    means = total / count
    variance = float(((means - share) ** 2).sum() / (len(names) - 1))
    if variance <= 0:
        return float(len(covered))
    return min(float(len(covered)), max(float(len(names)), len(names) * share * (1 - share) / variance))


def coverage_band(n_calibration: float, n_test: float, level: float, confidence: float = 0.95) -> tuple[float, float]:
    """Band in which the covered share of ``n_test`` points falls with ``confidence`` where exchangeability holds.

    Coverage given a calibration set of n is Beta(k, n + 1 - k), so the covered count is beta-binomial (Vovk, 2012;
    Angelopoulos and Bates, 2023, sec. 3.2).
    """
    from scipy.stats import betabinom

    calibration, test = max(1, int(n_calibration)), max(1, int(n_test))
    rank = min(conformal_rank(calibration, level), calibration)
    count = betabinom(test, rank, calibration + 1 - rank)
    tail = (1 - confidence) / 2
    return float(count.ppf(tail)) / test, float(count.ppf(1 - tail)) / test


def can_certify(n: int, level: float) -> bool:
    """Whether n scores suffice for a finite set at ``level``: ``n >= ceil(1 / (1 - level)) - 1``."""
    return conformal_rank(n, level) <= n
