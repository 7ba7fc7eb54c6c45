"""Champion against challenger on identical fresh cutoffs, and the gate that lets one through."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from models.panel import places_by_series
from models.uncertainty import scores
from models.uncertainty.comparison import Comparison, paired_block_bootstrap
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.evaluate import blocks
from tasks.params import Params
from tasks.prepare import INGESTED, Prepared, load_prepared

LEVEL = 90
LEAST_IN_SLICE = 10
"""Windows that a slice needs to be judged by itself."""


@dataclass(frozen=True)
class Verdict:
    """What the gate found: ``passed``, its reasons in words, and the figures behind them."""

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    @property
    def text(self) -> str:
        return "; ".join(self.reasons)


@dataclass(frozen=True)
class Performance:
    """A bundle on the test windows: CRPS ``(n, H)`` and whether each step lies in its 90 % interval ``(n, H)``."""

    crps: Tensor
    covered: Tensor


def judge(params: Params, root: Path, champion: Bundle, challenger: Bundle, promoted_at: str | None) -> Verdict:
    """Compare both on the test fold of the panel that is ingested now.

    The challenger passes when its CRPS is lower in at least ``promotion.confidence`` of resamples of blocks of time, the
    coverage of its 90 % intervals lies within ``promotion.coverage_tolerance`` or nearer to 90 % than the champion's, no
    slice (a series, or a third of the horizon) is worse by more than ``promotion.slice_tolerance``, and the champion has
    stood for ``promotion.least_days``; ``promoted_at`` says since when, as ISO 8601.

    Raises UserError where the champion does not fit the data or the test fold holds fewer than two blocks.
    """
    prepared = load_prepared(root)
    old, new = (perform(params, bundle, root, prepared) for bundle in (champion, challenger))
    windows, rules = prepared.fold("test", "evaluate"), params.promotion
    block = blocks(prepared, windows)
    try:
        found = paired_block_bootstrap(old.crps.mean(1), new.crps.mean(1), block, seed=params.train.seed)
    except ValueError as error:
        raise UserError(f"champion and challenger cannot be compared: {error}.") from None
    before, after = (float(each.covered.double().mean()) for each in (old, new))
    worse = worse_slices(old.crps, new.crps, windows.series, [str(name) for name in prepared.ids], rules.slice_tolerance)
    objections = []
    if torch.equal(old.crps, new.crps):
        objections.append("it forecasts exactly what the champion does")
    elif found.better < rules.confidence:
        objections.append(
            f"CRPS {_change(found)}: lower in {found.better:.0%} of resamples, {rules.confidence:.0%} are asked for"
        )
    if abs(after - LEVEL / 100) > max(rules.coverage_tolerance, abs(before - LEVEL / 100)):
        objections.append(f"its {LEVEL} % intervals cover {after:.1%}, the champion's {before:.1%}")
    objections += [f"CRPS of {name} is {change:.0%} higher" for name, change in worse[:3]]
    if len(worse) > 3:
        objections.append(f"and of {len(worse) - 3} more slices")
    if promoted_at is not None and (days := _days_since(promoted_at)) < rules.least_days:
        objections.append(f"the champion stands for {days:.1f} days, promotion.least_days is {rules.least_days}")
    figures = {
        **{f"crps_{name}": value for name, value in found._asdict().items()},
        "champion_crps": float(old.crps.mean()), "challenger_crps": float(new.crps.mean()),
        f"champion_coverage_{LEVEL}": before, f"challenger_coverage_{LEVEL}": after,
        "windows": len(windows), "blocks": len(block.unique()), "worse_slices": dict(worse), "rules": rules.model_dump(),
    }  # fmt: skip
    passed = not objections
    return Verdict(passed, (f"CRPS {_change(found)}",) if passed else tuple(objections), figures)


def perform(params: Params, bundle: Bundle, root: Path, prepared: Prepared) -> Performance:
    """Forecast the test windows of the panel with a bundle, whatever it was trained on.

    Raises UserError where the data lacks what the bundle reads, or its horizon is another one.
    """
    frame = pd.read_parquet(root / INGESTED / "panel.parquet")
    if problem := bundle.misfit(frame, params):
        raise UserError(f"{problem}; promote the challenger by hand.")
    windows = prepared.fold("test", "evaluate")
    predictive = bundle.predictive(bundle.encoding.panel(frame), windows)
    series = [str(name) for name in prepared.ids[windows.series.numpy()]]
    target = prepared.panel.targets(windows)
    covered = scores.coverage(*bundle.calibration.interval(predictive, LEVEL, series), target)
    return Performance(scores.crps(predictive, target), covered)


def worse_slices(old: Tensor, new: Tensor, series: Tensor, names: list[str], tolerance: float) -> list[tuple[str, float]]:
    """Slices whose loss ``(n, H)`` grew by more than ``tolerance``, worst first: series, and thirds of the horizon."""
    found: list[tuple[str, float]] = []

    def look(name: str, before: Tensor, after: Tensor) -> None:
        change = float(after.sum() / before.sum() - 1)
        if change > tolerance:
            found.append((name, change))

    for name, rows in zip(names, places_by_series(series, len(names)), strict=True):
        if len(rows) >= LEAST_IN_SLICE:
            look(f"series {name}", old[rows], new[rows])
    horizon = old.shape[1]
    for first, last in ((third * horizon // 3, (third + 1) * horizon // 3) for third in range(3)):
        if last > first:
            look(f"steps {first + 1} to {last}", old[:, first:last], new[:, first:last])
    return sorted(found, key=lambda each: -each[1])


def _change(found: Comparison) -> str:
    return f"{found.change:+.1%} ({found.lower:+.1%} to {found.upper:+.1%})"


def _days_since(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() / 86_400
