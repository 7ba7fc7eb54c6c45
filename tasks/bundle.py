"""The bundle: the one thing that is registered, deployed and rolled back; safetensors and JSON, no pickle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from models.forecasters.base import Forecaster
from models.panel import Panel, Windows
from models.predictive import Predictive
from models.uncertainty.calibration import INTERVAL_LEVELS, JOINT_LEVEL, Calibration
from models.uncertainty.conformal_scores import Bounds
from models.uncertainty.energy import EnergyAlarm, either_p_value
from models.uncertainty.ensemble import all_aleatoric, decompose, pool
from models.uncertainty.gate import Gate
from tasks.calibrate import load_calibration
from tasks.encoding import Encoding
from tasks.energy import ALARM, ENERGY_COLUMNS, energy_family, window_logits
from tasks.ensemble import ENSEMBLE, POOLED, member_weights
from tasks.errors import UserError
from tasks.files import atomic_dir, digest_of, file_md5, read_json, write_json
from tasks.gate import encoder_family, error_signals, gate_features
from tasks.member import load_member
from tasks.params import Params
from tasks.params_file import told
from tasks.predict import Predicted, predict_windows
from tasks.prepare import PREPARED, load_prepared
from tasks.presets import passes_of
from tasks.reference import Reference, make_reference
from tasks.sets import SET_COLUMNS, DecileSets, load_sets
from tasks.train import TRAINED

BUNDLE = Path("artifacts/bundle")
FORMAT = 2
MINIMUM_HISTORY = 2  # a location and a scale need two values
DISTRIBUTION_COLUMNS = ("mean", "median")
BAND_COLUMNS = tuple(f"{side}-{level}" for level in INTERVAL_LEVELS for side in ("lo", "hi"))
JOINT_COLUMNS = (f"joint-lo-{JOINT_LEVEL}", f"joint-hi-{JOINT_LEVEL}")
LIVE_COLUMNS = ("lo_90_live", "hi_90_live")
Live = Callable[[Predictive, Sequence[str]], Bounds]
"""Bounds of the live intervals of n series around their forecasts ``(n, H)``."""
TRUST_COLUMNS = ("aleatoric", "epistemic", "ood_score", "ood_pvalue", "is_ood", "abstain")

#: The columns that users receive, in order.
FORECAST_COLUMNS = (
    "unique_id", "ds", "cutoff", *DISTRIBUTION_COLUMNS, *BAND_COLUMNS, *JOINT_COLUMNS, *TRUST_COLUMNS, "model",
)  # fmt: skip


def forecast_columns(params: Params) -> tuple[str, ...]:
    """The columns that users receive, with those of conformal sets and energy before the last where the run has them."""
    sets = SET_COLUMNS if params.calibration.sets != "none" else ()
    energy = ENERGY_COLUMNS if energy_family(params) is not None else ()
    return (*FORECAST_COLUMNS[:-1], *sets, *energy, FORECAST_COLUMNS[-1])


def write_bundle(params: Params, root: Path) -> Path:
    """Bring weights, repairs, gate, encoding, params, card and reference figures together in ``artifacts/bundle``."""
    calibrations, gate, card = load_calibration(root)
    reference = make_reference(params, root, load_prepared(root), calibrations[ENSEMBLE], gate, card)
    sets = load_sets(root)
    with atomic_dir(root / BUNDLE) as folder:
        for family in params.families:
            (folder / "members" / family).mkdir(parents=True)
            for index in range(params.train.members):
                name = f"member_{index}.safetensors"
                shutil.copyfile(root / TRAINED / family / name, folder / "members" / family / name)
        shutil.copyfile(root / "artifacts/calibration/gate.safetensors", folder / "gate.safetensors")
        if (root / ALARM).exists():
            shutil.copyfile(root / ALARM, folder / ALARM.name)
        content = {
            "format": FORMAT,
            "pooling": read_json(root / POOLED / "weights.json")["pooling"],
            "members": member_weights(root),
            "calibration": calibrations[ENSEMBLE].state(),
            "sets": None if sets is None else sets.state(),
            "encoding": read_json(root / PREPARED / "encoding.json"),
            "params": params.model_dump(
                mode="json", exclude={"monitor", "serving"}
            ),  # the project's, and a webhook is a secret
            "card": card,
            "metrics": read_json(root / "metrics/test.json"),
        }
        write_json(folder / "bundle.json", content)
        reference.write(folder)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        write_json(folder / "manifest.json", {name: file_md5(folder / name) for name in files})
    return root / BUNDLE


def bundle_digest(folder: Path) -> str:
    """Identity of a bundle: a digest over the digests of its files."""
    return digest_of(read_json(folder / "manifest.json"))


class DamagedBundle(UserError):
    """A bundle's files are not those that were written."""


def check_bundle(folder: Path, digest: str | None = None) -> None:
    """Raise DamagedBundle where a file of a bundle is missing or is not what was written, or its `bundle_digest` another."""
    again = "bring it back from a backup, or register it again by `dvc repro -s -f register`."
    try:
        manifest = dict(read_json(folder / "manifest.json"))
    except (OSError, ValueError, TypeError):
        raise DamagedBundle(f"the bundle's file 'manifest.json' cannot be read; {again}") from None
    for path, expected in manifest.items():
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise DamagedBundle(f"the bundle's manifest names '{path}', which lies outside of it; {again}")
        if not (folder / path).is_file() or file_md5(folder / path) != expected:
            raise DamagedBundle(f"the bundle's file '{path}' is not the one that was registered; {again}")
    if digest is not None and bundle_digest(folder) != digest:
        raise DamagedBundle(f"the bundle's files and their manifest are not those that were registered; {again}")


@dataclass(frozen=True)
class Examined:
    """What a bundle says of n windows: distributions and both variances (n, H), and the gate's verdict (n,)."""

    predictive: Predictive
    aleatoric: torch.Tensor
    epistemic: torch.Tensor
    score: torch.Tensor
    p_value: torch.Tensor
    is_ood: torch.Tensor
    abstain: torch.Tensor
    energy: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, ready to forecast."""

    params: Params
    encoding: Encoding
    members: tuple[Forecaster, ...]
    families: tuple[str, ...]
    weights: torch.Tensor
    encoder: Forecaster
    pooling: str
    calibration: Calibration
    sets: DecileSets | None
    gate: Gate
    alarm: EnergyAlarm | None
    card: Mapping[str, Any]
    reference: Reference | None
    name: str

    @classmethod
    def load(cls, folder: Path, name: str = "weatherglass", digest: str | None = None) -> Bundle:
        """Load from a folder; every file is checked first against the manifest, and that against a ``digest``.

        Raises DamagedBundle where a file is missing or is not what was written, UserError where it is of another version.
        """
        from safetensors.torch import load_file

        check_bundle(folder, digest)
        content = read_json(folder / "bundle.json")
        if content["format"] != FORMAT:
            raise UserError(
                f"the bundle has format {content['format']} and this version reads {FORMAT}; register the model again by "
                "`weatherglass run`."
            )
        try:
            params = Params.model_validate(content["params"], strict=False)
        except ValidationError as error:
            raise UserError(
                f"{name} was registered with params.yaml keys that this version reads otherwise: {told(error, Params)} "
                "Register the model again by `weatherglass run`, and make it champion by `weatherglass promote`."
            ) from None
        encoding = Encoding.from_state(content["encoding"])
        loaded = {}
        for row in content["members"]:
            weights = folder / "members" / row["family"] / f"member_{row['index']}.safetensors"
            config = getattr(params.forecasters, row["family"])
            loaded[row["family"], row["index"]] = load_member(row["family"], config, encoding.schema, weights)
        return cls(
            params=params,
            encoding=encoding,
            members=tuple(loaded.values()),
            families=tuple(family for family, _ in loaded),
            weights=torch.tensor([row["weight"] for row in content["members"]], dtype=torch.float64),
            encoder=loaded[encoder_family(params), 0],
            pooling=content["pooling"],
            calibration=Calibration.from_state(content["calibration"]),
            sets=None if content["sets"] is None else DecileSets.from_state(content["sets"]),
            gate=Gate.from_tensors(load_file(folder / "gate.safetensors")),
            alarm=EnergyAlarm.from_tensors(load_file(folder / ALARM.name)) if (folder / ALARM.name).exists() else None,
            card=content["card"],
            reference=Reference.load(folder),
            name=name,
        )

    def forecast(self, frame: pd.DataFrame, live: Live | None = None, before: int = 0) -> pd.DataFrame:
        """Forecast the steps after the last target of every series, with `LIVE_COLUMNS` where ``live`` gives their bounds.

        ``frame`` is a validated long table (``unique_id, ds, y`` and covariates, sorted) with future rows as
        :func:`tasks.future.with_future_rows` makes them. Returns the forecast table, one row per series and step. Where
        ``before`` series of a table, whole batches of `tasks.predict`, were forecast by themselves, the others go on from them.
        """
        panel = self.encoding.panel(frame)
        windows = Windows(torch.arange(panel.n_series), panel.observed.clone())
        if int(panel.observed.min()) < MINIMUM_HISTORY:
            short = frame["unique_id"].iloc[int(panel.offsets[int(panel.observed.argmin())])]
            raise UserError(
                f"series {short} has {int(panel.observed.min())} value; a forecast needs at least {MINIMUM_HISTORY}."
            )
        seen = self.examine(panel, windows, before)
        predictive = seen.predictive
        horizon = panel.schema.horizon
        rows = (panel.offsets[:-1] + panel.observed).numpy()[:, None] + np.arange(horizon)
        names = frame["unique_id"].iloc[rows[:, 0]].to_numpy(object)
        series = [str(name) for name in names]
        per_step: dict[str, Any] = {"mean": predictive.mean, "median": predictive.median}
        for level in INTERVAL_LEVELS:
            bounds = self.calibration.interval(predictive, level, series)
            per_step[f"lo-{level}"], per_step[f"hi-{level}"] = bounds
        per_step[JOINT_COLUMNS[0]], per_step[JOINT_COLUMNS[1]] = self.calibration.joint.band(predictive)
        if self.sets is not None:
            per_step |= self.sets.columns(predictive, self._set_edges(self.sets, panel, series))
        if live is not None:
            per_step |= zip(LIVE_COLUMNS, live(predictive, series), strict=True)
        if self.encoding.minimum is not None:  # a count is never below it, so no interval loses coverage by this
            per_step = {name: value.clamp(min=self.encoding.minimum) for name, value in per_step.items()}
        per_step |= {"aleatoric": seen.aleatoric, "epistemic": seen.epistemic}
        times = frame["ds"].to_numpy()
        table: dict[str, Any] = {
            "unique_id": np.repeat(names, horizon),
            "ds": times[rows].ravel(),
            "cutoff": np.repeat(times[rows[:, 0] - 1], horizon),
            **{name: value.numpy().ravel() for name, value in per_step.items()},
            "ood_score": np.repeat(seen.score.numpy(), horizon),
            "ood_pvalue": np.repeat(seen.p_value.numpy(), horizon),
            "is_ood": np.repeat(seen.is_ood.numpy(), horizon),
            "abstain": np.repeat(seen.abstain.numpy(), horizon),
            **{name: np.repeat(value.numpy(), horizon) for name, value in seen.energy.items()},
            "model": self.name,
        }
        *columns, last = forecast_columns(self.params)
        return pd.DataFrame(table)[[*columns, *(LIVE_COLUMNS if live is not None else ()), last]]

    @property
    def batch_invariant(self) -> bool:
        """Whether a series' forecast is the same, but for rounding, whatever other series are forecast with it."""
        exact = all(member.batch_invariant for member in self.members)
        return exact and not any(passes_of(self.params, family) for family in self.families)

    def examine(self, panel: Panel, windows: Windows, before: int = 0) -> Examined:
        """Forecast windows of a panel that `encoding` has made, and let the gate look at them; ``before`` as in `forecast`."""
        predicted = self._predicted(panel, windows, before)
        values = _quantiles(predicted)
        predictive = self.calibration.apply(pool(values, self.weights, self.pooling))
        aleatoric, epistemic = decompose(values, self.weights, _splits(predicted))
        score = self.gate.score(gate_features(self._encoded(panel, windows, predicted), panel, windows))
        signals = error_signals(predictive, epistemic, panel.levels(windows)[0])
        abstain = self.gate.abstain(score, self.gate.uncertainty(signals, score))
        p_value, is_ood, energy = self.gate.p_value(score), self.gate.is_ood(score), self._energy(panel, windows)
        if energy:
            p_value = either_p_value(p_value, energy["energy_pvalue"])
            is_ood = p_value <= self.gate.alpha
        return Examined(predictive, aleatoric, epistemic, score, p_value, is_ood, abstain | is_ood, energy)

    def misfit(self, frame: pd.DataFrame, params: Params) -> str | None:
        """Why today's data, or what params.yaml asks for, does not fit this bundle, as half a sentence; None where it does."""
        schema, data = self.encoding.schema, params.data
        if (schema.horizon, self.encoding.frequency) != (data.horizon, data.frequency):
            return (
                f"{self.name} forecasts {schema.horizon} steps of frequency {self.encoding.frequency} and params.yaml asks for "
                f"{data.horizon} of {data.frequency}"
            )
        read = (*self.encoding.known_future, *self.encoding.static_reals, *self.encoding.past_only, *self.encoding.vocabularies)
        missing = next((name for name in read if name not in frame), None)
        return None if missing is None else f"{self.name} reads the column '{missing}', which the data has no more"

    def predictive(self, panel: Panel, windows: Windows) -> Predictive:
        """The calibrated distributions of ``windows`` ``(n, H)`` of a panel that `encoding` has made."""
        return self.calibration.apply(pool(_quantiles(self._predicted(panel, windows)), self.weights, self.pooling))

    @staticmethod
    def _set_edges(sets: DecileSets, panel: Panel, series: list[str]) -> torch.Tensor:
        """Edges of each series' bins ``(n_series, 9)``."""
        starts, lengths = panel.offsets.tolist(), panel.observed.tolist()
        return torch.stack(
            [
                sets.edges_of(name, panel.rows[start : start + length, 0])
                for name, start, length in zip(series, starts, lengths, strict=False)
            ]
        )

    def _energy(self, panel: Panel, windows: Windows) -> dict[str, torch.Tensor]:
        """`ENERGY_COLUMNS`, ``(n_series,)`` each; empty where the bundle has no energy alarm."""
        if self.alarm is None:
            return {}
        member = self.members[self.families.index(str(energy_family(self.params)))]
        score = self.alarm.score(window_logits(member, panel, windows))
        return dict(zip(ENERGY_COLUMNS, (score, self.alarm.p_value(score)), strict=True))

    def _encoded(self, panel: Panel, windows: Windows, predicted: list[Predicted]) -> torch.Tensor:
        """Features of the gate's encoder ``(n, D)``, which its forecast has brought unless that is one of MC dropout."""
        index = next(index for index, member in enumerate(self.members) if member is self.encoder)
        if passes_of(self.params, self.families[index]):
            return torch.from_numpy(predict_windows(self.encoder, panel, windows, self.params.train.seed).features)
        return torch.from_numpy(predicted[index].features)

    def _predicted(self, panel: Panel, windows: Windows, before: int = 0) -> list[Predicted]:
        """Each member's forecast, with as many MC dropout passes as it was evaluated with."""
        seed = self.params.train.seed
        return [
            predict_windows(member, panel, windows, seed, passes_of(self.params, family), before)
            for member, family in zip(self.members, self.families, strict=True)
        ]


def _quantiles(predicted: list[Predicted]) -> torch.Tensor:
    """Quantiles of all members ``(M, n, H, Q)``."""
    return torch.stack([torch.from_numpy(each.quantiles) for each in predicted])


def _splits(predicted: list[Predicted]) -> torch.Tensor | None:
    """Aleatoric and epistemic variance within each member ``(M, 2, n, H)``; None where no member has MC dropout passes."""
    if all(each.split is None for each in predicted):
        return None
    return torch.stack([_split(each) for each in predicted])


def _split(predicted: Predicted) -> torch.Tensor:
    """Aleatoric and epistemic variance within one member ``(2, n, H)``; all aleatoric without MC dropout passes."""
    if predicted.split is not None:
        return torch.from_numpy(predicted.split).double()
    return all_aleatoric(torch.from_numpy(predicted.quantiles))
