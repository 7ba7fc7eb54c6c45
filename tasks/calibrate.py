"""Calibration of the pooled forecasts: temperature, conformal intervals, the gate and the guarantee card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.uncertainty.calibration import INTERVAL_LEVELS, JOINT_LEVEL, Calibration
from models.uncertainty.conformal import conformal_rank
from models.uncertainty.gate import Gate
from models.uncertainty.guarantee import can_certify, coverage_band, effective_sample_size
from models.uncertainty.scores import coverage
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import atomic_dir, read_json, write_json
from tasks.gate import abstention_card, fit_gate, gate_card, span
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared

CALIBRATION = Path("artifacts/calibration")


def calibrate(params: Params, root: Path) -> Path:
    """Fit every repair on its own fold; writes and returns ``artifacts/calibration``.

    ``calibration.json`` holds each model's repairs, ``gate.safetensors`` the gate, ``card.json`` the guarantee card.
    """
    from safetensors.torch import save_file

    prepared = load_prepared(root)
    models = (ENSEMBLE, *params.families)
    fitted = {model: _fit(params, root, prepared, model) for model in models}
    gate = fit_gate(params, root, prepared, fitted[ENSEMBLE])
    with atomic_dir(root / CALIBRATION) as folder:
        write_json(folder / "calibration.json", {model: calibration.state() for model, calibration in fitted.items()})
        save_file(gate.tensors(), folder / "gate.safetensors")
        write_json(folder / "card.json", guarantee_card(params, root, prepared, fitted[ENSEMBLE], gate))
    return root / CALIBRATION


def _fit(params: Params, root: Path, prepared: Prepared, model: str) -> Calibration:
    parts = []
    for fold, purpose in (("temperature", "fit temperature"), ("conformal", "fit conformal")):
        windows = prepared.fold(fold, purpose)
        parts.append((pooled(root, model, fold, purpose), prepared.panel.targets(windows)))
    return Calibration.fit(params.calibration.temperature, *parts)


def load_calibration(root: Path) -> tuple[dict[str, Calibration], Gate, dict[str, Any]]:
    """Repairs by model, the gate and the guarantee card."""
    from safetensors.torch import load_file

    folder = root / CALIBRATION
    states = read_json(folder / "calibration.json")
    gate = Gate.from_tensors(load_file(folder / "gate.safetensors"))
    return {model: Calibration.from_state(state) for model, state in states.items()}, gate, read_json(folder / "card.json")


def guarantee_card(params: Params, root: Path, prepared: Prepared, calibration: Calibration, gate: Gate) -> dict[str, Any]:
    """What the intervals promise, on what assumption, and with how much evidence behind it."""
    windows = prepared.fold("conformal", "fit conformal")
    predictive = calibration.apply(pooled(root, ENSEMBLE, "conformal", "fit conformal"))
    target = prepared.panel.targets(windows)
    block = prepared.cutoff_step(windows) // prepared.panel.schema.horizon
    n = len(windows)
    card: dict[str, Any] = {
        "assumption": "exchangeable windows: the windows to come are like those of the conformal fold",
        "unit": "one window, a (series, cutoff) pair; joint bands hold its whole horizon, step intervals each step",
        "fold": span(prepared, windows),
        "n": n,
        "blocks": len(torch.unique(block)),
        "levels": {},
    }
    for level in INTERVAL_LEVELS:
        covered = coverage(*calibration.step.interval(predictive, level), target).to(torch.float64)
        card["levels"][f"step {level} %"] = _promise(n, level / 100, effective_sample_size(covered.mean(1), block))
    joint = coverage(*calibration.joint.band(predictive), target).all(dim=1).to(torch.float64)
    name = f"joint {JOINT_LEVEL} %"
    card["levels"][name] = _promise(n, JOINT_LEVEL / 100, effective_sample_size(joint, block))
    card["gate"] = gate_card(params, prepared, gate)
    card["abstention"] = abstention_card(params, root, prepared, calibration, gate)
    return card


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
