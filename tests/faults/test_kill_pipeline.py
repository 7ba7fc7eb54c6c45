"""SIGKILL at the start of every stage and inside each: results stay those of a quiet run.

One project is killed at one point after the other, and each time goes on from what is left. `starts` of a stage is the boundary
at which all before it is recorded; at it the outputs of all stages so far are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.files import read_json

OUTPUTS = {
    "ingest": "data/ingested",
    "prepare": "data/prepared",
    "baselines": "artifacts/baselines",
    "train@tcn": "artifacts/train/tcn",
    "train@gradient_boosting": "artifacts/train/gradient_boosting",
    "ensemble": "artifacts/ensemble",
    "calibrate": "artifacts/calibration",
    "interpret": "artifacts/interpretation",
    "evaluate": "metrics/test.json",
    "project": "artifacts/projection",
    "register": "artifacts/bundle",
}
ORDER = list(OUTPUTS)
Call = Callable[..., Any]


class Point(NamedTuple):
    """Where a run is killed."""

    stage: str
    name: str
    fault: dict[str, Any]


def _kill(on: str, path: str, after: bool = True) -> dict[str, Any]:
    return {"on": on, "path": path, "after": after, "act": "kill"}


def points_of(stage: str) -> list[Point]:
    """The points of a stage in the order of time."""
    flow, _, family = stage.partition("@")
    output = Path(OUTPUTS[stage])
    temporary = rf"{output.parent}/\.{re.escape(output.stem)}\.[^/]*tmp"
    starts = Point(stage, "as it starts", _kill("start", rf"flows\.{flow}( --family {family})?$"))
    halfway = Point(stage, "with its output half-written", _kill("write", temporary))
    written = Point(stage, "with its output written, not recorded", _kill("rename", rf"{output}$"))
    more = {
        "ingest": [written],
        "prepare": [Point(stage, "as DVC writes dvc.lock", _kill("write", r"dvc\.lock$"))],
        "baselines": [Point(stage, "as DVC writes its locks", _kill("write", r"\.dvc/tmp/rwlock$"))],
        "train@tcn": [written],
        "register": [Point(stage, "with the version registered, not recorded", _kill("write", r"artifacts/\.receipt\."))],
    }
    members = [
        Point(stage, "after an epoch", _kill("rename", r"member_0/last\.ckpt$")),
        Point(stage, "with a member trained", _kill("rename", r"member_0/weights\.safetensors$")),
        Point(stage, "with a member's forecasts half-written", _kill("write", r"member_0/quantiles_ood\.npy$")),
    ]
    return [starts, *(members if stage == "train@tcn" else ()), halfway, *more.get(stage, [])]


POINTS = [point for stage in ORDER for point in points_of(stage)]


@pytest.fixture(scope="module")
def project(new_small: Call, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The project that is killed."""
    return new_small(tmp_path_factory.mktemp("killed") / "project")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.stage} {point.name}")
def test_a_killed_run_goes_on(point: Point, project: Any, undisturbed: Any, fault: Call) -> None:
    starts = point.fault["on"] == "start"
    with fault(f"SIGKILL {point.stage} {point.name}", "the next run goes on to the same bytes"):
        ended = project.run("flows", "run", fault=point.fault)
        assert ended.returncode == -9, f"it was not killed: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        if starts:
            before = ORDER[: ORDER.index(point.stage)]
            wanted = undisturbed.recorded()
            assert project.recorded() == {stage: wanted[stage] for stage in before}


def test_in_the_end_all_is_as_if_nothing_had_happened(project: Any, undisturbed: Any, fault: Call) -> None:
    with fault(f"{len(POINTS)} kills of one project", "metrics, artefacts and forecast of a quiet run"):
        done = project.run("flows", "run")
        assert done.returncode == 0, done.stderr[-3000:]
        assert project.recorded() == undisturbed.recorded()
        forecasts = []
        for each in (project, undisturbed):
            assert each.run("flows", "forecast", "--output", "forecast.csv").returncode == 0
            forecasts.append((each.root / "forecast.csv").read_bytes())
        assert forecasts[0] == forecasts[1]
        metrics = [read_json(each.root / "metrics/test.json") for each in (project, undisturbed)]
        assert metrics[0] == metrics[1]
        assert read_json(project.root / "artifacts/receipt.json")["version"] == "1", "registered once"
        assert project.leftovers() == []
        assert project.run("dvc", "status", "--json").stdout.strip() == "{}"
