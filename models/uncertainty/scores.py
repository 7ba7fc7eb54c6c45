"""Scores of probabilistic forecasts, streaming-free and small enough to check by eye."""

from __future__ import annotations

import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss

DECILES = [LEVELS.index(round(0.1 * i, 1)) for i in range(1, 10)]


def wql(predictive: Predictive, target: Tensor) -> float:
    """Weighted quantile loss over tau = 0.1 ... 0.9: mean of ``sum 2 pinball / sum |y|`` (M5, GIFT-Eval)."""
    target = target.to(torch.float64)
    loss = pinball_loss(predictive.values[..., DECILES], target, predictive.levels[DECILES])
    return float(2.0 * loss.sum(dim=tuple(range(target.dim()))).mean() / target.abs().sum())


def crps(predictive: Predictive, target: Tensor, points: int = 100) -> Tensor:
    """Continuous ranked probability score ``(...)``, in the target's units.

    ``2 * integral of the pinball loss over the level`` (Gneiting and Raftery, 2007), by the midpoint rule.
    """
    levels = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    target = target.to(torch.float64)
    total = torch.zeros_like(target)
    for level in levels:
        total += pinball_loss(predictive.quantile(level)[..., None], target, level[None])[..., 0]
    return 2.0 * total / points


def wape(forecast: Tensor, target: Tensor) -> float:
    """Weighted absolute percentage error: ``sum |y - f| / sum |y|``."""
    target = target.to(torch.float64)
    return float((target - forecast).abs().sum() / target.abs().sum())


def mase(forecast: Tensor, target: Tensor, scale: Tensor) -> float:
    """Mean absolute scaled error: mean of ``|y - f| / scale``; ``scale`` ``(n,)`` is the seasonal-naive error in sample."""
    return float(((target.to(torch.float64) - forecast).abs() / scale[:, None]).mean())


def coverage(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    """Whether each truth lies in its interval, bounds included, bool ``(...)``."""
    return (target >= lower) & (target <= upper)


def reliability(predictive: Predictive, target: Tensor) -> Tensor:
    """Observed share of truths at or below each of ``LEVELS``, ``(Q,)``."""
    below = target.to(torch.float64)[..., None] <= predictive.values
    return below.to(torch.float64).mean(dim=tuple(range(target.dim())))


def calibration_error(predictive: Predictive, target: Tensor) -> float:
    """Mean distance between nominal and observed level over ``LEVELS`` (Kuleshov et al., 2018)."""
    return float((reliability(predictive, target) - predictive.levels).abs().mean())


def pit_distance(pit: Tensor) -> float:
    """Kolmogorov distance between probability integral transforms and the uniform distribution."""
    from scipy.stats import kstest

    return float(kstest(pit.flatten().numpy(), "uniform").statistic)


def risk_coverage(uncertainty: Tensor, risk: Tensor) -> tuple[Tensor, Tensor]:
    """Share kept and mean risk of what is kept, ``(n,)`` each, answering the most certain windows first."""
    ordered = risk[torch.argsort(uncertainty, stable=True)].to(torch.float64)
    count = torch.arange(1, len(risk) + 1, dtype=torch.float64)
    return count / len(risk), ordered.cumsum(0) / count


def aurc(uncertainty: Tensor, risk: Tensor) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, 2017); its oracle is ``aurc(risk, risk)``."""
    return float(risk_coverage(uncertainty, risk)[1].mean())


def detection_scores(negative: Tensor, positive: Tensor) -> tuple[float, float]:
    """AUROC and FPR at 95 % TPR of a score that should be larger on ``positive`` (out-of-distribution) windows.

    Equal scores share a rank, so a score that says nothing has AUROC 0.5. The threshold of the FPR is the largest score
    that at least 95 % of ``positive`` reach.
    """
    from torchmetrics.functional.classification import binary_auroc

    scores = torch.cat([negative, positive]).to(torch.float64)
    ranks = torch.unique(scores, return_inverse=True)[1].to(torch.float64) / len(scores)  # torchmetrics wants [0, 1]
    labels = torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))]).long()
    threshold = positive.sort().values[len(positive) // 20]
    return float(binary_auroc(ranks, labels)), float((negative >= threshold).to(torch.float64).mean())
