"""What a time alone tells, kept once for each step of the time axis that a panel's series share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calendar:
    """Features that depend on time alone, which every series of a panel has in common.

    Attributes
    ----------
    reals : float32 ``(n_steps, n_reals)``, the last of ``PanelSchema.known``
    codes : int64 ``(n_steps, n_categories)``, ``PanelSchema.categories``
    first : int64 ``(n_series,)``; the first row of series i is at step ``first[i]``, the next one a step later
    """

    reals: Tensor
    codes: Tensor
    first: Tensor

    @classmethod
    def of_rows(cls, reals: Tensor, codes: Tensor, offsets: Tensor) -> Calendar:
        """A calendar in which each row of a panel is a step of its own: ``reals`` and ``codes`` have a row each."""
        return cls(reals, codes, offsets[:-1])

    @classmethod
    def none(cls, offsets: Tensor) -> Calendar:
        """The calendar of a panel with the series that ``offsets`` ``(n_series + 1,)`` bound and no such features."""
        rows = int(offsets[-1])
        return cls.of_rows(torch.zeros(rows, 0), torch.zeros(rows, 0, dtype=torch.int64), offsets)

    def of(self, series: Tensor, later: Tensor | int) -> Calendar:
        """The same steps for other series: those chosen, each beginning ``later`` steps after it did."""
        return replace(self, first=self.first[series] + later)
