"""Our path from panel to metrics without orchestration, in a folder of its own, with the seconds of each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.datasets import Benchmark
from tasks.calibrate import calibrate
from tasks.ensemble import make_ensemble
from tasks.evaluate import evaluate, run_baselines
from tasks.ingest import ingest
from tasks.params import Params
from tasks.params_file import read_yaml
from tasks.prepare import prepare
from tasks.train import train_family

DEFAULTS = Path(__file__).resolve().parent.parent / "params.yaml"
FAMILIES = ("tcn", "deepar", "tft", "tide", "gradient_boosting")
"""Trained unless others are asked for."""


def our_params(benchmark: Benchmark, path: Path, families: list[str], members: int, baselines: list[str]) -> Params:
    """Defaults of params.yaml but for the data, the folds that the protocol fixes, families, members and baselines."""
    data = {"source": "file", "path": str(path), "frequency": benchmark.frequency, "horizon": benchmark.horizon}
    tree: dict[str, Any] = {"data": data, **benchmark.params, "families": families}
    tree |= {"train": {"members": members}, "baselines": {"models": baselines}}
    return Params.model_validate(tree)


def default_params(families: list[str], members: int, baselines: list[str]) -> Params:
    """The project's own params.yaml, its data and covariates too, but for families, members and baselines."""
    tree = read_yaml(DEFAULTS, DEFAULTS.name)
    tree |= {"families": families, "train": tree["train"] | {"members": members}}
    return Params.model_validate(tree | {"baselines": tree["baselines"] | {"models": baselines}})


class Stopwatch(dict[str, float]):
    """Seconds of work by its name."""

    def time(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do ``work(*arguments)``, keep the seconds that it takes and return what it returns."""
        started = time.monotonic()
        result = work(*arguments)
        self[name] = time.monotonic() - started
        return result


def run_ours(params: Params, root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the ensemble, each family and the baselines, and seconds by step; ``ours`` is all up to calibration."""
    seconds = Stopwatch()
    timed = seconds.time
    timed("ingest", ingest, params, root)
    timed("prepare", prepare, params, root)
    for family in params.families:
        timed(f"train {family}", train_family, params, root, family)
    timed("ensemble", make_ensemble, params, root)
    timed("calibrate", calibrate, params, root)
    ours = sum(seconds.values())
    timed("baselines", run_baselines, params, root)
    metrics, _, _ = timed("evaluate", evaluate, params, root)
    return metrics, seconds | {"ours": ours}
