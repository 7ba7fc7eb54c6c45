"""What the maps show of a project: embeddings of its windows and series, what colours them and which are marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from models.panel import Windows
from tasks.calibrate import load_calibration
from tasks.ensemble import ENSEMBLE
from tasks.folds import claim
from tasks.gate import encoder_family, gate_features, look
from tasks.params import Params
from tasks.prepare import Prepared
from tasks.projection.maps import LEAST
from tasks.train import TRAINED

SPARK = 48  # steps of a sparkline
DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Colour:
    """What points are coloured by: names, or numbers ``(n,)`` with NaN where one is not known."""

    title: str
    values: np.ndarray
    note: str = ""
    absent: str = "not known"

    @property
    def is_number(self) -> bool:
        """Whether the values are shades and not names."""
        return self.values.dtype.kind == "f"


@dataclass(frozen=True)
class Points:
    """Points ``(n, D)`` to be drawn; the ``new`` ones come last and are placed on the map of the others."""

    features: np.ndarray
    labels: np.ndarray
    colours: tuple[Colour, ...]
    new: np.ndarray
    flagged: np.ndarray
    sparks: np.ndarray | None = None
    new_title: str = "new"
    notes: tuple[str, ...] = ()


def window_points(params: Params, root: Path, prepared: Prepared) -> tuple[Points, pd.DataFrame]:
    """A sample of the training windows and, as new ones, of the test windows; and what each row is.

    Test windows are at most a third of ``projection.points``.
    """
    family = params.projection.family or encoder_family(params)
    train, test = _sample(root, family), prepared.fold("test", "evaluate")
    rng, wanted = np.random.default_rng(params.projection.seed), params.projection.points
    later = np.sort(rng.permutation(len(test))[: wanted // 3])
    early = np.sort(rng.permutation(len(train))[: max(LEAST, wanted - len(later))])
    chosen = np.concatenate([early, len(train) + later])
    windows = Windows(torch.cat([train.series, test.series]), torch.cat([train.cutoff, test.cutoff]))
    features = np.concatenate([np.load(root / TRAINED / family / f"features_{fold}.npy") for fold in ("train", "test")])
    told = _told(params, root, prepared, family, train, test)
    windows = windows[torch.from_numpy(chosen)]
    told = told.iloc[chosen].reset_index(drop=True)
    new = chosen >= len(train)
    ids, cutoff = prepared.ids[windows.series.numpy()], prepared.cutoff_time(windows)
    told.insert(0, "fold", np.where(new, "test", "train"))
    told.insert(1, "unique_id", ids)
    told.insert(2, "cutoff", cutoff)
    measured = "Only test windows have a forecast to judge."
    colours = [
        Colour("Series", ids),
        *(Colour(f"Group: {name}", values[windows.series.numpy()]) for name, values in groups(prepared).items()),
        Colour(*season(prepared, windows)),
        Colour("Fold", told["fold"].to_numpy(dtype=object)),
        Colour("Error", told["error"].to_numpy(), f"Mean absolute error in the window's standard deviations. {measured}"),
        Colour("Epistemic uncertainty", told["epistemic"].to_numpy(), f"How far members disagree, in the same. {measured}"),
        Colour("OOD score", told["ood_score"].to_numpy(), "How unlike training input the gate finds a window."),
    ]
    labels = np.array([f"{name}, after {_time(time)}" for name, time in zip(ids, cutoff, strict=True)], dtype=object)
    flagged = told["is_ood"].to_numpy(dtype=bool)
    lines = sparklines(prepared, windows)
    return Points(features[chosen], labels, tuple(colours), new, flagged, lines, "window of the test fold"), told


def series_points(points: Points, told: pd.DataFrame, prepared: Prepared) -> Points | None:
    """A point a series, the mean of its windows, each column scaled by its spread over windows; None for too few series.

    A series is flagged when most of its test windows are.
    """
    groups_ = told.groupby("unique_id", sort=True)
    if groups_.ngroups < LEAST:
        return None
    spread = points.features.std(axis=0)
    scaled = points.features / np.where(spread > 0, spread, 1.0)
    names = np.array(list(groups_.groups), dtype=object)
    place = {name: index for index, name in enumerate(prepared.ids)}
    last = torch.tensor([place[name] for name in names])
    windows = Windows(last, prepared.panel.observed[last])
    means = groups_[["error", "epistemic", "ood_score"]].mean()
    flagged = told[told["fold"] == "test"].groupby("unique_id")["is_ood"].mean().reindex(names).fillna(0.0).to_numpy() > 0.5
    return Points(
        features=np.stack([scaled[rows].mean(axis=0) for rows in (groups_.indices[name] for name in names)]),
        labels=names,
        colours=(
            *(Colour(f"Group: {name}", values[last.numpy()]) for name, values in groups(prepared).items()),
            Colour("Error", means["error"].to_numpy(), "Mean over its windows of the test fold."),
            Colour("Epistemic uncertainty", means["epistemic"].to_numpy(), "Mean over its windows of the test fold."),
            Colour("OOD score", means["ood_score"].to_numpy(), "Mean over its windows on the map."),
            Colour("Series", names),
        ),
        new=np.zeros(len(names), dtype=bool),
        flagged=flagged,
        sparks=sparklines(prepared, windows),
        notes=("A series is the mean of its windows' embeddings.",),
    )


def _sample(root: Path, family: str) -> Windows:
    return Windows(*torch.from_numpy(np.load(root / TRAINED / family / "windows_sample.npy")))


def _told(params: Params, root: Path, prepared: Prepared, family: str, train: Windows, test: Windows) -> pd.DataFrame:
    """Error, epistemic uncertainty, OOD score and alarm of training and test windows; NaN where one is not known."""
    calibrations, gate, _ = load_calibration(root)
    reads = encoder_family(params)
    seen = look(root, reads, prepared, calibrations[ENSEMBLE], gate, "test", "evaluate")
    score = torch.full((len(train),), float("nan"), dtype=torch.float64)
    sample = _sample(root, reads)
    if family == reads or (torch.equal(sample.series, train.series) and torch.equal(sample.cutoff, train.cutoff)):
        encoded = torch.from_numpy(np.load(root / TRAINED / reads / f"features_{claim('train', 'fit feature statistics')}.npy"))
        score = gate.score(gate_features(encoded, prepared.panel, sample)).to(torch.float64)
    unknown = np.full(len(train), np.nan)
    return pd.DataFrame(
        {
            "error": np.r_[unknown, seen.error.double().numpy()],
            "epistemic": np.r_[unknown, seen.signals[:, 1].double().numpy()],
            "ood_score": np.r_[score.numpy(), seen.score.double().numpy()],
            "is_ood": np.r_[np.zeros(len(train), dtype=bool), gate.is_ood(seen.score).numpy()],
        }
    )


def groups(prepared: Prepared) -> Mapping[str, np.ndarray]:
    """Names of the group each series belongs to, ``(n_series,)``, by static covariate."""
    found = {}
    for column, (name, _) in enumerate(prepared.panel.schema.static[1:], start=1):
        names = np.array(["not seen in training", *prepared.encoding.vocabularies[name]], dtype=object)
        found[name] = names[prepared.panel.static[:, column].numpy()]
    return found


def season(prepared: Prepared, windows: Windows) -> tuple[str, np.ndarray]:
    """A name and the season of each window's cutoff: hour or month, or a whole number's place in its season."""
    time = prepared.cutoff_time(windows)
    if not np.issubdtype(time.dtype, np.datetime64):
        length = max(1, prepared.panel.schema.season_length)
        return "Place in the season", (prepared.cutoff_step(windows) % length).numpy().astype(str).astype(object)
    index = pd.DatetimeIndex(time)
    if len(prepared.times) > 1 and prepared.times[1] - prepared.times[0] < DAY:
        return "Hour", index.hour.astype(str).to_numpy(dtype=object)
    return "Month", np.array([f"{month:02d}" for month in index.month], dtype=object)


def sparklines(prepared: Prepared, windows: Windows) -> np.ndarray:
    """The last ``SPARK`` values before each cutoff, float32 ``(n, SPARK)``, NaN before a series begins."""
    back = torch.arange(-SPARK, 0)
    step = windows.cutoff[:, None] + back
    rows = (prepared.panel.offsets[windows.series][:, None] + step).clamp(min=0)
    return torch.where(step >= 0, prepared.panel.rows[:, 0][rows], torch.nan).numpy()


def _time(value: object) -> str:
    return str(value)[:16].removesuffix("T00:00")
