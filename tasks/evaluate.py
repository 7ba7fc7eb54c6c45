"""The test fold: metrics of every model, the evidence behind the report, and tables for ``dvc plots``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.panel import Windows
from models.predictive import Predictive
from models.uncertainty import scores
from models.uncertainty.calibration import INTERVAL_LEVELS, Calibration
from models.uncertainty.comparison import Comparison, paired_block_bootstrap
from models.uncertainty.gate import Gate
from models.uncertainty.perturb import HELD_OUT, MIDDLE_SIZE, PERTURBATIONS, SIZES, perturbed_panel
from models.uncertainty.scores import DetectionScores, Interval
from models.uncertainty.selective import aurc_ratio, kept_table
from tasks.baselines.run import forecast_fold
from tasks.calibrate import load_calibration, time_block, window_series
from tasks.energy import energy_metrics
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import atomic_dir, write_json
from tasks.folds import claim
from tasks.gate import encoder_family, gate_features, look
from tasks.model_scores import BASELINE, ModelScores, Piece, RunPieces, central_interval, pieces_of, run_pieces
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared
from tasks.repairs import repair_metrics
from tasks.sets import set_metrics
from tasks.summary import METRICS
from tasks.train import TRAINED

MOST_PERTURBED = 2000  # test windows, at each size and kind
KEPT = 0.8  # share of windows at which errors are compared


class Detection(NamedTuple):
    """Detection of perturbed test windows: by size and kind, and at the middle size intervals by kind and of the held-out
    kinds' mean, both empty where the fold has too few windows for a bootstrap."""

    by_size: dict[float, dict[str, DetectionScores]]
    intervals: dict[str, dict[str, Interval]]
    mean: dict[str, Interval]


@dataclass(frozen=True)
class Evidence:
    """The ensemble on the test fold before and after calibration, and what the gate says of it.

    ``uncertainty`` and ``risk`` ``(n,)`` are the error expected of each window's forecast and the one it had, in units of
    the window's ``scale``. ``compared`` has each other model's CRPS against the ensemble's, empty where the fold is too short.
    """

    target: Tensor
    before: Predictive
    after: Predictive
    intervals: dict[int, tuple[Tensor, Tensor]]
    joint: tuple[Tensor, Tensor]
    uncertainty: Tensor
    risk: Tensor
    scale: Tensor
    gate: Gate
    gate_scores: Tensor
    perturbed: dict[str, Tensor]
    detection: Detection
    compared: dict[str, Comparison] = field(default_factory=dict)


def run_baselines(params: Params, root: Path) -> Path:
    """Forecast the test fold with every baseline; writes and returns ``artifacts/baselines``."""
    prepared = load_prepared(root)
    notes: dict[str, list[str]] = {}
    with atomic_dir(root / BASELINE) as folder:
        for name in params.baselines.models:
            forecast = forecast_fold(name, prepared, params.baselines)
            np.save(folder / f"{name}.npy", forecast.quantiles)
            notes[name] = forecast.notes
        write_json(folder / "notes.json", notes)
    return root / BASELINE


def evaluate(params: Params, root: Path, run: RunPieces = run_pieces) -> tuple[dict[str, float], Evidence, Prepared]:
    """Score every model on the test fold; writes ``metrics/test.json`` and ``plots/``. ``run`` scores pieces of the fold."""
    prepared = load_prepared(root)
    windows = prepared.fold("test", "evaluate")
    target = prepared.panel.targets(windows)
    scale = seasonal_error(prepared)[windows.series]
    calibrations, gate, _ = load_calibration(root)
    metrics: dict[str, float] = {}
    losses: dict[str, Tensor] = {}
    found: list[ModelScores] = []

    def take(piece: Piece, scored: ModelScores) -> None:
        found.append(scored)
        if piece.last == len(windows):
            whole = ModelScores.joined(found)
            found.clear()
            metrics.update(_prefixed(piece.model, whole.metrics(target, scale)))
            losses[piece.model] = whole.crps.mean(1)

    models = (*calibrations, *params.baselines.models)
    run([piece for model in models for piece in pieces_of(root, model, len(windows))], take)
    evidence = gather_evidence(params, root, prepared, calibrations[ENSEMBLE], gate)
    evidence = replace(evidence, compared=compare(losses, blocks(prepared, windows)))
    metrics |= _prefixed(ENSEMBLE, trust_metrics(evidence))
    metrics |= _prefixed(ENSEMBLE, energy_metrics(params, root, prepared, gate, evidence.gate_scores))
    metrics |= _prefixed(ENSEMBLE, repair_metrics(root, prepared, calibrations[ENSEMBLE], metrics))
    metrics |= _prefixed(ENSEMBLE, set_metrics(root, prepared, calibrations[ENSEMBLE]))
    write_json(root / METRICS, {key: round(value, 6) for key, value in metrics.items() if np.isfinite(value)})
    write_plots(root, evidence)
    return metrics, evidence, prepared


def compare(losses: dict[str, Tensor], block: Tensor) -> dict[str, Comparison]:
    """Each model's losses ``(n,)`` against the ensemble's on the same windows; empty where there are fewer than two blocks."""
    if len(block.unique()) < 2:
        return {}
    own = losses[ENSEMBLE]
    return {model: paired_block_bootstrap(own, values, block) for model, values in losses.items() if model != ENSEMBLE}


def seasonal_error(prepared: Prepared) -> Tensor:
    """Mean absolute seasonal-naive error of each series over the training fold ``(n_series,)``: MASE's denominator."""
    claim("train", "fit feature statistics")
    panel, season = prepared.panel, prepared.panel.schema.season_length
    target = panel.rows.numpy()[:, 0]
    end = next(fold["end"] for fold in prepared.meta["folds"] if fold["name"] == "train")
    errors = np.empty(panel.n_series)
    starts, observed = panel.offsets.tolist(), panel.observed.tolist()
    for index, first in enumerate(prepared.meta["first_step"]):
        start = starts[index]
        values = target[start : start + max(min(end - first, observed[index]), season + 1)].astype(np.float64)
        error = np.abs(values[season:] - values[:-season])
        errors[index] = np.nansum(error) / max(np.count_nonzero(~np.isnan(error)), 1)
    return torch.from_numpy(np.where(errors > 0, errors, 1.0))


def gather_evidence(params: Params, root: Path, prepared: Prepared, calibration: Calibration, gate: Gate) -> Evidence:
    """Everything that the report says of the ensemble on the test fold."""
    seen = look(root, encoder_family(params), prepared, calibration, gate, "test", "evaluate")
    before = pooled(root, ENSEMBLE, "test", "evaluate")
    after, series = calibration.apply(before), window_series(prepared, seen.windows)
    swept, origin = perturbed_scores(params, root, prepared, gate)
    block = blocks(prepared, seen.windows)
    return Evidence(
        target=prepared.panel.targets(seen.windows),
        before=before,
        after=after,
        intervals={level: calibration.interval(after, level, series) for level in INTERVAL_LEVELS},
        joint=calibration.joint.band(after),
        uncertainty=gate.uncertainty(seen.signals, seen.score),
        risk=seen.error,
        scale=seen.scale,
        gate=gate,
        gate_scores=seen.score,
        perturbed=swept[MIDDLE_SIZE],
        detection=detect(seen.score, swept, block, block[origin]),
    )


def perturbed_scores(
    params: Params, root: Path, prepared: Prepared, gate: Gate
) -> tuple[dict[float, dict[str, Tensor]], Tensor]:
    """Gate scores of test windows after each perturbation at each size, ``(m,)``, and which windows they are, ``(m,)``.

    At most ``MOST_PERTURBED`` windows, evenly spread, of those whose whole context is known.
    """
    from tasks.member import load_member
    from tasks.predict import encode_windows

    family, schema = encoder_family(params), prepared.panel.schema
    encoder = load_member(family, getattr(params.forecasters, family), schema, root / TRAINED / family / "member_0.safetensors")
    windows, reach = prepared.fold("test", "evaluate"), schema.reference + schema.context
    origin = (windows.cutoff >= schema.context).nonzero()[:, 0]
    origin = origin[torch.linspace(0, max(0, len(origin) - 1), min(len(origin), MOST_PERTURBED)).round().long()]
    swept: dict[float, dict[str, Tensor]] = {size: {} for size in SIZES}
    for size, name in itertools.product(SIZES, PERTURBATIONS):
        panel, isolated = perturbed_panel(prepared.panel, windows[origin], reach, name, size, params.train.seed)
        swept[size][name] = gate.score(gate_features(encode_windows(encoder, panel, isolated), panel, isolated))
    return swept, origin


def blocks(prepared: Prepared, windows: Windows) -> Tensor:
    """Name of the stretch of a horizon in which each window's cutoff lies, ``(n,)``; its series where there is one stretch."""
    block = time_block(prepared, windows)
    return block if len(block.unique()) > 1 else windows.series


def detect(clean: Tensor, swept: dict[float, dict[str, Tensor]], block: Tensor, origin_block: Tensor) -> Detection:
    """How well scores tell perturbed windows from clean ones, by kind and size."""
    by_size = {size: {name: _detection(clean, values) for name, values in kinds.items()} for size, kinds in swept.items()}
    middle = swept[MIDDLE_SIZE]
    if len(origin_block.unique()) < 2:
        return Detection(by_size, {}, {})
    by_kind, mean = scores.detection_intervals_by_kind(clean, middle, block, origin_block, HELD_OUT)
    return Detection(by_size, by_kind, mean)


def _detection(clean: Tensor, strange: Tensor) -> scores.DetectionScores:
    if not len(strange):
        return scores.DetectionScores(float("nan"), float("nan"), float("nan"))
    auroc, fpr95 = scores.detection_scores(clean, strange)
    return scores.DetectionScores(auroc, scores.average_precision(clean, strange), fpr95)


def trust_metrics(evidence: Evidence) -> dict[str, float]:
    """How well the gate tells strange windows from ordinary ones, and uncertainty bad forecasts from good ones.

    ``ood_*`` are means over the held-out perturbations at the middle size. ``error_ratio_80`` is the error of the 80 % most
    certain windows over that of all, in units of each window's scale; ``_oracle`` what sorting by the error itself reaches,
    ``_units`` the same in the target's units, by uncertainty in them.
    """
    middle = [evidence.detection.by_size[MIDDLE_SIZE][name] for name in HELD_OUT]
    flagged = evidence.gate.is_ood(evidence.gate_scores)
    withheld = evidence.gate.abstain(evidence.gate_scores, evidence.uncertainty)
    units = kept_table(evidence.uncertainty * evidence.scale, evidence.risk * evidence.scale, (KEPT,))[0]
    return {
        **{f"ood_{name}": float(np.mean([getattr(row, name) for row in middle])) for name in DetectionScores._fields},
        "ood_false_alarm_rate": float(flagged.double().mean()),
        "ood_spearman": scores.spearman(evidence.gate_scores, evidence.risk),
        "abstain_rate": float(withheld.double().mean()),
        "aurc": scores.aurc(evidence.uncertainty, evidence.risk),
        "aurc_oracle": scores.aurc(evidence.risk, evidence.risk),
        "aurc_ratio": aurc_ratio(evidence.uncertainty, evidence.risk),
        "error_ratio_80": kept_table(evidence.uncertainty, evidence.risk, (KEPT,))[0].ratio,
        "error_ratio_80_oracle": kept_table(evidence.risk, evidence.risk, (KEPT,))[0].ratio,
        "error_ratio_80_units": units.ratio,
    }


def _prefixed(model: str, row: dict[str, float]) -> dict[str, float]:
    return {f"{model}/{key}": value for key, value in row.items()}


def step_table(evidence: Evidence, level: int = 90) -> dict[str, np.ndarray]:
    """Coverage and width of the interval at each step before calibration, after temperature and after all, ``(H,)`` each."""
    raw, tempered = (central_interval(each, level) for each in (evidence.before, evidence.after))
    table = {}
    for name, (lower, upper) in (("before", raw), ("tempered", tempered), ("after", evidence.intervals[level])):
        table[f"coverage_{name}"] = scores.coverage(lower, upper, evidence.target).double().mean(0).numpy()
        table[f"width_{name}"] = (upper - lower).mean(0).numpy()
    return table


def write_plots(root: Path, evidence: Evidence) -> None:
    """Tables that ``dvc plots`` draws: reliability and coverage by step."""
    import pandas as pd

    level = evidence.before.levels.numpy()
    reliability = pd.DataFrame(
        {
            "level": level,
            "before": scores.reliability(evidence.before, evidence.target).numpy(),
            "after": scores.reliability(evidence.after, evidence.target).numpy(),
        }
    )
    steps = pd.DataFrame(step_table(evidence))
    steps.insert(0, "step", np.arange(1, len(steps) + 1))
    with atomic_dir(root / "plots") as folder:
        reliability.round(6).to_csv(folder / "reliability.csv", index=False)
        steps.round(6).to_csv(folder / "coverage_by_step.csv", index=False)
