"""What a champion was judged on when it was registered: the figures that `weatherglass monitor` holds live ones against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.panel import Panel
from models.predictive import Predictive
from models.uncertainty import scores
from models.uncertainty.calibration import Calibration
from models.uncertainty.conformal_scores import checked_scores, interval_score
from models.uncertainty.drift import Population
from models.uncertainty.gate import Gate
from models.uncertainty.ledger import Cutoff
from tasks.calibrate import time_block, window_series
from tasks.encoding import Encoding
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import atomic_path, read_json, write_json
from tasks.folds import claim
from tasks.gate import encoder_family, look
from tasks.params import Params
from tasks.prepare import Prepared, leading_rows

LEVEL = 90
NUMBERS, TENSORS = "reference.json", "reference.safetensors"


@dataclass(frozen=True)
class Judged:
    """Forecasts held against the truth: of n windows their series, stretch of time ``block`` (n,) and, by step (n, H), CRPS,
    width of the 90 % interval, whether it held the truth, and the truth's probability integral transform."""

    series: np.ndarray
    block: Tensor
    crps: Tensor
    width: Tensor
    covered: Tensor
    pit: Tensor
    flagged: Tensor

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        predictive: Predictive,
        target: Tensor,
        series: Sequence[str],
        block: Tensor,
        flagged: Tensor,
    ) -> Judged:
        """Of calibrated forecasts and truths ``(n, H)``; ``flagged`` (n,) says which windows the gate found strange."""
        lower, upper = calibration.interval(predictive, LEVEL, series)
        return cls(
            np.array(series, dtype=object),
            block,
            scores.crps(predictive, target),
            upper - lower,
            scores.coverage(lower, upper, target),
            predictive.cdf(target),
            flagged,
        )

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, chosen: np.ndarray) -> Judged:
        """The windows where ``chosen`` ``(n,)`` holds, or of these numbers."""
        which = torch.from_numpy(chosen)
        return Judged(self.series[chosen], *(getattr(self, name)[which] for name in TENSORS_OF_JUDGED))


TENSORS_OF_JUDGED = ("block", "crps", "width", "covered", "pit", "flagged")


@dataclass(frozen=True)
class Reference:
    """A champion's own past.

    Attributes
    ----------
    trained_until, until : last time of its training fold and of its data, ISO 8601 or a whole number
    stride, window : steps between the cutoffs of its test fold, and the length of that fold
    effective, worth : effective windows of the conformal fold, and how many of them a stretch of a horizon is worth
    series : names of its series
    targets, together, columns : where the training fold's values lay: of each series, of all in units of their own
        deviation, and of each covariate as encoded
    scores : conformal scores ``(n, H)``, from which live intervals start
    test : its test fold
    """

    trained_until: Cutoff
    until: Cutoff
    stride: int
    window: int
    effective: float
    worth: float
    series: tuple[str, ...]
    targets: dict[str, Population]
    together: Population
    columns: dict[str, Population]
    scores: Tensor
    test: Judged

    def write(self, folder: Path) -> None:
        """Write ``reference.json`` and ``reference.safetensors`` into ``folder``."""
        from safetensors.torch import save_file

        plain = {name: getattr(self, name) for name in PLAIN}
        populations = {
            kind: {name: each.state() for name, each in getattr(self, kind).items()} for kind in ("targets", "columns")
        }
        names = {"test_series": self.test.series.tolist(), "together": self.together.state()}
        write_json(folder / NUMBERS, {**plain, **populations, **names})
        tensors = {f"test.{name}": getattr(self.test, name).contiguous() for name in TENSORS_OF_JUDGED}
        with atomic_path(folder / TENSORS) as temporary:
            save_file({"scores": self.scores.contiguous(), **tensors}, temporary)

    @classmethod
    def load(cls, folder: Path) -> Reference | None:
        """Read it back; None where a bundle was made before there was one."""
        from safetensors.torch import load_file

        if not (folder / NUMBERS).exists():
            return None
        content, tensors = read_json(folder / NUMBERS), load_file(folder / TENSORS)
        series = np.array(content["test_series"], dtype=object)
        targets, columns = (
            {name: Population.from_state(each) for name, each in content[kind].items()} for kind in ("targets", "columns")
        )
        return cls(
            **{name: content[name] for name in PLAIN if name != "series"},
            targets=targets,
            columns=columns,
            series=tuple(content["series"]),
            together=Population.from_state(content["together"]),
            scores=tensors["scores"],
            test=Judged(series, *(tensors[f"test.{name}"] for name in TENSORS_OF_JUDGED)),
        )


PLAIN = ("trained_until", "until", "stride", "window", "effective", "worth", "series")


def make_reference(
    params: Params, root: Path, prepared: Prepared, calibration: Calibration, gate: Gate, card: dict[str, Any]
) -> Reference:
    """Gather it from a project whose calibration is done, each fold for a purpose of its own."""
    conformal, test = prepared.fold("conformal", "fit conformal"), prepared.fold("test", "evaluate")
    score, level = interval_score(calibration.step.name), LEVEL / 100
    fitted = calibration.apply(pooled(root, ENSEMBLE, "conformal", "fit conformal"))
    fold_scores = checked_scores(score, fitted, prepared.panel.targets(conformal), level)[..., 0]
    seen = look(root, encoder_family(params), prepared, calibration, gate, "test", "evaluate")
    judged = Judged.of(
        calibration,
        calibration.apply(pooled(root, ENSEMBLE, "test", "evaluate")),
        prepared.panel.targets(test),
        window_series(prepared, test),
        time_block(prepared, test),
        gate.is_ood(seen.score),
    )
    panel = prepared.panel
    folds = {fold["name"]: fold for fold in prepared.meta["folds"]}
    claim("train", "fit feature statistics")
    counts = np.minimum(panel.observed.numpy(), folds["train"]["end"] - np.array(prepared.meta["first_step"])).clip(min=0)
    train = leading_rows(panel.offsets[:-1].numpy(), counts, len(panel.rows))
    names = [str(name) for name in prepared.ids]
    targets = {name: Population.fit(own) for name, own in zip(names, own_targets(panel, train), strict=True) if len(own)}
    promise = card["levels"][f"step {LEVEL} %"]
    return Reference(
        trained_until=last_time(prepared, counts),
        until=last_time(prepared, panel.observed.numpy()),
        stride=int(prepared.meta["settings"]["cutoff_every"]),
        window=int(prepared.meta["settings"]["test"]),
        effective=float(promise["n_effective"]),
        worth=max(1.0, float(promise["n_effective"]) / max(1, int(card["blocks"]))),
        series=tuple(names),
        targets=targets,
        together=Population.fit(together(panel, train, names, targets)),
        columns={
            name: Population.fit(panel.rows[torch.from_numpy(train), column]) for name, column in covariates(prepared.encoding)
        },
        scores=fold_scores,
        test=judged,
    )


def last_time(prepared: Prepared, counts: np.ndarray) -> Cutoff:
    """The latest time among the first ``counts`` ``(n_series,)`` rows of each series."""
    series = torch.from_numpy(np.flatnonzero(counts))
    return as_cutoff(prepared.time(series, torch.from_numpy(counts)[series] - 1).max())


def covariates(encoding: Encoding) -> list[tuple[str, int]]:
    """Names of the covariates that change with time, and their columns in a panel's rows."""
    past = 1 + len(encoding.known_future) + len(encoding.static_reals)
    known = [(name, 1 + index) for index, name in enumerate(encoding.known_future)]
    return known + [(name, past + index) for index, name in enumerate(encoding.past_only)]


def own_targets(panel: Panel, chosen: np.ndarray) -> list[Tensor]:
    """Targets of each series in the rows ``chosen`` (bool ``(n_rows,)``), float32 ``(n,)``."""
    which = torch.from_numpy(chosen)
    return [panel.rows[start:stop, 0][which[start:stop]] for start, stop in pairwise(panel.offsets.tolist())]


def together(panel: Panel, chosen: np.ndarray, names: Sequence[str], targets: Mapping[str, Population]) -> Tensor:
    """Targets of the rows ``chosen``, each in units of its series' training fold; series without one are left out."""
    own = zip(names, own_targets(panel, chosen), strict=True)
    parts = [targets[name].standardised(values) for name, values in own if name in targets]
    return torch.cat([torch.empty(0, dtype=torch.float64), *parts])


def row_series(panel: Panel) -> np.ndarray:
    """Index of each row's series, ``(n_rows,)``."""
    return np.repeat(np.arange(panel.n_series), panel.offsets.diff().numpy())


def row_steps(panel: Panel, first_step: np.ndarray) -> np.ndarray:
    """Step of each row on the panel's common time axis, ``(n_rows,)``; ``first_step`` ``(n_series,)`` is each series' first."""
    places = row_series(panel)
    return np.arange(len(places)) - panel.offsets.numpy()[places] + first_step[places]


def observed_rows(panel: Panel) -> np.ndarray:
    """Whether each row has a target, ``(n_rows,)``."""
    places = row_series(panel)
    return np.arange(len(places)) - panel.offsets.numpy()[places] < panel.observed.numpy()[places]


def as_cutoff(time: Any) -> Cutoff:
    """A time as text that sorts by time, or as a whole number."""
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="s"))
    return int(time)
