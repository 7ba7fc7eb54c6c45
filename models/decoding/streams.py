"""Random numbers that belong to a path: a function of (seed, path, step, purpose), so no batch or order changes them.

A path is drawn from its own numbers alone. So it does not depend on which paths are sampled beside it, nor on how many
tokens a round of speculative decoding keeps: a step that is drafted again is drafted from the same number, which nothing
that was kept has looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ACCEPT", "CHOOSE", "DRAFT", "WITHIN", "Streams"]

DRAFT, ACCEPT, CHOOSE, WITHIN = range(4)
"""Purposes: the draft's token, whether it is accepted, the target's token, and the place of a value within its bin."""

PURPOSES = 4

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed number
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(values: Tensor) -> Tensor:
    """Finaliser of SplitMix64 on int64, products modulo 2^64 (Steele, Lea and Flood, 2014, figure 18)."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _absorbed(state: Tensor, values: Tensor) -> Tensor:
    return _mixed((state ^ values) + _GOLDEN)


def _uniform(bits: Tensor) -> Tensor:
    """float64 in the open interval (0, 1), from the upper 52 bits."""
    return _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)


class Streams:
    """The random numbers of R paths over a horizon.

    Parameters
    ----------
    seed : int
    keys : Tensor
        int64 ``(R,)``, the name of each path; paths of one key have the same numbers.
    horizon : int
        Steps of a path; numbers beyond it exist and are the last step's.
    """

    def __init__(self, seed: int, keys: Tensor, horizon: int) -> None:
        self.seed, self.keys, self.horizon = seed, keys, horizon
        start = _mixed(torch.tensor(seed, dtype=torch.int64, device=keys.device) + _GOLDEN)
        steps = torch.arange(horizon, device=keys.device)
        self._steps = _absorbed(_absorbed(start, keys)[:, None], steps)  # (R, H)
        purposes = torch.arange(PURPOSES, device=keys.device)
        self._table = _uniform(_absorbed(self._steps[..., None], purposes))  # (R, H, purposes)

    def others(self, number: int) -> Streams:
        """Numbers of the same paths that have nothing to do with these, the same again for the same ``number``."""
        return Streams(self.seed ^ ((number + 1) << 40), self.keys, self.horizon)

    def all(self, purpose: int) -> Tensor:
        """float64 ``(R, H)`` uniform numbers."""
        return self._table[..., purpose]

    def uniform(self, purpose: int, rows: Tensor, position: Tensor) -> Tensor:
        """float64 uniform numbers of paths ``rows`` at steps ``position``, of the shape that both broadcast to."""
        return self._table[rows, position.clamp(max=self.horizon - 1), purpose]

    def gumbel(self, bins: int, rows: Tensor, position: Tensor) -> Tensor:
        """Standard Gumbel numbers ``(..., bins)`` float64 of paths ``rows`` at steps ``position``, as `uniform`."""
        each = torch.arange(PURPOSES, PURPOSES + bins, device=self._steps.device)
        bits = _absorbed(self._steps[rows, position.clamp(max=self.horizon - 1)][..., None], each)
        return -(-_uniform(bits).log_()).log_()
