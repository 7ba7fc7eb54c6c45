"""Distributions of more windows than memory should hold: the numbers of `Predictive`, a part of the windows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from models.predictive import Predictive

__all__ = ["ROWS", "PredictiveParts", "in_parts"]

ROWS = 2048
"""Windows that are held in float64 at a time."""


class Rows(Protocol):
    """Quantiles of windows ``(n, H, Q)`` of which some are read at a time: a tensor, or what reads a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Tensor: ...


def in_parts(rows: Rows) -> Predictive:
    """Distributions of the windows of ``rows``, a part at a time where there are more than `ROWS`."""
    return Predictive(rows[:]) if len(rows) <= ROWS else PredictiveParts(rows)


class PredictiveParts(Predictive):
    """A `Predictive` of windows ``(n, H)`` that lie in ``source`` and are read, repaired and used ``rows`` at a time.

    What it is asked for has no axis of quantiles and is held whole; ``values``, which has, only where somebody insists. Every
    number depends on its own window alone, so it is to the bit what `Predictive` says of all windows at once.
    """

    def __init__(self, source: Rows, repairs: tuple[Callable[[Predictive], Predictive], ...] = (), rows: int = ROWS) -> None:
        object.__setattr__(self, "_given", (source, repairs, rows))

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """All quantiles, float64 ``(n, H, Q)``: large."""
        return self.each(lambda part: part.values)

    def parts(self) -> Iterator[tuple[slice, Predictive]]:
        """Which windows, and their distributions."""
        source, repairs, rows = self._given  # type: ignore[attr-defined]
        for start in range(0, len(source), rows):
            window = slice(start, start + rows)
            part = Predictive(source[window])
            for repair in repairs:
                part = repair(part)
            yield window, part

    def each(self, work: Callable[..., Any], *of_windows: Tensor) -> Any:
        found = [work(part, *(values[window] for values in of_windows)) for window, part in self.parts()]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def repaired(self, repair: Callable[[Predictive], Predictive]) -> PredictiveParts:
        source, repairs, rows = self._given  # type: ignore[attr-defined]
        return PredictiveParts(source, (*repairs, repair), rows)

    @property
    def levels(self) -> Tensor:
        return Predictive(self._given[0][:1]).levels  # type: ignore[attr-defined]

    @property
    def median(self) -> Tensor:
        return self.each(lambda part: part.median)

    def at(self, index: int) -> Tensor:
        return self.each(lambda part: part.at(index))

    def quantile(self, level: Tensor) -> Tensor:
        return self._with(lambda part, level: part.quantile(level), torch.as_tensor(level, dtype=torch.float64))

    def tail_quantile(self, tail: Tensor, *, upper: bool) -> Tensor:
        return self._with(lambda part, tail: part.tail_quantile(tail, upper=upper), tail)

    def tail_probability(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._with(lambda part, y: part.tail_probability(y), y)

    def log_prob(self, y: Tensor) -> Tensor:
        return self._with(lambda part, y: part.log_prob(y), y)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.each(lambda part: part.moments())

    def _with(self, work: Callable[[Predictive, Tensor], Any], points: Tensor) -> Any:
        """``work`` with ``points`` of each window ``(n, ...)``, or with ones that all windows share, ``(H,)`` or a number."""
        if points.dim() >= 2 and len(points) == len(self._given[0]):  # type: ignore[attr-defined]
            return self.each(work, points)
        return self.each(lambda part: work(part, points))
