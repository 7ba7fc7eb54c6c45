"""What the metrics of a model on the test fold are made of, worked out for some windows at a time, here or by workers.

Windows lie in the order of their series. What a piece of them gives depends on those alone, and sums are kept for each
`models.predictive_parts.ROWS` windows, so that pieces one after the other are what all windows give, to the bit, whoever
worked them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.predictive import Predictive
from models.predictive_parts import ROWS, PredictiveParts, in_parts
from models.uncertainty import scores
from models.uncertainty.calibration import INTERVAL_LEVELS, JOINT_LEVEL, Calibration
from tasks.arrays import ArrayRows
from tasks.calibrate import CALIBRATION, load_calibration, window_series
from tasks.ensemble import pooled_rows
from tasks.files import atomic_path
from tasks.on_worker import IN_TURN, must_see
from tasks.prepare import PREPARED, Prepared, load_prepared

BASELINE = Path("artifacts/baselines")
PIECE = 8 * ROWS
"""Windows that a worker is given at a time."""

Bounds = tuple[Tensor, Tensor]


class ModelScores(NamedTuple):
    """What the metrics of a model on n windows need, float64.

    Attributes
    ----------
    crps, median, pit : ``(n, H)``
    bounds : ``(n, H, L, 2)``, of the intervals at ``INTERVAL_LEVELS``
    band : ``(n, H, 2)``, the joint band; ``(n, H, 0)`` where there is none
    pinball : ``(p, 9)``, sums of the losses at the deciles over each `ROWS` windows
    below : ``(p, Q)``, how many truths of each `ROWS` windows are at or below each of ``LEVELS``
    """

    crps: Tensor
    median: Tensor
    pit: Tensor
    bounds: Tensor
    band: Tensor
    pinball: Tensor
    below: Tensor

    @classmethod
    def of(cls, predictive: Predictive, target: Tensor, intervals: Sequence[Bounds], band: Bounds | None) -> ModelScores:
        """Of at most `ROWS` windows' distributions and truths ``(n, H)``, with the bounds at each of ``INTERVAL_LEVELS``."""
        return cls(
            scores.crps(predictive, target),
            predictive.median,
            predictive.cdf(target),
            torch.stack([torch.stack(pair, dim=-1) for pair in intervals], dim=-2),
            target.new_zeros((*target.shape, 0), dtype=torch.float64) if band is None else torch.stack(band, dim=-1),
            scores.decile_losses(predictive, target)[None],
            scores.truths_below(predictive, target)[None],
        )

    @classmethod
    def joined(cls, pieces: Iterable[ModelScores]) -> ModelScores:
        """Those of windows one after the other."""
        return cls(*(torch.cat(column) for column in zip(*pieces, strict=True)))

    def metrics(self, target: Tensor, scale: Tensor) -> dict[str, float]:
        """Metrics by name, for truths ``(n, H)`` and MASE's ``scale`` ``(n,)``; widths and CRPS in the target's units."""
        target = target.to(torch.float64)
        row = {
            "wql": scores.wql_of(self.pinball, target),
            "crps": float(self.crps.mean()),
            "wape": scores.wape(self.median, target),
            "mase": scores.mase(self.median, target, scale),
            "ece": scores.calibration_error_of(self.below, target.numel()),
            "pit_ks": scores.pit_distance(self.pit),
        }
        for level, pair in zip(INTERVAL_LEVELS, self.bounds.unbind(-2), strict=True):
            lower, upper = pair.unbind(-1)
            row[f"coverage_{level}"] = float(scores.coverage(lower, upper, target).double().mean())
            row[f"width_{level}"] = float((upper - lower).mean())
        if self.band.shape[-1]:
            lower, upper = self.band.unbind(-1)
            row[f"joint_coverage_{JOINT_LEVEL}"] = float(scores.coverage(lower, upper, target).all(dim=1).double().mean())
            row[f"joint_width_{JOINT_LEVEL}"] = float((upper - lower).mean())
        return row


@dataclass(frozen=True)
class Piece:
    """Windows ``[first, last)`` of the test fold as ``model`` forecasts them, one of `load_calibration`'s or a baseline."""

    root: Path
    model: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.first}"


RunPieces = Callable[[Sequence[Piece], Callable[[Piece, ModelScores], None]], None]
"""Scores pieces wherever it likes, and hands them over in order."""


def run_pieces(pieces: Sequence[Piece], take: Callable[[Piece, ModelScores], None]) -> None:
    """Score pieces in this process, one after the other."""
    for piece in pieces:
        take(piece, score_piece(piece))


def pieces_of(root: Path, model: str, windows: int) -> list[Piece]:
    """All ``windows`` of the test fold, in order."""
    return [Piece(root, model, first, min(first + PIECE, windows)) for first in range(0, max(windows, 1), PIECE)]


@dataclass(frozen=True)
class SharedPiece:
    """A piece that a worker scores, and the folder through which its scores come back."""

    piece: Piece
    folder: Path

    @property
    def name(self) -> str:
        return self.piece.name

    @property
    def scores(self) -> Path:
        """File of the piece's scores."""
        return self.folder / f"{self.name}.safetensors"


def score_on_worker(shared: SharedPiece) -> None:
    """Score a piece in a worker's process, with one thread. Raises UserError where the worker does not see the project."""
    from safetensors.torch import save_file

    must_see(shared.folder)
    torch.set_num_threads(1)
    with IN_TURN:
        scored = score_piece(shared.piece)
    with atomic_path(shared.scores) as temporary:
        save_file({name: values.contiguous() for name, values in scored._asdict().items()}, temporary)


def take_scores(shared: SharedPiece) -> ModelScores:
    """What a worker found of a piece; its file is deleted."""
    from safetensors.torch import load_file

    found = ModelScores(**load_file(shared.scores))
    shared.scores.unlink()
    return found


def score_piece(piece: Piece) -> ModelScores:
    """Read the forecasts of a piece's windows, calibrate them, and score them."""
    prepared, calibrations = _loaded(piece.root)
    rows = slice(piece.first, piece.last)
    windows = prepared.fold("test", "evaluate")[rows]
    calibration, target = calibrations.get(piece.model), prepared.panel.targets(windows)
    if calibration is None:
        return model_scores(in_parts(ArrayRows(piece.root / BASELINE / f"{piece.model}.npy")[rows]), target)
    given = in_parts(pooled_rows(piece.root, piece.model, "test", "evaluate")[rows])
    return model_scores(calibration.apply(given), target, calibration, window_series(prepared, windows))


@lru_cache(maxsize=1)
def _at(root: Path, written: tuple[int, ...]) -> tuple[Prepared, dict[str, Calibration]]:
    return load_prepared(root), load_calibration(root)[0]


def _loaded(root: Path) -> tuple[Prepared, dict[str, Calibration]]:
    """The panel and the calibrations, read once a process for as long as nobody writes them anew."""
    return _at(
        root, tuple((root / path).stat().st_mtime_ns for path in (PREPARED / "meta.json", CALIBRATION / "calibration.json"))
    )


def central_interval(predictive: Predictive, level: int) -> Bounds:
    """The central interval that a distribution itself gives, in percent."""
    tail = torch.tensor((1 - level / 100) / 2, dtype=torch.float64)
    return predictive.tail_quantile(tail, upper=False), predictive.tail_quantile(tail, upper=True)


def model_scores(
    predictive: Predictive, target: Tensor, calibration: Calibration | None = None, series: Sequence[str] = ()
) -> ModelScores:
    """Of distributions and truths ``(n, H)``, with the calibration's intervals or the distributions' own central ones."""
    whole = predictive.parts() if isinstance(predictive, PredictiveParts) else [(slice(0, len(target)), predictive)]
    found = []
    for rows, part in whole:
        if calibration is None:
            intervals, band = [central_interval(part, level) for level in INTERVAL_LEVELS], None
        else:
            intervals = [calibration.interval(part, level, series[rows]) for level in INTERVAL_LEVELS]
            band = calibration.joint.band(part)
        found.append(ModelScores.of(part, target[rows], intervals, band))
    return ModelScores.joined(found)
