"""Dropout with several times fewer random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` whose draws are 16 bits each, four of them from one 64-bit random number.

    The probability of keeping an entry is rounded to 1 / 65536, and what is kept is divided by the rounded probability,
    so that the mean is exact.
    """

    def factors(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """Factors 0 or 1 / keep of ``shape``, of the type and on the device of ``like``; None where nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        keep = max(1, round((1.0 - self.p) * 65536))
        count = torch.Size(shape).numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
        kept = bits.view(torch.int16)[:count].view(shape) < keep - 32768
        return kept.to(like.dtype).mul_(65536.0 / keep)

    def forward(self, input: Tensor) -> Tensor:
        factors = self.factors(input.shape, input)
        return input if factors is None else input * factors
