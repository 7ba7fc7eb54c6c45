"""What attention says: how far back a forecast looks, and whether it looks where it usually does."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lag_profile", "pattern_distance"]


def lag_profile(attention: Tensor, context: int) -> Tensor:
    """Share of attention by how many steps before the forecast step it lies.

    For lags up to ``context`` every step of the horizon can look that far back, so the share is the mean weight and two
    such lags compare fairly; longer ones are within reach of the later steps alone.

    Parameters
    ----------
    attention
        Float ``(..., H, context + H)``: for each step of the horizon its weights on the ``context`` steps of history,
        oldest first, and on the steps of the horizon; 0 on its own step and later ones.
    context
        Steps of history.

    Returns
    -------
    Tensor
        ``(..., context + H - 1)``; column l - 1 holds lag l in steps. Adds to one where each row of ``attention`` does.

    Raises
    ------
    ValueError
        Where ``attention`` has not ``context + H`` columns.
    """
    horizon, positions = attention.shape[-2:]
    if positions != context + horizon:
        raise ValueError(f"attention has {positions} columns; context {context} and horizon {horizon} need their sum")
    step = torch.arange(horizon, device=attention.device)[:, None]
    position = context + step - torch.arange(1, positions, device=attention.device)  # lag l of step h: context + h - l
    weights = attention.gather(-1, position.clamp(min=0).expand(*attention.shape[:-1], -1))
    return (weights * (position >= 0)).mean(dim=-2)


def pattern_distance(first: Tensor, second: Tensor) -> Tensor:
    """Distance of two attention patterns, 0 for equal ones and 1 for ones without a step in common.

    ``kappa(p, q) = sqrt(1 - sum_j sqrt(p_j q_j))``, one less the Bhattacharyya coefficient (Lim et al., 2021, section
    7.3), computed as ``sqrt(sum_j (sqrt p_j - sqrt q_j)^2 / 2)``, which is the same for weights that add to one and
    loses no digits near 0.

    Parameters
    ----------
    first, second
        Float ``(..., P)``, not negative, broadcast against each other; each is brought to a sum of one.

    Returns
    -------
    Tensor
        float64 ``(...)`` in [0, 1].
    """
    roots = [(p / p.sum(dim=-1, keepdim=True)).sqrt() for p in (first.to(torch.float64), second.to(torch.float64))]
    return ((roots[0] - roots[1]).square().sum(dim=-1) / 2).clamp(max=1).sqrt()
