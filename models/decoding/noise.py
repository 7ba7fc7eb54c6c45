"""Random numbers for sampled paths."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stratified_normal"]


def stratified_normal(steps: int, paths: int, like: Tensor) -> Tensor:
    """Standard normal draws ``(steps, paths)``, a Latin hypercube sample, of the type and on the device of ``like``.

    Each step has one draw in each of ``paths`` equally likely intervals, in an order of its own. A single path so is
    exactly as independent draws would make it, and quantiles over paths vary less (McKay, Beckman and Conover, 1979).
    From torch's random state. Where all windows of a batch share them, a window's paths do not depend on what else is in it.
    """
    order = torch.rand(steps, paths, dtype=torch.float64, device=like.device).argsort(dim=1)
    inside = torch.rand(steps, paths, dtype=torch.float64, device=like.device)
    uniform = (order + inside) / paths
    tiny = torch.finfo(torch.float64).eps
    return torch.special.ndtri(uniform.clamp(tiny, 1.0 - tiny)).to(like.dtype)
