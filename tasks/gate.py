"""The gate on a project's folds: what it reads of a window, its fit, and what its card promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.panel import Panel, Windows
from models.predictive import Predictive
from models.predictive_parts import ROWS
from models.uncertainty.abstention import ExpectedError
from models.uncertainty.calibration import Calibration
from models.uncertainty.descriptors import DESCRIPTORS, descriptors
from models.uncertainty.gate import Gate
from models.uncertainty.selective import SelectiveGuarantee, clipped_loss, least_windows, threshold_grid
from tasks.arrays import ArrayRows
from tasks.ensemble import ENSEMBLE, POOLED, pooled
from tasks.folds import claim
from tasks.params import Params
from tasks.prepare import Prepared
from tasks.train import TRAINED

ENCODERS = (
    "tcn",
    "tide",
    "mamba",
    "s4d",
    "mamba2",
    "hybrid",
    "wavenet",
    "deepar",
    "tft",
    "gradient_boosting",
)  # whose first member's features the gate reads: the first that was trained
LOSS_BOUND = 0.95  # share of the OOD fold's errors that lie below what the promise counts as the largest


class Look(NamedTuple):
    """What the gate and abstention see of a fold's windows, ``(n, ...)`` each.

    ``error`` is the mean absolute error of the median over the horizon in units of the window's ``scale``.
    """

    windows: Windows
    scale: Tensor
    score: Tensor
    signals: Tensor
    error: Tensor


def encoder_family(params: Params) -> str:
    """The family whose encoder the gate and the projections read."""
    return next(family for family in ENCODERS if family in params.families)


def gate_features(encoded: Tensor, panel: Panel, windows: Windows) -> Tensor:
    """Encoder features ``(n, D)`` with the descriptors of the raw history that scaling hides, float64 ``(n, D + K)``."""
    return torch.cat([encoded.to(torch.float64), descriptors(panel, windows)], dim=1)


def relative_spread(predictive: Predictive, scale: Tensor) -> Tensor:
    """Mean predictive standard deviation over the horizon in units of the window's own ``scale``, ``(n,)``."""
    return predictive.variance.sqrt().mean(dim=-1) / scale


def error_signals(predictive: Predictive, epistemic: Tensor, scale: Tensor) -> Tensor:
    """What a forecast says of its own error ``(n, 2)``: its relative spread and its members' relative disagreement.

    ``epistemic`` ``(n, H)`` is the variance between members.
    """
    disagreement = epistemic.to(torch.float64).clamp(min=0).sqrt().mean(dim=-1) / scale
    return torch.stack([relative_spread(predictive, scale), disagreement], dim=1)


def look(root: Path, family: str, prepared: Prepared, calibration: Calibration, gate: Gate, fold: str, purpose: str) -> Look:
    """Scores, signals and errors of the ensemble on a fold, for a purpose that is the fold's own."""
    windows = prepared.fold(fold, purpose)
    predictive = calibration.apply(pooled(root, ENSEMBLE, fold, purpose))
    epistemic = torch.from_numpy(np.load(root / POOLED / f"epistemic_{fold}.npy"))
    scale = prepared.panel.levels(windows)[0]
    encoded = ArrayRows(root / TRAINED / family / f"features_{claim(fold, purpose)}.npy")
    parts = [slice(start, start + ROWS) for start in range(0, max(len(windows), 1), ROWS)]
    score = torch.cat([gate.score(gate_features(encoded[part], prepared.panel, windows[part])) for part in parts])
    error = (prepared.panel.targets(windows) - predictive.median).abs().mean(dim=1) / scale
    return Look(windows, scale, score, error_signals(predictive, epistemic, scale), error)


def fit_gate(params: Params, root: Path, prepared: Prepared, calibration: Calibration) -> Gate:
    """The gate alone of `fit_gate_and_looks`."""
    return fit_gate_and_looks(params, root, prepared, calibration)[0]


def fit_gate_and_looks(
    params: Params, root: Path, prepared: Prepared, calibration: Calibration
) -> tuple[Gate, tuple[Look, Look]]:
    """Fit the gate; returns it and what it sees of the OOD and the conformal fold.

    What is ordinary comes from training windows, how experts are joined and how wrong a forecast is expected to be from the
    OOD fold, what raises the alarm and how much is withheld from the conformal fold, the newest.
    """
    family, panel, settings = encoder_family(params), prepared.panel, params.calibration
    sample = Windows(*torch.from_numpy(np.load(root / TRAINED / family / "windows_sample.npy")))
    encoded = torch.from_numpy(np.load(root / TRAINED / family / "features_train.npy"))
    gate = Gate.fit(gate_features(encoded, panel, sample), None, alpha=settings.ood_alpha)
    ood = look(root, family, prepared, calibration, gate, "ood", "fit gate")
    later = look(root, family, prepared, calibration, gate, "conformal", "fit abstention")
    error = ExpectedError.fit(ood.signals, ood.score, ood.error)
    uncertainty = (error.predict(fold.signals, fold.score) for fold in (ood, later))
    parts = [(fold.score, values) for fold, values in zip((ood, later), uncertainty, strict=True)]
    return gate.with_abstention(error, parts[0], parts[1], settings.abstain_fraction), (ood, later)


def gate_card(params: Params, prepared: Prepared, gate: Gate) -> dict[str, Any]:
    """What the alarm for strange input promises."""
    return {
        "encoder": encoder_family(params),
        "descriptors": len(DESCRIPTORS),
        "nominal_false_alarm_rate": gate.alpha,
        "n": len(gate.scores),
        "fold": span(prepared, prepared.fold("conformal", "fit abstention")),
    }


def looks_again(params: Params, root: Path, prepared: Prepared, calibration: Calibration, gate: Gate) -> tuple[Look, Look]:
    """What a fitted gate sees of the OOD and the conformal fold."""
    family = encoder_family(params)
    ood = look(root, family, prepared, calibration, gate, "ood", "fit gate")
    return ood, look(root, family, prepared, calibration, gate, "conformal", "fit abstention")


def abstention_card(params: Params, prepared: Prepared, gate: Gate, looks: tuple[Look, Look]) -> dict[str, Any]:
    """What abstention promises: the share withheld, and the error of the most certain forecasts by learn then test.

    The thresholds tested come from the OOD fold and are certified on the conformal one, of which only cutoffs a horizon or
    more apart count, since windows that overlap know less than they count for.
    """
    settings, (ood, later) = params.calibration, looks
    card: dict[str, Any] = {
        "nominal_share_withheld": gate.abstention.fraction,
        "n": len(later.score),
        "certified": gate.abstention.certified,
        "fold": span(prepared, later.windows),
    }
    bound = float(torch.quantile(ood.error.to(torch.float64), LOSS_BOUND))
    target = float(ood.error.mean()) if settings.selective_risk is None else settings.selective_risk
    risk = target / bound if bound > 0 else 1.0
    kept = apart(prepared.cutoff_step(later.windows), prepared.panel.schema.horizon)
    promise = f"mean error of at most {target:.3g} of the window's standard deviation, errors counted up to {bound:.3g}"
    if not 0 < risk < 1:
        card["risk"] = f"No promise of a {promise}: it holds for any forecasts, since no error counts for more."
    elif int(kept.sum()) < least_windows(risk, settings.selective_delta):
        card["risk"] = (
            f"No promise of a {promise}: the fold has {int(kept.sum())} windows that do not overlap, and it takes at least "
            f"{least_windows(risk, settings.selective_delta)}."
        )
    else:
        thresholds = threshold_grid(gate.uncertainty(ood.signals, ood.score))
        uncertainty = gate.uncertainty(later.signals, later.score)[kept]
        guarantee = SelectiveGuarantee.fit(
            uncertainty, clipped_loss(later.error[kept], bound), thresholds, risk=risk, delta=settings.selective_delta
        )
        card["risk"] = _promised(guarantee, bound, promise)
        card["selective"] = guarantee.state() | {"bound": bound, "target": target}
    return card


def _promised(guarantee: SelectiveGuarantee, bound: float, promise: str) -> str:
    """What learn then test found, in the units of the error."""
    if not guarantee.certified:
        return f"No promise of a {promise}: no threshold passes with {guarantee.windows} windows."
    return (
        f"Forecasts whose expected error is at most {guarantee.threshold:.3g}, {guarantee.answered:.0%} of "
        f"{guarantee.windows} windows, have a {promise}, with probability {1 - guarantee.delta:g}; there it was "
        f"{bound * guarantee.empirical_risk:.3g}. It holds for windows that are independent and like these."
    )


def apart(step: Tensor, distance: int) -> Tensor:
    """Windows of the newest cutoff and of those that lie at least ``distance`` steps before the next one chosen, ``(n,)``."""
    chosen: list[int] = []
    for cutoff in sorted(set(step.tolist()), reverse=True):
        if not chosen or chosen[-1] - cutoff >= distance:
            chosen.append(cutoff)
    return torch.isin(step, torch.tensor(chosen))


def span(prepared: Prepared, windows: Windows) -> str:
    """First and last day of the windows' horizons."""
    times = prepared.target_time(windows)
    return f"{_day(times.min())} to {_day(times.max())}"


def _day(value: Any) -> str:
    return str(np.datetime_as_string(value, unit="h")).removesuffix("T00") if isinstance(value, np.datetime64) else str(value)
