"""Windows as (series, cutoff) pairs, and grids of very many of them that are found when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows as (series, cutoff) pairs: history is rows ``[.., cutoff)`` of the series, the target the next steps.

    ``series`` and ``cutoff`` are int64 tensors of shape ``(n,)``; cutoffs count rows from the start of the series.
    """

    series: Tensor
    cutoff: Tensor

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: Tensor | slice) -> Windows:
        return Windows(self.series[index], self.cutoff[index])


class WindowGrid(Windows):
    """All windows of each series whose cutoffs lie ``stride`` steps apart and end at ``last``; one series after the other.

    ``last`` and ``count``, int64 ``(n_series,)``, are a series' newest cutoff and its number of windows. A window is found by
    its place among all, so that a grid takes 16 bytes a series whatever it holds.
    """

    def __init__(self, last: Tensor, count: Tensor, stride: int) -> None:
        object.__setattr__(self, "last", last)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "_ends", count.cumsum(0))

    last: Tensor
    count: Tensor
    stride: int
    _ends: Tensor

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Tensor | slice) -> Windows:
        """Of places ``(n,)``, int64 from 0, or of a slice."""
        place = torch.arange(*index.indices(len(self))) if isinstance(index, slice) else index
        series = torch.searchsorted(self._ends, place, right=True)
        return Windows(series, self.last[series] - self.stride * (self._ends[series] - 1 - place))

    @property
    def series(self) -> Tensor:  # type: ignore[override]
        """Of all windows ``(n,)``: large."""
        return torch.repeat_interleave(torch.arange(len(self.count)), self.count)

    @property
    def cutoff(self) -> Tensor:  # type: ignore[override]
        """Of all windows ``(n,)``: large."""
        return self[:].cutoff
