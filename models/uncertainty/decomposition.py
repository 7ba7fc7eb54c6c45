"""Split of a categorical ensemble's entropy into what data leave open and what the members disagree about.

The split of the variance, for every other forecast, is `models.uncertainty.ensemble.decompose`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.predictive import Predictive

__all__ = ["EntropySplit", "bin_index", "bin_probabilities", "entropy", "split_entropy"]

ROUNDING = 1e-12
"""Mutual information below zero by no more than this is rounding."""


class EntropySplit(NamedTuple):
    """In nats, ``(...)`` each: ``total`` is ``aleatoric`` (expected entropy) plus ``epistemic`` (mutual information)."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """``-sum p log p`` over the last axis, in nats: ``(..., K)`` -> ``(...)``, with 0 log 0 = 0."""
    return torch.special.entr(probabilities.to(torch.float64)).sum(-1)


def split_entropy(probabilities: Tensor, weights: Tensor | None = None) -> EntropySplit:
    """Entropy, expected entropy and mutual information of members' ``probabilities`` ``(M, ..., K)``, over the same bins.

    With pbar = sum_m w_m p_m: H(pbar) = sum_m w_m H(p_m) + sum_m w_m KL(p_m | pbar), whose last term is the mutual
    information between outcome and member (Depeweg et al., 2018, equation 4; Smith and Gal, 2018). Computed as that
    sum of divergences, which keeps the digits of small ones that a difference of entropies would lose.

    ``weights`` ``(M,)`` are equal where left out. The bins of a `CategoricalHead` lie about the member's own base, so
    members of different bases are first brought onto common bins by `bin_probabilities`.

    Raises
    ------
    ValueError
        If probabilities or weights are negative or do not sum to 1 (within 1e-4), or the shapes do not fit.
    """
    members = len(probabilities)
    weights = torch.full((members,), 1.0 / members) if weights is None else weights
    if weights.shape != (members,):
        raise ValueError(f"weights has shape {tuple(weights.shape)}; there are {members} members")
    weights, probabilities = _normalised(weights, "weights"), _normalised(probabilities, "probabilities")
    pooled = torch.tensordot(weights, probabilities, dims=1)
    aleatoric = torch.tensordot(weights, entropy(probabilities), dims=1)
    ratio = torch.where(probabilities > 0, probabilities / pooled.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    epistemic = torch.tensordot(weights, torch.special.xlogy(probabilities, ratio).sum(-1), dims=1)
    epistemic = torch.where((epistemic < 0) & (epistemic >= -ROUNDING), 0.0, epistemic)
    return EntropySplit(entropy(pooled), aleatoric, epistemic)


def bin_probabilities(predictive: Predictive, edges: Tensor) -> Tensor:
    """Probability of each bin between ``edges`` ``(..., K - 1)``, the outer two open: ``(...)`` -> ``(..., K)``, float64.

    Brings members of any head onto common bins, the same for all distributions or, with leading axes that broadcast
    against theirs, other ones for each. A bin holds its upper edge; equal edges leave an empty bin between them. Raises
    ValueError where edges fall or are missing.
    """
    edges = edges.to(torch.float64)
    if edges.dim() < 1 or not bool((edges.diff(dim=-1) >= 0).all()) or bool(edges.isnan().any()):
        raise ValueError("edges of bins must be rows of numbers that do not fall")
    below = torch.stack([predictive.cdf(edge) for edge in edges.unbind(-1)], dim=-1)
    return torch.cat([below[..., :1], below.diff(dim=-1), 1.0 - below[..., -1:]], dim=-1).clamp(min=0.0)


def bin_index(values: Tensor, edges: Tensor) -> Tensor:
    """Bin of each of ``values`` ``(...)``, int64 ``(...)``, as `bin_probabilities` counts them."""
    return (values.to(torch.float64)[..., None] > edges.to(torch.float64)).sum(-1)


def _normalised(values: Tensor, name: str) -> Tensor:
    """``values`` ``(..., K)`` in float64 with sums of exactly 1."""
    values = values.to(torch.float64)
    total = values.sum(-1, keepdim=True)
    if not bool((values >= 0).all()) or not bool(((total - 1.0).abs() <= 1e-4).all()):
        raise ValueError(f"{name} must be at least 0 and sum to 1 over the last axis")
    return values / total
