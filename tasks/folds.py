"""Folds in time, and the linter that refuses to use one for another's purpose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from math import gcd

import numpy as np
import torch

from models.panel import Panel, WindowGrid, Windows
from tasks.settings import FOLDS, Settings

#: What each fold may be used for, and nothing else.
PURPOSES = {
    "train": {"fit networks", "fit feature statistics"},
    "early_stopping": {"choose epoch", "weight members", "tune"},
    "temperature": {"fit temperature", "fit step scale"},
    "ood": {"fit gate"},
    "conformal": {"fit conformal", "fit abstention"},
    "test": {"evaluate"},
}


TRAIN_STRIDE = 1


class FoldLeak(RuntimeError):
    """A fold was asked for a purpose that is not its own."""


def claim(fold: str, purpose: str) -> str:
    """Return ``fold`` if ``purpose`` is its own; raise :class:`FoldLeak` otherwise, which stops the run."""
    if purpose not in PURPOSES.get(fold, set()):
        right = next((name for name, uses in PURPOSES.items() if purpose in uses), "no fold")
        raise FoldLeak(f"fold '{fold}' must not be used to {purpose}: that is what '{right}' is for")
    return fold


@dataclass(frozen=True)
class Fold:
    """A stretch of time steps ``[start, end)`` that holds the targets of its windows, counted from the panel's first."""

    name: str
    start: int
    end: int


def lay_folds(settings: Settings, end: int) -> list[Fold]:
    """Lay the folds backwards from ``end`` (one past the last observed step), ``gap`` steps between neighbours."""
    folds, stop = [], end
    for name in reversed(FOLDS):
        start = stop - getattr(settings, name)
        folds.append(Fold(name, start, stop))
        stop = start - settings.gap
    folds.append(Fold("train", 0, stop))
    folds.reverse()
    lint_folds(folds, settings.gap)
    return folds


def lint_folds(folds: list[Fold], gap: int) -> None:
    """Raise :class:`FoldLeak` unless folds follow each other in time with at least ``gap`` steps between them."""
    order = ["train", *FOLDS]
    if [fold.name for fold in folds] != order:
        raise FoldLeak(f"folds are {[fold.name for fold in folds]}; they must be {order}")
    for earlier, later in pairwise(folds):
        if earlier.end <= earlier.start or later.start - earlier.end < gap:
            raise FoldLeak(
                f"fold '{earlier.name}' ends at step {earlier.end} and '{later.name}' starts at {later.start}; "
                f"each needs at least one step and {gap} between them"
            )


def fold_windows(fold: Fold, panel: Panel, first_step: np.ndarray, settings: Settings) -> WindowGrid:
    """Windows whose targets lie wholly in ``fold``.

    ``first_step`` int64 ``(n_series,)`` is each series' first step on the panel's time axis. Training takes every
    cutoff, the test fold one every ``cutoff_every`` steps, the folds between one every ``overlapping_stride``: their
    windows overlap, which costs nothing but effective sample size and that is measured.
    """
    observed = panel.observed.numpy()
    minimum = min(settings.context, 2 * settings.season_length) if fold.name == "train" else 2
    stride = {"train": TRAIN_STRIDE, "test": settings.cutoff_every}.get(fold.name, overlapping_stride(settings))
    first = fold.start - first_step
    last = np.minimum(fold.end - first_step, observed) - settings.horizon
    if fold.name != "train":  # keep to the grid that ends with the fold, also where a series ends earlier
        late = np.maximum(fold.end - first_step - observed, 0)
        last = fold.end - first_step - settings.horizon - -(-late // stride) * stride
    return panel.window_grid(first, last, stride, max(minimum, 2))


def drawn(windows: Windows, most: int | None, seed: int) -> Windows:
    """At most ``most`` of the windows, each as likely as any other, in their order; all of them where it is None.

    A temperature, a rank and a mean take tens of thousands of windows: a rank among 100,000 is off by .001 at 90 % (one
    standard deviation, as if they were independent), and windows of one stretch of time are far from that. Drawn at random,
    so that the windows stay as exchangeable as they were.
    """
    if most is None or len(windows) <= most:
        return windows
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return windows[chosen]


def overlapping_stride(settings: Settings) -> int:
    """Steps between cutoffs of the calibration folds: at most half of ``cutoff_every`` and without a common divisor with
    the season, so that the cutoffs fall on every day of the week or hour of the day, as those to come may."""
    stride = max(1, settings.cutoff_every // 2)
    while gcd(stride, settings.season_length) > 1:
        stride -= 1
    return stride


def fold_table(folds: list[Fold]) -> list[dict[str, int | str]]:
    """Folds as plain dictionaries, for JSON."""
    return [asdict(fold) for fold in folds]
