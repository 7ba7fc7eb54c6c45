"""Calibration of the pooled forecasts: temperature, conformal intervals, the gate and the guarantee card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.panel import Windows
from models.predictive import Predictive
from models.uncertainty.calibration import INTERVAL_LEVELS, JOINT_LEVEL, Calibration
from models.uncertainty.conformal import conformal_rank
from models.uncertainty.conformal_scores import StepIntervals
from models.uncertainty.gate import Gate
from models.uncertainty.groups import GroupIntervals
from models.uncertainty.guarantee import can_certify, coverage_band, effective_sample_size
from models.uncertainty.scores import coverage
from tasks.energy import ALARM, alarm_record, fit_alarm
from tasks.ensemble import ENSEMBLE, pooled
from tasks.errors import UserError
from tasks.files import atomic_dir, read_json, write_json
from tasks.gate import Look, abstention_card, fit_gate_and_looks, gate_card, looks_again, span
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared
from tasks.presets import statement
from tasks.sets import SETS, DecileSets

CALIBRATION = Path("artifacts/calibration")
GROUPS_NAMED = 20  # series named on the card; calibration.json has them all


def calibrate(params: Params, root: Path) -> Path:
    """Fit every repair on its own fold; writes and returns ``artifacts/calibration``.

    ``calibration.json`` holds each model's repairs, ``gate.safetensors`` the gate, ``card.json`` the guarantee card, and
    ``sets.json`` and ``energy.safetensors`` the conformal sets and the energy alarm where ``calibration`` asks for them.
    """
    from safetensors.torch import save_file

    prepared = load_prepared(root)
    models = (ENSEMBLE, *params.families)
    fitted = {model: _fit(params, root, prepared, model) for model in models}
    gate, looks = fit_gate_and_looks(params, root, prepared, fitted[ENSEMBLE])
    sets = DecileSets.fit(root, prepared, fitted[ENSEMBLE]) if params.calibration.sets == "ordinal" else None
    alarm = fit_alarm(params, root, prepared)
    with atomic_dir(root / CALIBRATION) as folder:
        write_json(folder / "calibration.json", {model: calibration.state() for model, calibration in fitted.items()})
        save_file(gate.tensors(), folder / "gate.safetensors")
        card = guarantee_card(params, root, prepared, fitted[ENSEMBLE], gate, looks)
        if sets is not None:
            write_json(folder / SETS.name, sets.state())
            card["sets"] = sets.record()
        if alarm is not None:
            save_file(alarm.tensors(), folder / ALARM.name)
        if params.calibration.energy:
            card["energy"] = alarm_record(params, alarm)
        write_json(folder / "card.json", card)
    return root / CALIBRATION


def _fit(params: Params, root: Path, prepared: Prepared, model: str) -> Calibration:
    def of(fold: str, purpose: str) -> tuple[Predictive, Tensor]:
        return pooled(root, model, fold, purpose), prepared.panel.targets(prepared.fold(fold, purpose))

    calibration = params.calibration
    blocks = len(torch.unique(time_block(prepared, prepared.fold("temperature", "fit temperature"))))
    groups = window_series(prepared, prepared.fold("conformal", "fit conformal")) if calibration.groups == "series" else None
    try:
        folds = of("temperature", "fit temperature"), of("conformal", "fit conformal")
        return Calibration.fit(calibration.temperature, *folds, calibration.score, groups, blocks)
    except ValueError as error:
        raise UserError(
            f"the forecasts of {model} cannot be calibrated: {error}; folds: in params.yaml sets its stretch."
        ) from None


def time_block(prepared: Prepared, windows: Windows) -> torch.Tensor:
    """The stretch of a horizon in which each window's cutoff lies, ``(n,)``."""
    return prepared.cutoff_step(windows) // prepared.panel.schema.horizon


def window_series(prepared: Prepared, windows: Windows) -> list[str]:
    """The name of each window's series."""
    return [str(name) for name in prepared.ids[windows.series.numpy()]]


def load_calibration(root: Path) -> tuple[dict[str, Calibration], Gate, dict[str, Any]]:
    """Repairs by model, the gate and the guarantee card."""
    from safetensors.torch import load_file

    folder = root / CALIBRATION
    states = read_json(folder / "calibration.json")
    gate = Gate.from_tensors(load_file(folder / "gate.safetensors"))
    return {model: Calibration.from_state(state) for model, state in states.items()}, gate, read_json(folder / "card.json")


def guarantee_card(
    params: Params,
    root: Path,
    prepared: Prepared,
    calibration: Calibration,
    gate: Gate,
    looks: tuple[Look, Look] | None = None,
) -> dict[str, Any]:
    """What the intervals promise, on what assumption, and with how much evidence behind it.

    ``looks`` are what the gate sees of the OOD and the conformal fold; it looks again where they are left out.
    """
    windows = prepared.fold("conformal", "fit conformal")
    predictive = calibration.apply(pooled(root, ENSEMBLE, "conformal", "fit conformal"))
    target, series = prepared.panel.targets(windows), window_series(prepared, windows)
    block = time_block(prepared, windows)
    n = len(windows)
    within = " of each series" if calibration.grouped else ""
    card: dict[str, Any] = {
        "uncertainty": statement(params),
        "assumption": f"exchangeable windows: the windows to come{within} are like those of the conformal fold",
        "unit": "one window, a (series, cutoff) pair; joint bands hold its whole horizon, step intervals each step",
        "score": calibration.step.name,
        "fold": span(prepared, windows),
        "n": n,
        "blocks": len(torch.unique(block)),
        "levels": {},
    }
    for level in INTERVAL_LEVELS:
        covered = coverage(*calibration.interval(predictive, level, series), target).to(torch.float64)
        promise = _promise(n, level / 100, effective_sample_size(covered.mean(1), block))
        card["levels"][f"step {level} %"] = promise | _record(calibration.step, level)
    joint = coverage(*calibration.joint.band(predictive), target).all(dim=1).to(torch.float64)
    promise = _promise(n, JOINT_LEVEL / 100, effective_sample_size(joint, block))
    card["levels"][f"joint {JOINT_LEVEL} %"] = promise | {"finite": math.isfinite(calibration.joint.radius)}
    if isinstance(calibration.step, GroupIntervals):
        card["groups"] = group_promises(calibration.step, [str(name) for name in prepared.ids])
    card["gate"] = gate_card(params, prepared, gate)
    card["abstention"] = abstention_card(
        params, prepared, gate, looks or looks_again(params, root, prepared, calibration, gate)
    )
    return card


def _record(step: StepIntervals | GroupIntervals, level: int) -> dict[str, Any]:
    """Whether the intervals of a level are finite, and which steps of the fold tell nothing."""
    if isinstance(step, GroupIntervals):
        return {"finite": all(row["finite"] for row in step.record(level))}
    record = step.record(level)
    constant = {"constant_steps": record["constant_steps"]} if record["constant_steps"] else {}
    return {"finite": record["finite"], **constant}


def group_promises(step: GroupIntervals, series: list[str]) -> dict[str, str]:
    """For each level, in words: for how many series it is promised, from how many scores, and for which it is not."""
    said = {}
    for level in step.table:
        rows = step.record(level, series)
        own = [row for row in rows if row["promise"] == "group"]
        others = [row["group"] for row in rows if row["promise"] != "group"]
        text = f"holds within each of {len(own)} series"
        if own:
            fewest, most = (choose(own, key=lambda row: int(row["n"])) for choose in (min, max))
            text += f", by rank {fewest['rank']} of {fewest['n']} scores"
            text += f" to rank {most['rank']} of {most['n']}" if most["n"] > fewest["n"] else " each"
        if others:
            named = ", ".join(others[:GROUPS_NAMED]) + (
                f" and {len(others) - GROUPS_NAMED} more" if len(others) > GROUPS_NAMED else ""
            )
            text += f"; over all series together, and for none of them alone, for {len(others)} with too few scores: {named}"
        said[f"step {level} %"] = text
    said["joint bands"] = "hold over all series together, for none of them alone"
    return said


def _promise(n: int, level: float, n_effective: float) -> dict[str, Any]:
    low, high = coverage_band(n_effective, n_effective, level)
    return {
        "level": level,
        "rank": conformal_rank(n, level),
        "n": n,
        "n_effective": round(n_effective, 1),
        "certified": can_certify(n, level),
        "band_95": [low, high],
    }
