"""Scores of probabilistic forecasts, streaming-free and small enough to check by eye."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.predictive import LEVELS, Predictive, pinball_loss

CRPS_CELLS = 2**17
"""Quantiles that a CRPS takes at once: they stay in the processor's cache, and memory does not grow with windows."""
DECILES = [LEVELS.index(round(0.1 * i, 1)) for i in range(1, 10)]


def wql(predictive: Predictive, target: Tensor) -> float:
    """Weighted quantile loss over tau = 0.1 ... 0.9: mean of ``sum 2 pinball / sum |y|`` (M5, GIFT-Eval)."""
    return wql_of(predictive.each(lambda part, truth: decile_losses(part, truth)[None], target.to(torch.float64)), target)


def decile_losses(predictive: Predictive, target: Tensor) -> Tensor:
    """Sums of the pinball losses at tau = 0.1 ... 0.9, ``(9,)``, of which `wql_of` makes the weighted quantile loss."""
    losses = pinball_loss(predictive.values[..., DECILES], target.to(torch.float64), predictive.levels[DECILES])
    return losses.sum(dim=tuple(range(target.dim())))


def wql_of(losses: Tensor, target: Tensor) -> float:
    """`wql` of the `decile_losses` ``(p, 9)`` of parts of the windows, for all their truths ``(n, H)``."""
    return float(2.0 * losses.sum(0).mean() / target.to(torch.float64).abs().sum())


def crps(predictive: Predictive, target: Tensor, points: int = 100) -> Tensor:
    """Continuous ranked probability score ``(...)``, in the target's units.

    ``2 * integral of the pinball loss over the level`` (Gneiting and Raftery, 2007), by the midpoint rule.
    """
    found: Tensor = predictive.each(lambda part, truth: _crps_by_part(part, truth, points), target.to(torch.float64))
    return found


def _crps_by_part(predictive: Predictive, target: Tensor, points: int) -> Tensor:
    if not target.dim() or len(target) != len(predictive.values):  # one window, or shapes that broadcast
        return _crps(predictive, target, points)
    rows = max(1, CRPS_CELLS // max(1, points * math.prod(target.shape[1:])))
    parts = zip(predictive.values.split(rows), target.split(rows), strict=True)
    return torch.cat([_crps(Predictive(values), truth, points) for values, truth in parts])


def _crps(predictive: Predictive, target: Tensor, points: int) -> Tensor:
    levels = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return 2.0 * pinball_loss(predictive.quantiles(levels), target, levels).mean(-1)


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
    below = predictive.each(lambda part, truth: truths_below(part, truth)[None], target.to(torch.float64)).sum(0)
    return below / target.numel()


def truths_below(predictive: Predictive, target: Tensor) -> Tensor:
    """How many truths are at or below each of ``LEVELS``, ``(Q,)``."""
    return (target.to(torch.float64)[..., None] <= predictive.values).to(torch.float64).sum(dim=tuple(range(target.dim())))


def calibration_error(predictive: Predictive, target: Tensor) -> float:
    """Mean distance between nominal and observed level over ``LEVELS`` (Kuleshov et al., 2018)."""
    below = predictive.each(lambda part, truth: truths_below(part, truth)[None], target.to(torch.float64))
    return calibration_error_of(below, target.numel())


def calibration_error_of(below: Tensor, count: int) -> float:
    """`calibration_error` of the `truths_below` ``(p, Q)`` of parts of ``count`` truths."""
    return float((below.sum(0) / count - torch.tensor(LEVELS, dtype=torch.float64)).abs().mean())


def pit_distance(pit: Tensor) -> float:
    """Kolmogorov distance between probability integral transforms and the uniform distribution."""
    from scipy.stats import kstest

    return float(kstest(pit.flatten().numpy(), "uniform").statistic)


def calibration_summary(predictive: Predictive, target: Tensor) -> dict[str, float]:
    """What a temperature should lower: ``calibration_error``, ``pit_distance`` and mean ``crps``, for before and after."""
    return {
        "calibration_error": calibration_error(predictive, target),
        "pit_distance": pit_distance(predictive.cdf(target)),
        "crps": float(crps(predictive, target).mean()),
    }


def expected_calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the likeliest bin of logits ``(..., K)`` for true indices ``(...)``, in [0, 1].

    Mean distance between confidence and accuracy over equal-width ``bins`` of confidence (Guo et al., 2017, equation 3).
    """
    confidence, right = likeliest(logits, target)
    return binned_error(confidence, right, bins)


def likeliest(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the likeliest bin of logits ``(..., K)``, and whether it is the true one ``(...)``; float32 ``(...)``."""
    confidence, chosen = logits.to(torch.float64).softmax(-1).max(dim=-1)
    return confidence.float(), (chosen == target).float()


def binned_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Mean distance between ``confidence`` and how often it was ``right``, ``(...)`` each, over equal-width ``bins``."""
    from torchmetrics.functional.classification import binary_calibration_error

    return float(binary_calibration_error(confidence.reshape(-1), right.reshape(-1).long(), bins, "l1"))


def risk_coverage(uncertainty: Tensor, risk: Tensor) -> tuple[Tensor, Tensor]:
    """Share kept and mean risk of what is kept, ``(n,)`` each, answering the most certain windows first."""
    ordered = risk[torch.argsort(uncertainty, stable=True)].to(torch.float64)
    count = torch.arange(1, len(risk) + 1, dtype=torch.float64)
    return count / len(risk), ordered.cumsum(0) / count


def aurc(uncertainty: Tensor, risk: Tensor) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, 2017); its oracle is ``aurc(risk, risk)``."""
    return float(risk_coverage(uncertainty, risk)[1].mean())


def spearman(uncertainty: Tensor, error: Tensor) -> float:
    """Rank correlation of uncertainty or strangeness with the forecast's error, ``(n,)`` each, in [-1, 1].

    Equal values share a rank; 0 where either has one value alone and so ranks nothing.
    """
    from scipy.stats import spearmanr

    if len(uncertainty.unique()) < 2 or len(error.unique()) < 2:
        return 0.0
    return float(spearmanr(uncertainty.numpy(), error.numpy()).statistic)


class DetectionScores(NamedTuple):
    """Of a score that should be larger on out-of-distribution windows, the positive class."""

    auroc: float
    aupr: float
    fpr95: float


class Interval(NamedTuple):
    """An estimate and the bounds of its interval."""

    estimate: float
    lower: float
    upper: float


def detection_scores(negative: Tensor, positive: Tensor) -> tuple[float, float]:
    """AUROC and FPR at 95 % TPR of a score that should be larger on ``positive`` (out-of-distribution) windows.

    Equal scores share a rank, so a score that says nothing has AUROC 0.5. The threshold of the FPR is the largest score
    that at least 95 % of ``positive`` reach.
    """
    from torchmetrics.functional.classification import binary_auroc

    threshold = positive.sort().values[len(positive) // 20]
    return float(binary_auroc(*_ranked(negative, positive))), float((negative >= threshold).to(torch.float64).mean())


def average_precision(negative: Tensor, positive: Tensor) -> float:
    """Area under the precision-recall curve (AUPR), ``positive`` windows the positive class; equal scores share a rank.

    A score that says nothing has the share of positives. Its value depends on that share, so compare at equal shares.
    """
    from torchmetrics.functional.classification import binary_average_precision

    return float(binary_average_precision(*_ranked(negative, positive)))


def detection_intervals(
    negative: Tensor,
    positive: Tensor,
    negative_block: Tensor,
    positive_block: Tensor,
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUROC, AUPR and FPR at 95 % TPR with percentile intervals of a bootstrap over blocks (Kuensch, 1989).

    ``negative_block`` ``(n,)`` and ``positive_block`` ``(m,)`` name the stretch of cutoffs that a window belongs to. A
    block is drawn with all its windows, clean and perturbed, since they share weather and holidays, and a pair its origin.
    Deterministic by ``seed``. Raises ValueError where fewer than two blocks have windows of both kinds.
    """
    kinds = {"": positive}
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return detection_intervals_by_kind(negative, kinds, negative_block, positive_block, ("",), **options)[1]  # type: ignore[arg-type]


def detection_intervals_by_kind(
    negative: Tensor,
    kinds: Mapping[str, Tensor],
    negative_block: Tensor,
    positive_block: Tensor,
    averaged: Sequence[str],
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
    """As `detection_intervals` for several kinds of strange windows ``(m,)`` each, and for the mean over those ``averaged``.

    Every resample draws the same blocks for all kinds, so that the mean's interval is that of the mean.
    """
    shared = [name for name in negative_block.unique().tolist() if bool((positive_block == name).any())]
    if len(shared) < 2:
        raise ValueError(f"a block bootstrap takes at least two blocks with clean and strange windows; there are {len(shared)}")
    names_of_blocks = torch.tensor(shared)
    clean, strange = (_place_of(block, names_of_blocks) for block in (negative_block, positive_block))
    counted = [_Ranked.of(negative, positive) for positive in kinds.values()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty((resamples, len(kinds), len(DetectionScores._fields)), dtype=torch.float64)
    for row in range(resamples):
        chosen = torch.randint(len(shared), (len(shared),), generator=generator)
        times = torch.cat([torch.bincount(chosen, minlength=len(shared)), torch.zeros(1, dtype=torch.int64)])
        for number, ranked in enumerate(counted):
            drawn[row, number] = ranked.scores(times[clean], times[strange])
    whole = torch.tensor([_all_scores(negative, positive) for positive in kinds.values()], dtype=torch.float64)
    tail = (1.0 - confidence) / 2.0
    ends = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)

    def intervals(estimate: Tensor, draws: Tensor) -> dict[str, Interval]:
        bounds = torch.quantile(draws, ends, dim=0)
        numbers = zip(DetectionScores._fields, estimate.tolist(), *bounds.tolist(), strict=True)
        return {name: Interval(value, lower, upper) for name, value, lower, upper in numbers}

    names = list(kinds)
    places = [names.index(name) for name in averaged]
    by_kind = {name: intervals(whole[index], drawn[:, index]) for index, name in enumerate(names)}
    return by_kind, intervals(whole[places].mean(0), drawn[:, places].mean(1))


def _place_of(block: Tensor, names: Tensor) -> Tensor:
    """Place of each window's block among the sorted ``names`` ``(b,)``; ``b`` where it is none of them."""
    place = torch.searchsorted(names, block).clamp(max=len(names) - 1)
    return torch.where(names[place] == block, place, len(names))


class _Ranked(NamedTuple):
    """Ranks of clean and of strange windows among all scores, sorted once for all resamples; equal scores share one."""

    negative: Tensor
    positive: Tensor
    ranks: int

    @classmethod
    def of(cls, negative: Tensor, positive: Tensor) -> _Ranked:
        values, rank = torch.unique(torch.cat([negative, positive]).to(torch.float64), return_inverse=True)
        return cls(rank[: len(negative)], rank[len(negative) :], len(values))

    def scores(self, negative: Tensor, positive: Tensor) -> Tensor:
        """`DetectionScores` ``(3,)`` of windows that count as often as these numbers say: `_all_scores` of them repeated."""
        clean = torch.bincount(self.negative, negative.to(torch.float64), minlength=self.ranks)
        strange = torch.bincount(self.positive, positive.to(torch.float64), minlength=self.ranks)
        up_to, strange_up_to = clean.cumsum(0), strange.cumsum(0)
        n, m = up_to[-1], strange_up_to[-1]
        auroc = (strange * (up_to - 0.5 * clean)).sum() / (n * m)
        hits, alarms = m - strange_up_to + strange, n - up_to + clean  # at or above each rank
        precision = hits / (hits + alarms).clamp(min=1.0)
        aupr = (strange * precision).sum() / m
        threshold = torch.searchsorted(strange_up_to, torch.floor(m / 20), right=True)
        return torch.stack([auroc, aupr, alarms[threshold] / n])


def _all_scores(negative: Tensor, positive: Tensor) -> tuple[float, float, float]:
    auroc, fpr95 = detection_scores(negative, positive)
    return auroc, average_precision(negative, positive), fpr95


def _ranked(negative: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of all scores in [0, 1), which torchmetrics wants, and their labels."""
    scores = torch.cat([negative, positive]).to(torch.float64)
    ranks = torch.unique(scores, return_inverse=True)[1].to(torch.float64) / len(scores)
    return ranks, torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))]).long()
