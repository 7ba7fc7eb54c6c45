"""Whether intervals hold, alarms ring for what is strange, and doubt points at the worse forecasts.

    python -m benchmarks.uncertainty --json u.json

Runs our path (ingest to evaluate, no orchestration) on the default data and on the public sets of `benchmarks.accuracy`.
NeuralForecast's and Darts' conformal methods then wrap the same medians, from the same conformal fold, and are scored on the
same test windows. They rank each series' errors by themselves, so that a set with one window a series has none of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import peer_conformal
from benchmarks.common import at_least, machine, parser, report, table, versions
from benchmarks.datasets import DATASETS
from benchmarks.path import FAMILIES, default_params, our_params, run_ours
from benchmarks.peer_conformal import Array
from models.panel import Windows
from models.predictive import Predictive
from models.uncertainty.guarantee import coverage_band
from tasks.calibrate import load_calibration
from tasks.ensemble import ENSEMBLE, pooled
from tasks.errors import UserError
from tasks.evaluate import central_interval
from tasks.evidence import test_band
from tasks.prepare import Prepared, load_prepared

LEVEL = 90
WITHIN = 0.015
"""How far from its level coverage may lie; a peer covers where it is no further below."""
SETS = ("chicago", *sorted(DATASETS))


class Goal(NamedTuple):
    """What was reached, what was aimed at in words, and whether it was met; None where the question does not arise."""

    reached: str
    aim: str
    met: bool | None


class Seen(NamedTuple):
    """A fold as the peers' methods see it: ``series`` ``(n,)``, ``target`` and both bounds of the centres ``(n, H)``."""

    series: NDArray[np.int64]
    target: Array
    median: tuple[Array, Array]
    interval: tuple[Array, Array]

    @classmethod
    def of(cls, predictive: Predictive, prepared: Prepared, windows: Windows) -> Seen:
        median = predictive.median.double().numpy()
        lower, upper = (bound.double().numpy() for bound in central_interval(predictive, LEVEL))
        target = prepared.panel.targets(windows).double().numpy()
        return cls(windows.series.numpy(), target, (median, median), (lower, upper))


def peer_intervals(root: Path) -> dict[str, float]:
    """``<peer>/coverage_90`` and ``width_90`` of the peers' methods around our calibrated medians and intervals.

    Empty where a test series has too few calibration windows for them.
    """
    prepared, calibration = load_prepared(root), load_calibration(root)[0][ENSEMBLE]
    past, now = (
        Seen.of(calibration.apply(pooled(root, ENSEMBLE, fold, purpose)), prepared, prepared.fold(fold, purpose))
        for fold, purpose in (("conformal", "fit conformal"), ("test", "evaluate"))
    )
    named, count = np.unique(past.series, return_counts=True)
    if not np.isin(now.series, named[count >= peer_conformal.FEWEST]).all():
        return {}
    found: dict[str, float] = {}
    for methods, centre in ((peer_conformal.POINT, "median"), (peer_conformal.INTERVAL, "interval")):
        lower, upper = getattr(past, centre)
        error = np.maximum(lower - past.target, past.target - upper)
        for name, method in methods.items():
            reach = {one: method(error[past.series == one], LEVEL / 100) for one in np.unique(now.series).tolist()}
            radius = np.stack([reach[one] for one in now.series.tolist()])
            low, high = getattr(now, centre)[0] - radius, getattr(now, centre)[1] + radius
            found[f"{name}/coverage_{LEVEL}"] = float(((low <= now.target) & (now.target <= high)).mean())
            found[f"{name}/width_{LEVEL}"] = float((high - low).mean())
    return found


class Bands(NamedTuple):
    """Where coverage of a step and of whole paths falls by chance in 95 % of test folds; None where that is not known."""

    step: tuple[float, float] | None
    joint: tuple[float, float]

    @classmethod
    def of(cls, root: Path) -> Bands:
        """By the card's effective sizes.

        Where one cutoff holds all windows nothing tells how much they err together: paths count as independent, steps have
        no band.
        """
        prepared, (_, _, card) = load_prepared(root), load_calibration(root)
        if card["blocks"] > 1:
            return cls(*(test_band(card, f"{what} {LEVEL} %", prepared) for what in ("step", "joint")))
        return cls(None, coverage_band(len(prepared.windows["conformal"]), len(prepared.windows["test"]), LEVEL / 100))


def goals(metrics: Mapping[str, float], bands: Bands) -> dict[str, Goal]:
    """Each goal by its name, from one set's metrics by flat keys."""
    ours = {key.removeprefix(f"{ENSEMBLE}/"): value for key, value in metrics.items() if key.startswith(f"{ENSEMBLE}/")}
    covers, width = ours[f"coverage_{LEVEL}"], ours[f"width_{LEVEL}"]
    peers = {key.split("/")[0] for key in metrics if key.split("/")[0].startswith(("neuralforecast", "darts"))}
    rivals = {
        peer: metrics[f"{peer}/width_{LEVEL}"] for peer in peers if metrics[f"{peer}/coverage_{LEVEL}"] >= LEVEL / 100 - WITHIN
    }
    narrowest = min(rivals, key=lambda peer: rivals[peer]) if rivals else None
    against = "no peer that covers" if peers else "peers cannot be given"
    against = against if narrowest is None else f"{narrowest} {rivals[narrowest]:.4g}"
    joint, bonferroni = ours[f"joint_width_{LEVEL}"], ours.get(f"bonferroni_width_{LEVEL}", float("inf"))
    together = ours[f"joint_coverage_{LEVEL}"]
    before, after = ours["ece_before"], ours["ece_after"]
    low, high = bands.joint
    chance = "" if bands.step is None else ", by chance in [{:.3f}, {:.3f}]".format(*bands.step)
    return {
        "coverage": Goal(
            f"{covers:.3f}", f"{LEVEL / 100:.3f} give or take {WITHIN}{chance}", abs(covers - LEVEL / 100) <= WITHIN
        ),
        "narrower": Goal(f"{width:.4g}", f"below {against}", None if narrowest is None else width < rivals[narrowest]),
        "joint_coverage": Goal(f"{together:.3f}", f"in [{low:.3f}, {high:.3f}]", low <= together <= high),
        "joint_width": Goal(f"{joint:.4g}", f"below Bonferroni's {bonferroni:.4g}", joint < bonferroni),
        "ood_auroc": Goal(f"{ours['ood_auroc']:.3f}", "at least 0.95", ours["ood_auroc"] >= 0.95),
        "ood_fpr95": Goal(f"{ours['ood_fpr95']:.3f}", "at most 0.15", ours["ood_fpr95"] <= 0.15),
        "error_ratio_80": Goal(
            f"{ours['error_ratio_80']:.3f} (in the target's units {ours['error_ratio_80_units']:.3f})",
            f"at most 0.75, in units of each window's scale; by the errors themselves {ours['error_ratio_80_oracle']:.3f}",
            ours["error_ratio_80"] <= 0.75,
        ),
        "aurc_ratio": Goal(f"{ours['aurc_ratio']:.3f}", "1 by the errors themselves", None),
        "ece": Goal(
            f"{after:.3f} of {before:.3f}", "half where above 0.02, else no more than that", _kept_or_halved(before, after)
        ),
    }


def _kept_or_halved(before: float, after: float) -> bool | None:
    """Whether temperature halved a calibration error above 0.02; below, only that it raises none above counts."""
    if before > 0.02:
        return after <= before / 2
    return None if after <= 0.02 else False


def run_set(name: str, data: Path, families: list[str], members: int) -> tuple[dict[str, Any], dict[str, Goal]]:
    """Metrics of one set by flat keys, with what the run took, and its goals."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if name == "chicago":
            params = default_params(families, members, ["seasonal_naive"])
        else:
            benchmark = DATASETS[name](data)
            benchmark.frame.to_parquet(root / "panel.parquet", index=False)
            params = our_params(benchmark, root / "panel.parquet", families, members, ["seasonal_naive"])
        metrics, seconds = run_ours(params, root)
        metrics |= peer_intervals(root)
        bands = Bands.of(root)
    aims = goals(metrics, bands)
    finite = {key: value for key, value in metrics.items() if np.isfinite(value)}
    return {**finite, "step_band_90": bands.step, "joint_band_90": bands.joint, "seconds": seconds}, aims


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, default=Path("data/published"), help="folder with the published files")
    options.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    options.add_argument("--families", nargs="+", default=list(FAMILIES))
    options.add_argument("--members", type=at_least(1), default=2, help="networks a family")
    given = options.parse_args(arguments)
    result: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = []
    for name in given.datasets:
        try:
            metrics, aims = run_set(name, given.data, given.families, given.members)
        except UserError as error:
            if name == "chicago" or len(given.datasets) == 1:
                raise
            print(f"uncertainty: {name} is left out: {error}", file=sys.stderr)
            continue
        result |= {f"{name}/{key}": value for key, value in metrics.items()}
        result |= {f"{name}/goal/{key}": goal.met for key, goal in aims.items()}
        said = {True: "met", False: "missed", None: "-"}
        rows += [(name, key, goal.reached, goal.aim, said[goal.met]) for key, goal in aims.items()]
    result |= {"machine": machine(), "versions": versions(["torch", "lightning", "scikit-learn"])}
    report(result, table(("set", "what", "reached", "goal", ""), rows), given.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"uncertainty: {error}", file=sys.stderr)
        raise SystemExit(2) from None
