"""The energy alarm on a project's folds: which network's logits it reads, its fit, its card and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.forecasters.base import DirectForecaster, Forecaster
from models.heads.categorical import CategoricalHead
from models.panel import Panel, SequentialLoader, Windows
from models.uncertainty.energy import EnergyAlarm, either_p_value
from models.uncertainty.gate import Gate
from models.uncertainty.perturb import HELD_OUT, MIDDLE_SIZE, perturbed_panel
from models.uncertainty.scores import detection_scores
from tasks.member import load_member
from tasks.params import Params
from tasks.predict import BATCH
from tasks.prepare import Prepared
from tasks.presets import categorical_families
from tasks.train import TRAINED

ALARM = Path("artifacts/calibration/energy.safetensors")
ENERGY_COLUMNS = ("energy", "energy_pvalue")
"""Columns of the forecast table where the alarm is on."""


def energy_family(params: Params) -> str | None:
    """The family whose first member's logits the alarm reads; None where it is off or no family has any."""
    able = categorical_families(params) if params.calibration.energy else ()
    return able[0] if able else None


def window_logits(forecaster: Forecaster, panel: Panel, windows: Windows) -> Tensor:
    """Logits ``(n, H, K)`` of a direct network with a categorical head; TypeError for another."""
    if not isinstance(forecaster, DirectForecaster) or not isinstance(forecaster.head, CategoricalHead):
        raise TypeError(
            f"{type(forecaster).__name__} has no logits; the energy alarm reads a direct network's categorical head"
        )
    with torch.inference_mode():
        parts = [forecaster.head.logits(forecaster(batch)[0]) for batch in SequentialLoader(panel, windows, BATCH)]
    return torch.cat(parts)


def energy_member(params: Params, root: Path, prepared: Prepared, family: str) -> Forecaster:
    """The network that the alarm reads."""
    weights = root / TRAINED / family / "member_0.safetensors"
    return load_member(family, getattr(params.forecasters, family), prepared.panel.schema, weights)


def fit_alarm(params: Params, root: Path, prepared: Prepared) -> EnergyAlarm | None:
    """Fit the alarm on the OOD fold; None where it is off or no family has a categorical head."""
    family = energy_family(params)
    if family is None:
        return None
    member = energy_member(params, root, prepared, family)
    return EnergyAlarm.fit(window_logits(member, prepared.panel, prepared.fold("ood", "fit gate")))


def load_alarm(root: Path) -> EnergyAlarm | None:
    """The run's alarm, None where it has none."""
    from safetensors.torch import load_file

    return EnergyAlarm.from_tensors(load_file(root / ALARM)) if (root / ALARM).exists() else None


def alarm_record(params: Params, alarm: EnergyAlarm | None) -> dict[str, Any]:
    """What the guarantee card says of the alarm, or why there is none."""
    if alarm is None:
        return {
            "fallback": "none of the families has a categorical head that forecasts all steps at once, so strange input is "
            "told by distances alone; set head: categorical for one of tcn, s4d, mamba, mamba2, hybrid or tide"
        }
    return {
        "network": f"first member of {energy_family(params)}, whose head is categorical",
        "n": len(alarm.scores),
        "combination": "a window is strange if twice the smaller p-value of energy and distance is at most the nominal rate",
    }


def energy_metrics(params: Params, root: Path, prepared: Prepared, gate: Gate, gate_scores: Tensor) -> dict[str, float]:
    """How the alarm does on the test fold, by itself and with the gate; nothing where the run has none.

    ``energy_auroc`` and ``energy_fpr95`` are means over the held-out perturbations; false alarms are shares of clean windows,
    by energy alone and by either alarm. ``gate_scores`` ``(n,)`` are the gate's on the test fold.
    """
    alarm, family = load_alarm(root), energy_family(params)
    if alarm is None or family is None:
        return {}
    member, windows = energy_member(params, root, prepared, family), prepared.fold("test", "evaluate")
    clean = alarm.score(window_logits(member, prepared.panel, windows))
    reach = prepared.panel.schema.reference + prepared.panel.schema.context
    found = []
    for name in HELD_OUT:
        panel, isolated = perturbed_panel(prepared.panel, windows, reach, name, MIDDLE_SIZE, params.train.seed)
        found.append(detection_scores(clean, alarm.score(window_logits(member, panel, isolated))))
    either = either_p_value(gate.p_value(gate_scores), alarm.p_value(clean))
    return {
        "energy_auroc": sum(auroc for auroc, _ in found) / len(found),
        "energy_fpr95": sum(rate for _, rate in found) / len(found),
        "energy_false_alarm_rate": float((alarm.p_value(clean) <= gate.alpha).double().mean()),
        "either_false_alarm_rate": float((either <= gate.alpha).double().mean()),
    }
