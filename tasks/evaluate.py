"""The test fold: metrics of every model, the evidence behind the report, and tables for ``dvc plots``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.predictive import Predictive
from models.uncertainty import scores
from models.uncertainty.calibration import INTERVAL_LEVELS, JOINT_LEVEL, Calibration
from models.uncertainty.gate import Gate
from models.uncertainty.perturb import PERTURBATIONS, perturbed_panel
from tasks.baselines.run import forecast_fold
from tasks.calibrate import encoder_family, gate_features, load_calibration, relative_spread, window_series
from tasks.energy import energy_metrics
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import atomic_dir, read_json, write_json
from tasks.folds import claim
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared
from tasks.repairs import repair_metrics
from tasks.sets import set_metrics
from tasks.train import TRAINED

BASELINE = Path("artifacts/baselines")
METRICS = Path("metrics/test.json")
PERTURBATION_SIZE = 1.0  # the middle of the sizes 0.5, 1, 2 in window standard deviations


@dataclass(frozen=True)
class Evidence:
    """The ensemble on the test fold before and after calibration, and what the gate says of it."""

    target: Tensor
    before: Predictive
    after: Predictive
    intervals: dict[int, tuple[Tensor, Tensor]]
    joint: tuple[Tensor, Tensor]
    spread: Tensor
    risk: Tensor
    gate: Gate
    gate_scores: Tensor
    perturbed: dict[str, Tensor]


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


def evaluate(params: Params, root: Path) -> tuple[dict[str, float], Evidence, Prepared]:
    """Score every model on the test fold; writes ``metrics/test.json`` and ``plots/``."""
    prepared = load_prepared(root)
    windows = prepared.fold("test", "evaluate")
    target = prepared.panel.targets(windows)
    scale = seasonal_error(prepared)[windows.series]
    calibrations, gate, _ = load_calibration(root)
    series = window_series(prepared, windows)
    metrics: dict[str, float] = {}
    for model, calibration in calibrations.items():
        predictive = calibration.apply(pooled(root, model, "test", "evaluate"))
        intervals = {level: calibration.interval(predictive, level, series) for level in INTERVAL_LEVELS}
        joint = calibration.joint.band(predictive)
        metrics |= _prefixed(model, model_metrics(predictive, target, scale, intervals, joint))
    for name in params.baselines.models:
        predictive = Predictive(torch.from_numpy(np.load(root / BASELINE / f"{name}.npy")))
        intervals = {level: central_interval(predictive, level) for level in INTERVAL_LEVELS}
        metrics |= _prefixed(name, model_metrics(predictive, target, scale, intervals, None))
    evidence = gather_evidence(params, root, prepared, calibrations[ENSEMBLE], gate)
    metrics |= _prefixed(ENSEMBLE, trust_metrics(evidence))
    metrics |= _prefixed(ENSEMBLE, energy_metrics(params, root, prepared, gate, evidence.gate_scores))
    for measure in (repair_metrics, set_metrics):
        metrics |= _prefixed(ENSEMBLE, measure(root, prepared, calibrations[ENSEMBLE]))
    write_json(root / METRICS, {key: round(value, 6) for key, value in metrics.items() if np.isfinite(value)})
    write_plots(root, evidence)
    return metrics, evidence, prepared


def seasonal_error(prepared: Prepared) -> Tensor:
    """Mean absolute seasonal-naive error of each series over the training fold ``(n_series,)``: MASE's denominator."""
    claim("train", "fit feature statistics")
    panel, season = prepared.panel, prepared.panel.schema.season_length
    end = next(fold["end"] for fold in prepared.meta["folds"] if fold["name"] == "train")
    errors = []
    for index, first in enumerate(prepared.meta["first_step"]):
        start = int(panel.offsets[index])
        stop = start + max(min(end - first, int(panel.observed[index])), season + 1)
        values = panel.rows[start:stop, 0].to(torch.float64)
        error = (values[season:] - values[:-season]).abs().nanmean()
        errors.append(error if error > 0 else torch.tensor(1.0, dtype=torch.float64))
    return torch.stack(errors)


def central_interval(predictive: Predictive, level: int) -> tuple[Tensor, Tensor]:
    """The central interval that a distribution itself gives, in percent."""
    tail = torch.tensor((1 - level / 100) / 2, dtype=torch.float64)
    return predictive.tail_quantile(tail, upper=False), predictive.tail_quantile(tail, upper=True)


def model_metrics(
    predictive: Predictive,
    target: Tensor,
    scale: Tensor,
    intervals: dict[int, tuple[Tensor, Tensor]],
    joint: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    """Metrics of one model on windows ``(n, H)`` by DESIGN's names; widths and CRPS in the target's units."""
    row = {
        "wql": scores.wql(predictive, target),
        "crps": float(scores.crps(predictive, target).mean()),
        "wape": scores.wape(predictive.median, target),
        "mase": scores.mase(predictive.median, target, scale),
        "ece": scores.calibration_error(predictive, target),
        "pit_ks": scores.pit_distance(predictive.cdf(target)),
    }
    for level, (lower, upper) in intervals.items():
        row[f"coverage_{level}"] = float(scores.coverage(lower, upper, target).double().mean())
        row[f"width_{level}"] = float((upper - lower).mean())
    if joint is not None:
        row[f"joint_coverage_{JOINT_LEVEL}"] = float(scores.coverage(*joint, target).all(dim=1).double().mean())
        row[f"joint_width_{JOINT_LEVEL}"] = float((joint[1] - joint[0]).mean())
    return row


def gather_evidence(params: Params, root: Path, prepared: Prepared, calibration: Calibration, gate: Gate) -> Evidence:
    """Everything that the report says of the ensemble on the test fold."""
    windows = prepared.fold("test", "evaluate")
    target = prepared.panel.targets(windows)
    before = pooled(root, ENSEMBLE, "test", "evaluate")
    after, series = calibration.apply(before), window_series(prepared, windows)
    scale, level_features = prepared.panel.levels(windows)
    encoded = torch.from_numpy(np.load(root / TRAINED / encoder_family(params) / "features_test.npy"))
    return Evidence(
        target=target,
        before=before,
        after=after,
        intervals={level: calibration.interval(after, level, series) for level in INTERVAL_LEVELS},
        joint=calibration.joint.band(after),
        spread=relative_spread(after, scale),
        risk=(target - after.median).abs().mean(dim=1) / scale,
        gate=gate,
        gate_scores=gate.score(gate_features(encoded, level_features)),
        perturbed=perturbed_scores(params, root, prepared, gate),
    )


def perturbed_scores(params: Params, root: Path, prepared: Prepared, gate: Gate) -> dict[str, Tensor]:
    """Gate scores of the test windows after each perturbation at the middle size, ``(n,)`` each."""
    from tasks.member import load_member
    from tasks.predict import encode_windows

    family = encoder_family(params)
    config = getattr(params.forecasters, family)
    encoder = load_member(family, config, prepared.panel.schema, root / TRAINED / family / "member_0.safetensors")
    windows, reach = prepared.fold("test", "evaluate"), prepared.panel.schema.reference + prepared.panel.schema.context
    result = {}
    for name in PERTURBATIONS:
        panel, isolated = perturbed_panel(prepared.panel, windows, reach, name, PERTURBATION_SIZE, params.train.seed)
        features = gate_features(encode_windows(encoder, panel, isolated), panel.levels(isolated)[1])
        result[name] = gate.score(features)
    return result


def trust_metrics(evidence: Evidence) -> dict[str, float]:
    """How well the gate and the spread tell good forecasts from bad ones."""
    detection = [scores.detection_scores(evidence.gate_scores, values) for values in evidence.perturbed.values()]
    flagged = evidence.gate.is_ood(evidence.gate_scores)
    withheld = evidence.gate.abstain(evidence.gate_scores, evidence.spread)
    return {
        "ood_auroc": float(np.mean([auroc for auroc, _ in detection])),
        "ood_fpr95": float(np.mean([rate for _, rate in detection])),
        "ood_false_alarm_rate": float(flagged.double().mean()),
        "abstain_rate": float(withheld.double().mean()),
        "aurc": scores.aurc(evidence.spread, evidence.risk),
        "aurc_oracle": scores.aurc(evidence.risk, evidence.risk),
    }


def _prefixed(model: str, row: dict[str, float]) -> dict[str, float]:
    return {f"{model}/{key}": value for key, value in row.items()}


def step_table(evidence: Evidence, level: int = 90) -> dict[str, np.ndarray]:
    """Coverage and width of the interval at each step, before and after calibration, ``(H,)`` each."""
    raw, final = central_interval(evidence.before, level), evidence.intervals[level]
    table = {}
    for name, (lower, upper) in (("before", raw), ("after", final)):
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


def load_metrics(root: Path) -> dict[str, float]:
    """``metrics/test.json``."""
    return dict(read_json(root / METRICS))
