"""What the report page shows, gathered from the evaluation."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.predictive import Predictive, pinball_loss
from models.uncertainty import scores
from models.uncertainty.guarantee import coverage_band
from models.uncertainty.perturb import HELD_OUT
from models.uncertainty.scores import Interval
from models.uncertainty.selective import kept_table
from tasks.ensemble import POOLED
from tasks.evaluate import Detection, Evidence, evaluate, step_table
from tasks.files import read_json, write_text
from tasks.interpret import INTERPRETATION
from tasks.model_scores import RunPieces, run_pieces
from tasks.params import Params
from tasks.prepare import INGESTED, Prepared
from tasks.report import (
    Course,
    Fan,
    Found,
    Interpretation,
    Kind,
    Ood,
    Pit,
    RegimeLook,
    Reliability,
    ReportData,
    Selective,
    Split,
    Steps,
    render_report,
)
from tasks.summary import REPORT

HISTORY_SHOWN = 4  # horizons of history on a fan chart


def evaluate_and_report(params: Params, root: Path, identity: dict[str, str], run: RunPieces = run_pieces) -> Path:
    """Score the test fold and write ``reports/report.html``; returns its path."""
    metrics, evidence, prepared = evaluate(params, root, run)
    write_text(root / REPORT, render_report(report_data(params, root, metrics, evidence, prepared, identity)))
    return root / REPORT


def report_data(
    params: Params, root: Path, metrics: dict[str, float], evidence: Evidence, prepared: Prepared, identity: dict[str, str]
) -> ReportData:
    """Everything on the page, as plain arrays."""
    card = read_json(root / "artifacts/calibration/card.json")
    bands = {name: test_band(card, name, prepared) for name in ("step 90 %", "joint 90 %")}
    gate = evidence.gate
    kept, risk = scores.risk_coverage(evidence.uncertainty, evidence.risk)
    oracle = scores.risk_coverage(evidence.risk, evidence.risk)[1]
    return ReportData(
        title=f"{params.registry.name}: {params.data.name} forecasts, {params.data.horizon} steps ahead",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        identity=identity,
        data_span=data_span(root, prepared),
        metrics=metrics,
        families=params.families,
        baselines=params.baselines.models,
        coverage_band=bands["step 90 %"],
        joint_band=bands["joint 90 %"],
        fans=fans(evidence, prepared),
        reliability=Reliability(
            evidence.before.levels.numpy(),
            scores.reliability(evidence.before, evidence.target).numpy(),
            scores.reliability(evidence.after, evidence.target).numpy(),
        ),
        pit=Pit(evidence.before.cdf(evidence.target).flatten().numpy(), evidence.after.cdf(evidence.target).flatten().numpy()),
        steps=Steps(**step_table(evidence), nominal=0.9),
        ood=Ood(
            calibration=gate.scores.numpy(),
            test=evidence.gate_scores.numpy(),
            perturbed={name: values.numpy() for name, values in evidence.perturbed.items()},
            threshold=gate.threshold,
            nominal_rate=gate.alpha,
            test_rate=float(gate.is_ood(evidence.gate_scores).double().mean()),
            kinds=kinds(evidence.detection),
            mean=found(evidence.detection.mean),
        ),
        selective=Selective(kept.numpy(), risk.numpy(), oracle.numpy(), kept_rows(evidence)),
        card=card,
        interpretation=load_interpretation(root),
        against={model: found[:3] for model, found in evidence.compared.items()},
        split=split(root, evidence),
        course=course(evidence, prepared),
    )


def split(root: Path, evidence: Evidence) -> Split:
    """Variance by step in units of each window's own, before calibration."""
    scale = evidence.scale.to(torch.float64).square()[:, None]
    parts = (np.load(root / POOLED / f"{name}_test.npy") for name in ("aleatoric", "epistemic"))
    return Split(*((torch.from_numpy(part).to(torch.float64) / scale).mean(0).numpy() for part in parts))


def course(evidence: Evidence, prepared: Prepared) -> Course:
    """Coverage and CRPS of the ensemble by cutoff."""
    windows = prepared.fold("test", "evaluate")
    names, place = np.unique(prepared.cutoff_time(windows), return_inverse=True)
    count = np.bincount(place)
    covered = scores.coverage(*evidence.intervals[90], evidence.target).double().mean(1).numpy()
    loss = scores.crps(evidence.after, evidence.target).mean(1).numpy()
    times = np.array([str(name)[:16].removesuffix("T00:00") for name in names], dtype=object)
    return Course(times, np.bincount(place, covered) / count, np.bincount(place, loss) / count)


def kinds(detection: Detection) -> tuple[Kind, ...]:
    """Detection of each kind of change, at all sizes and with intervals at the middle one."""
    names = next(iter(detection.by_size.values()))
    return tuple(
        Kind(
            name=name,
            held_out=name in HELD_OUT,
            by_size={size: (rows[name].auroc, rows[name].fpr95) for size, rows in detection.by_size.items()},
            middle=found(detection.intervals.get(name, {})),
        )
        for name in names
    )


def found(intervals: dict[str, Interval]) -> Found | None:
    """Intervals as the report shows them, None where there are none."""
    return Found(intervals["auroc"], intervals["aupr"], intervals["fpr95"]) if intervals else None


def kept_rows(evidence: Evidence) -> tuple[tuple[float, int, float, float], ...]:
    """Share kept, windows, their mean loss and that over all windows' loss."""
    return tuple((row.share, row.kept, row.loss, row.ratio) for row in kept_table(evidence.uncertainty, evidence.risk))


def load_interpretation(root: Path) -> Interpretation | None:
    """What TFT looks at, from ``artifacts/interpretation``; None where it holds no TFT or was not made."""
    folder = root / INTERPRETATION
    if not (folder / "interpretation.json").exists():
        return None
    about = read_json(folder / "interpretation.json")
    if about["family"] is None:
        return None
    tables = (f"{name}.csv" for name in ("variable_importance", "attention_by_lag", "regimes"))
    variables, lags, regimes = (pd.read_csv(folder / name, keep_default_na=False) for name in tables)
    names = [name for name in regimes.columns if "." in name]  # <kind>.<variable>
    change = regimes[names].to_numpy() - regimes[names].to_numpy()[0]
    looks = []
    for row, changed in zip(regimes.to_dict("records")[1:], change[1:], strict=True):
        most = int(np.abs(changed).argmax())
        kind, _, variable = names[most].partition(".")
        about_it = (str(row["split"]), str(row["regime"]), int(row["windows"]), float(row["distance"]))
        looks.append(RegimeLook(*about_it, kind, variable, float(changed[most])))
    return Interpretation(
        members=about["members"],
        windows=about["windows"],
        context=about["context"],
        season_length=about["season_length"],
        importances={
            str(kind): tuple(zip(rows["variable"].astype(str), rows["weight"], rows["member_spread"], strict=True))
            for kind, rows in variables.groupby("kind", sort=False)
        },
        attention=lags["attention"].to_numpy(),
        attention_low=lags["low"].to_numpy(),
        attention_high=lags["high"].to_numpy(),
        distance=float(regimes["distance"].iloc[0]),
        regimes=tuple(looks),
    )


def test_band(card: dict[str, Any], name: str, prepared: Prepared) -> tuple[float, float]:
    """Band for coverage on the test fold: beta-binomial at the effective sizes of the conformal and the test fold.

    The test fold is taken to carry as much information a time step as the conformal fold does, so that no test outcome
    enters its own band.
    """
    promise = card["levels"][name]
    length = {fold["name"]: fold["end"] - fold["start"] for fold in prepared.meta["folds"]}
    n_test = min(len(prepared.windows["test"]), promise["n_effective"] * length["test"] / length["conformal"])
    return coverage_band(promise["n_effective"], n_test, promise["level"])


def data_span(root: Path, prepared: Prepared) -> dict[str, str]:
    """Size and extent of the panel in words."""
    meta = read_json(root / INGESTED / "meta.json")
    windows = prepared.fold("test", "evaluate")
    return {
        "series": f"{meta['n_series']:,}",
        "rows": f"{meta['n_rows']:,}",
        "first": str(meta["first"]),
        "last": str(meta["last"]),
        "frequency": str(meta["frequency"]),
        "horizon": f"{prepared.panel.schema.horizon} steps",
        "test windows": f"{len(windows):,} from {len(torch.unique(prepared.cutoff_step(windows)))} cutoffs",
    }


def fans(evidence: Evidence, prepared: Prepared) -> tuple[Fan, ...]:
    """Fan charts of the best, the median and the worst series by WQL, each at its latest test cutoff."""
    windows = prepared.fold("test", "evaluate")
    levels = evidence.after.levels[scores.DECILES]

    def losses(part: Predictive, truth: torch.Tensor) -> torch.Tensor:
        return pinball_loss(part.values[..., scores.DECILES], truth, levels).sum(1)

    truth = evidence.target.to(torch.float64)
    present, place = torch.unique(windows.series, return_inverse=True)
    loss = truth.new_zeros((len(present), len(levels))).index_add_(0, place, evidence.after.each(losses, truth))
    size = truth.new_zeros(len(present)).index_add_(0, place, truth.abs().sum(1))
    wql = 2 * loss.mean(1) / size.clamp(min=1e-12)
    by_series = dict(zip(present.tolist(), wql.tolist(), strict=True))
    order = sorted(by_series, key=lambda index: by_series[index])
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return tuple(_fan(label, index, by_series[index], evidence, prepared) for label, index in chosen.items())


def _fan(label: str, series: int, score: float, evidence: Evidence, prepared: Prepared) -> Fan:
    windows = prepared.fold("test", "evaluate")
    row = int(torch.nonzero(windows.series == series)[-1])
    window = windows[slice(row, row + 1)]
    cutoff = int(window.cutoff[0])
    past = torch.arange(max(0, cutoff - HISTORY_SHOWN * prepared.panel.schema.horizon), cutoff)
    return Fan(
        label=label,
        unique_id=str(prepared.ids[series]),
        score=score,
        cutoff=str(prepared.cutoff_time(window)[0])[:16].removesuffix("T00:00"),
        history_ds=prepared.time(torch.tensor(series), past),
        history_y=prepared.panel.rows[prepared.panel.offsets[series] + past, 0].numpy().astype(np.float64),
        ds=prepared.target_time(window)[0],
        y=evidence.target[row].numpy().astype(np.float64),
        median=evidence.after.median[row].numpy(),
        lo={level: bounds[0][row].numpy() for level, bounds in evidence.intervals.items()},
        hi={level: bounds[1][row].numpy() for level, bounds in evidence.intervals.items()},
        joint_lo=evidence.joint[0][row].numpy(),
        joint_hi=evidence.joint[1][row].numpy(),
    )
