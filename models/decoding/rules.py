"""Which drafted tokens are kept, and what comes after them: the rules that make speculative decoding lossless."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Verdict", "accept", "accept_coupled", "choose", "choose_coupled"]


class Verdict(NamedTuple):
    """``tokens`` (r, K + 1) int64, of which the first ``kept`` (r,) are the draft's and the next one is the target's."""

    tokens: Tensor
    kept: Tensor


def choose(mass: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum of ``mass`` (..., V), not negative, reaches its share ``uniform`` (...) in (0, 1)."""
    cumulative = mass.cumsum(-1)
    return (cumulative < uniform[..., None] * cumulative[..., -1:]).sum(-1).clamp_(max=mass.shape[-1] - 1)


def accept(target: Tensor, draft: Tensor, drafted: Tensor, limit: Tensor, accepting: Tensor, choosing: Tensor) -> Verdict:
    """Keep a drafted token x with probability min(1, p(x) / q(x)); after the last one kept, draw by the target.

    Where x is refused, from the residual max(p - q, 0), and from p where rounding leaves nothing of it; after ``limit`` kept
    tokens the bonus from p. Each token then is distributed by p, whatever q is.

    Parameters
    ----------
    target : Tensor (r, K + 1, V)
        p of the K drafted steps and of the one after them.
    draft : Tensor (r, K, V)
        q, from which each of ``drafted`` (r, K) int64 was drawn.
    limit : Tensor (r,) int64
        Drafted tokens that a row may keep; a path near its end takes fewer than K.
    accepting, choosing : Tensor (r, K) and (r, K + 1)
        Uniform numbers of each step.

    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (2023), algorithm 1 and
    appendix A.1; Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling" (2023), theorem 1.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    within = torch.arange(drafted.shape[1], device=drafted.device) < limit[:, None]
    wanted = target[:, :-1].gather(-1, drafted[..., None])[..., 0]
    offered = draft.gather(-1, drafted[..., None])[..., 0]
    kept = ((accepting * offered < wanted) & within).long().cumprod(1).sum(1)
    after = target[rows, kept]
    refused = functional.pad(draft * within[..., None], (0, 0, 0, 1))[rows, kept]  # nothing where the limit ended it
    residual = (after - refused).clamp_(min=0.0)
    residual = torch.where(residual.sum(-1, keepdim=True) > 0.0, residual, after)
    token = choose(residual, choosing.gather(1, kept[:, None])[:, 0])
    return Verdict(functional.pad(drafted, (0, 1)).scatter_(1, kept[:, None], token[:, None]), kept)


def choose_coupled(mass: Tensor, gumbel: Tensor) -> Tensor:
    """The token that maximises log mass + ``gumbel`` (..., V): distributed by ``mass`` (..., V) (Gumbel, 1954)."""
    return (mass.log() + gumbel).argmax(-1)


def accept_coupled(target: Tensor, drafted: Tensor, limit: Tensor, gumbel: Tensor) -> Verdict:
    """Keep drafted tokens as long as they are those that the target itself chooses with the same ``gumbel`` (r, K + 1, V).

    The result is what `choose_coupled` gives step by step, the same for every draft. Other arguments as in `accept`.

    Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding" (2025).
    """
    tokens = choose_coupled(target, gumbel)
    within = torch.arange(drafted.shape[1], device=drafted.device) < limit[:, None]
    return Verdict(tokens, ((tokens[:, :-1] == drafted) & within).long().cumprod(1).sum(1))
