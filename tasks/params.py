"""params.yaml as one frozen tree of validated values; every mistake in it is told in one sentence."""

from __future__ import annotations

import datetime as dt
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from models.forecasters.config import (
    Count,
    DeepARConfig,
    GradientBoostingConfig,
    HybridConfig,
    Mamba2Config,
    MambaConfig,
    S4DConfig,
    TCNConfig,
    TFTConfig,
    TiDEConfig,
    WaveNetConfig,
)
from tasks.errors import UserError
from tasks.params_file import Block as _Block
from tasks.params_file import OrNull, read_yaml, told
from tasks.params_file import sentence as _sentence
from tasks.params_monitor import Monitor
from tasks.params_serving import Serving
from tasks.presets import SMALLEST_FIRST, PresetName, dropout_families, filled, why_no_dropout
from tasks.settings import FOLDS, Settings, derive_settings

__all__ = ["Params", "Settings", "derive_settings"]

Family = Literal["tft", "deepar", "tcn", "wavenet", "s4d", "mamba", "mamba2", "hybrid", "tide", "gradient_boosting"]
Baseline = Literal["seasonal_naive", "auto_ets", "prophet"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], Field(strict=False)]
ByPreset = OrNull()  # a null leaves the key to the preset, see tasks/presets.py
COLUMN_ROLES = ("known_future", "past_only", "static")


def _frequency(value: Any) -> str | int:
    import pandas as pd

    right = "a pandas offset alias such as D, h, 15min, W-MON, MS or QS, or 1 for whole-number time"
    if isinstance(value, int) and not isinstance(value, bool) and value == 1:
        return 1
    try:
        offset = pd.tseries.frequencies.to_offset(value) if isinstance(value, str) else None
    except ValueError:
        offset = None
    if offset is None or offset.n < 1:
        raise ValueError(right)
    return str(value)


def _until(value: Any) -> dt.date | int | None:
    if value is None or (isinstance(value, int | dt.date) and not isinstance(value, bool)):
        return value
    try:
        return dt.date.fromisoformat(value) if len(value) == 10 else dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("a date such as 2016-08-14, a whole number for whole-number time, or null") from None


class Data(_Block):
    """Where the panel comes from, what its columns mean, and how it is repaired."""

    source: Literal["chicago", "file"] = "chicago"
    path: Text | None = None
    id_column: Text = "unique_id"
    time_column: Text = "ds"
    target_column: Text = "y"
    frequency: Annotated[str | int, BeforeValidator(_frequency)] = "D"
    horizon: Count = 14
    known_future: Names = ()
    past_only: Names = ()
    static: Names = ()
    holidays: Text | None = None
    count: bool = False
    gaps: Literal["error", "interpolate", "zero", "forward"] = "error"
    until: Annotated[dt.datetime | dt.date | int | None, BeforeValidator(_until)] = None

    @property
    def name(self) -> str:
        """What the panel is called in titles: its source, or its file's name without the ending."""
        return self.source if self.path is None or self.source != "file" else PurePath(self.path).stem

    @property
    def covariates(self) -> tuple[str, ...]:
        """All covariate columns: known_future, past_only, static."""
        return self.known_future + self.past_only + self.static

    @field_validator("holidays")
    @classmethod
    def _known_holidays(cls, value: str | None) -> str | None:
        if value is None:
            return None
        import holidays

        country, _, subdivision = value.partition("-")
        known = holidays.list_supported_countries(include_aliases=True)
        if country not in known or (subdivision and subdivision not in known[country]):
            raise ValueError("null, or a country or country-subdivision that holidays knows, such as US or US-IL")
        return value

    @model_validator(mode="after")
    def _columns_have_one_role(self) -> Data:
        if self.source == "file" and self.path is None:
            raise _sentence("data.path is null; with data.source file it must name a CSV or Parquet file")
        seen: dict[str, str] = {}
        for role in ("id_column", "time_column", "target_column"):
            column = getattr(self, role)
            if column in seen:
                raise _sentence(f"data.{role} is {column!r}, already data.{seen[column]}; each needs its own column")
            seen[column] = role
        reserved = dict(unique_id="id_column", ds="time_column", y="target_column")
        for role in COLUMN_ROLES:
            for column in getattr(self, role):
                if column in seen:
                    raise _sentence(f"data.{role} names {column!r}, already data.{seen[column]}; a column has one role")
                if column in reserved:
                    raise _sentence(
                        f"data.{role} names {column!r}, which is the panel's name for data.{reserved[column]}; "
                        "rename the column in the data"
                    )
                seen[column] = role
        if self.until is not None and (type(self.until) is int) != (self.frequency == 1):
            right = "a whole number" if self.frequency == 1 else "a date"
            raise _sentence(f"data.until is {self.until}; with data.frequency {self.frequency} it must be {right}")
        if self.holidays is not None and self.frequency == 1:
            raise _sentence(f"data.holidays is {self.holidays!r}; with data.frequency 1 (no dates) it must be null")
        return self


class Features(_Block):
    """What the forecasters see; null leaves a value to the data."""

    context: Count | None = None
    season_length: Count | None = None
    lags: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    calendar: bool | None = None


class Folds(_Block):
    """Lengths of the folds after training, in steps; null leaves a length to the data, and all windows to each fold."""

    early_stopping: Count | None = None
    temperature: Count | None = None
    ood: Count | None = None
    conformal: Count | None = None
    test: Count | None = None
    cutoff_every: Count | None = None
    gap: Annotated[int, Field(ge=0)] | None = None
    most_windows: Annotated[int, Field(ge=1000)] | None = 100_000


class Forecasters(_Block):
    """One block a family."""

    tft: TFTConfig = TFTConfig()
    deepar: DeepARConfig = DeepARConfig()
    tcn: TCNConfig = TCNConfig()
    wavenet: WaveNetConfig = WaveNetConfig()
    s4d: S4DConfig = S4DConfig()
    mamba: MambaConfig = MambaConfig()
    mamba2: Mamba2Config = Mamba2Config()
    hybrid: HybridConfig = HybridConfig()
    tide: TiDEConfig = TiDEConfig()
    gradient_boosting: GradientBoostingConfig = GradientBoostingConfig()


class Train(_Block):
    """How every member is trained."""

    members: Annotated[Count, ByPreset] = 2
    seed: Annotated[int, Field(ge=0)] = 1
    batches_per_epoch: Count = 50
    patience: Count = 3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["float32", "bf16"] = "float32"
    accumulate: Count = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count = 1
    strategy: Text = "auto"
    workers: Count | None = None
    id_dropout: Fraction = 0.05


class Ensemble(_Block):
    """How members become one forecast."""

    families: Annotated[Literal["all", "smallest"], ByPreset] = "all"
    dropout_passes: Annotated[int, Field(ge=0), ByPreset] = 0
    pooling: Annotated[Literal["quantile_average", "linear"], ByPreset] = "quantile_average"
    weighting: Literal["equal", "validation"] = "validation"


class Calibration(_Block):
    """Repairs of the pooled forecast, the alarm for strange input, the share of forecasts withheld and the risk promised."""

    temperature: Annotated[Literal["per_step", "global", "none"], ByPreset] = "global"
    score: Annotated[Literal["tail", "cqr", "scaled_residual"], ByPreset] = "tail"
    groups: Annotated[Literal["none", "series"], ByPreset] = "none"
    sets: Annotated[Literal["none", "ordinal"], ByPreset] = "none"
    energy: Annotated[bool, ByPreset] = False
    ood_alpha: Annotated[float, Field(gt=0.0, lt=0.5), ByPreset] = 0.05
    abstain_fraction: Annotated[Fraction, ByPreset] = 0.05
    selective_risk: Annotated[float, Field(gt=0.0)] | None = None
    selective_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class Baselines(_Block):
    """Statistical forecasts to compare with."""

    models: Annotated[tuple[Baseline, ...], Field(strict=False)] = ("seasonal_naive", "auto_ets", "prophet")
    max_history: Count = 730
    prophet_history: Count = 1460


class Projection(_Block):
    """The maps of embeddings (PCA, t-SNE and UMAP)."""

    points: Annotated[int, Field(ge=10, le=50_000)] = 2000
    neighbors: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False, min_length=1, max_length=4)] = (15, 50)
    family: Family | None = None
    seed: Annotated[int, Field(ge=0)] = 1

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        """Read what older bundles hold: one neighbourhood size, and t-SNE's perplexity apart."""
        if isinstance(given, dict) and type(given.get("neighbors")) is int:
            kept = {key: value for key, value in given.items() if key != "perplexity"}
            return kept | {"neighbors": [given["neighbors"]]}
        return given


class Registry(_Block):
    """Names in MLflow."""

    name: Text = "weatherglass"
    experiment: Text = "weatherglass"


class Promotion(_Block):
    """What a challenger must show before `weatherglass retrain` makes it the champion."""

    confidence: Fraction = 0.9
    coverage_tolerance: Fraction = 0.03
    slice_tolerance: Annotated[float, Field(gt=0.0)] = 0.25
    least_days: Annotated[float, Field(ge=0.0)] = 0.0


class Services(_Block):
    """Servers to use in place of the embedded ones."""

    mlflow_uri: Text | None = None
    prefect_api_url: Text | None = None


class Params(_Block):
    """The whole of params.yaml, the preset's values filled in."""

    uncertainty: PresetName = "reliable"
    data: Data = Data()
    features: Features = Features()
    folds: Folds = Folds()
    families: Annotated[tuple[Family, ...], Field(strict=False, min_length=1)] = (
        "tft",
        "deepar",
        "tcn",
        "mamba",
        "tide",
        "gradient_boosting",
    )
    forecasters: Forecasters = Forecasters()
    train: Train = Train()
    ensemble: Ensemble = Ensemble()
    calibration: Calibration = Calibration()
    baselines: Baselines = Baselines()
    projection: Projection = Projection()
    registry: Registry = Registry()
    promotion: Promotion = Promotion()
    monitor: Monitor = Monitor()
    serving: Serving = Serving()
    services: Services = Services()
    runner: Literal["local", "dask", "ray"] = "local"
    runner_address: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_nulls(cls, tree: Any) -> Any:
        return filled(tree, cls.model_fields["families"].default) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _lengths_suit_the_horizon(self) -> Params:
        horizon = self.data.horizon
        for key, names in (("families", self.families), ("baselines.models", self.baselines.models)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise _sentence(f"{key} holds {twice!r} twice; name each once")
        if len(set(self.projection.neighbors)) < len(self.projection.neighbors):
            raise _sentence(f"projection.neighbors is {list(self.projection.neighbors)}; name each size once")
        for fold in FOLDS:
            length = getattr(self.folds, fold)
            if length is not None and length < horizon:
                raise _sentence(f"folds.{fold} is {length}; it must be null or at least data.horizon, {horizon}")
        if self.monitor.window is not None and self.monitor.window < horizon:
            raise _sentence(f"monitor.window is {self.monitor.window}; it must be null or at least data.horizon, {horizon}")
        for lag in self.features.lags or ():
            if lag < horizon:
                raise _sentence(
                    f"features.lags holds {lag}; each lag must be at least data.horizon, {horizon}, or the last steps "
                    "of a forecast would need values not yet known"
                )
        for family in self.families:
            if getattr(getattr(self.forecasters, family), "head", None) == "negative_binomial" and not self.data.count:
                raise _sentence(
                    f"forecasters.{family}.head is negative_binomial and data.count is false; that head forecasts counts, so "
                    "set data.count: true or choose another head"
                )
        if self.features.calendar and self.data.frequency == 1:
            raise _sentence("features.calendar is true; with data.frequency 1 (no dates) it must be null or false")
        return self

    @model_validator(mode="after")
    def _families_serve_the_preset(self) -> Params:
        """Refuse MC dropout that no family can serve; of ``families`` keep the smallest where one is to do."""
        able: tuple[str, ...] = self.families
        if self.ensemble.dropout_passes:
            able = dropout_families(self, self.families)
            if not able:
                why = " and ".join(why_no_dropout(self, family) for family in self.families)
                raise _sentence(
                    f"uncertainty is {self.uncertainty}, whose MC dropout (ensemble.dropout_passes "
                    f"{self.ensemble.dropout_passes}) no family can serve: {why}; add a family with dropout above 0, such as "
                    "tcn, or choose another preset"
                )
        if self.ensemble.families == "smallest":
            self.__dict__["families"] = (min(able, key=SMALLEST_FIRST.index),)
        return self

    @model_validator(mode="after")
    def _projection_has_its_family(self) -> Params:
        if self.projection.family is not None and self.projection.family not in self.families:
            raise _sentence(
                f"projection.family is {self.projection.family}, which is not among the families at work; it must be null "
                f"or one of {', '.join(self.families)}"
            )
        return self

    @classmethod
    def load(cls, path: Path | str = "params.yaml", root: Path | str = ".") -> Params:
        """Read and validate ``root / path``.

        Raises
        ------
        UserError
            When the file is missing, is not YAML, or holds an unknown key or a value out of range.
        """
        tree = read_yaml(Path(root) / path, str(path))
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(f"{path}: {told(error, cls)}") from None
