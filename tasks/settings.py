"""What params.yaml leaves to the data: season, context, lags and fold lengths, derived from frequency and length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.params import Params

_DAY = 86_400
_LONGEST_SEASON = 288  # a day of five-minute steps; the context holds two seasons
_STEPS_A_YEAR = {"W": 52, "SMS": 24, "SME": 24} | dict.fromkeys(("MS", "ME", "BMS", "BME"), 12)
_STEPS_A_YEAR |= dict.fromkeys(("QS", "QE", "BQS", "BQE"), 4)
FOLDS = ("early_stopping", "temperature", "ood", "conformal", "test")
"""The folds after training, in the order of time."""


@dataclass(frozen=True)
class Cycle:
    """The natural lengths of a frequency, in steps.

    season : the shortest cycle, 1 where there is none.
    long_lag : a longer cycle that keeps the phase of the season (the year for days, the week for hours), or None.
    fold : how long a fold is wanted (a year of days, four weeks of hours), or None.
    """

    season: int
    long_lag: int | None
    fold: int | None


@dataclass(frozen=True)
class Settings:
    """The lengths a run works with, all in steps; ``calendar`` says whether calendar features are made."""

    horizon: int
    season_length: int
    context: int
    lags: tuple[int, ...]
    calendar: bool
    early_stopping: int
    temperature: int
    ood: int
    conformal: int
    test: int
    cutoff_every: int
    gap: int

    @property
    def reserved(self) -> int:
        """Steps at the end of the panel that training never sees: the five folds and the gaps before them."""
        folds: list[int] = [getattr(self, fold) for fold in FOLDS]
        return sum(folds) + len(folds) * self.gap

    @property
    def needed(self) -> int:
        """The least length of the longest series: one training window and everything reserved."""
        return self.context + self.horizon + self.reserved


def cycle_of(frequency: str | int) -> Cycle:
    """Return the natural lengths of a pandas offset alias, or of integer time (1)."""
    if isinstance(frequency, int):
        return Cycle(1, None, None)
    import pandas as pd

    offset = pd.tseries.frequencies.to_offset(frequency)
    name, n = offset.name.split("-")[0], offset.n
    if isinstance(offset, pd.offsets.Tick) and offset.nanos % (_DAY * 10**9) == 0:
        name, n = "D", offset.nanos // (_DAY * 10**9)
    if name == "D" and n % 7 == 0:
        name, n = "W", n // 7
    if name in _STEPS_A_YEAR:
        year = _whole(_STEPS_A_YEAR[name], n)
        return Cycle(year, None, year if year > 1 else None)
    if name in ("D", "B"):
        week, year = (7, 364 // n) if name == "D" else (5, 260 // n)
        season = _whole(week, n)
        return Cycle(season, year if season > 1 else None, year or None)
    if not isinstance(offset, pd.offsets.Tick):
        return Cycle(1, None, None)
    day, hour, minute = (_whole(seconds, offset.nanos / 1e9) for seconds in (_DAY, 3600, 60))
    if 1 < day <= _LONGEST_SEASON:
        return Cycle(day, 7 * day, 28 * day)
    season = next((steps for steps in (hour, minute) if 1 < steps <= _LONGEST_SEASON), 1)
    return Cycle(season, day if day > season > 1 else None, day if day > 1 else None)


def derive_settings(params: Params, lengths: Sequence[int]) -> Settings:
    """Fill every null of params.yaml that depends on the data.

    Folds aim at a year of days (or what corresponds, see ``cycle_of``), capped at 7 % of the typical length, in whole
    horizons, and never under two horizons, or one where two would leave training less than half of the data. A gap of
    horizon - 1 steps before each keeps neighbours apart; where folds and gaps would take more than a third of the
    typical length, there is none: no target is in two folds either way, and training needs its recent steps more.

    Parameters
    ----------
    params : the validated params.yaml.
    lengths : observed steps of each series; their median is the typical length.

    Raises
    ------
    UserError
        When even the longest series cannot hold one training window and the folds.
    """
    if not lengths:
        raise UserError("The panel holds no series; it needs at least one.")
    horizon, cycle = params.data.horizon, cycle_of(params.data.frequency)
    season = params.features.season_length or cycle.season
    typical = int(statistics.median(lengths))
    features, dated = params.features, isinstance(params.data.frequency, str)
    start = Settings(
        horizon=horizon,
        season_length=season,
        context=0,
        lags=_lags(horizon, season, cycle, typical) if features.lags is None else features.lags,
        calendar=dated if features.calendar is None else features.calendar,
        cutoff_every=params.folds.cutoff_every or horizon,
        **_folds(params, cycle, typical),
    )
    settings = replace(start, context=features.context or _context(start, lengths, typical))
    if (longest := max(lengths)) < settings.needed:
        raise UserError(
            f"The longest series has length {longest}; features.context {settings.context}, data.horizon {horizon} "
            f"and the folds with their gaps need {settings.needed}: give longer series, or a shorter horizon, context "
            "or folds in params.yaml."
        )
    return settings


def _whole(cycle: float, step: float) -> int:
    """Return how many steps make the cycle, or 1 where no whole number above 1 does."""
    count = cycle / step
    return int(count) if count >= 2 and count == int(count) else 1


def _lags(horizon: int, season: int, cycle: Cycle, typical: int) -> tuple[int, ...]:
    """Return the first three multiples of the season that reach behind the horizon, and the long lag if it fits.

    A lag shorter than the horizon would need values that are not yet known at the last steps of the forecast.
    """
    first = math.ceil(horizon / season) * season
    lags = {first} | {lag for lag in (first + season, first + 2 * season) if lag + horizon <= typical // 2}
    if cycle.long_lag and cycle.long_lag >= horizon and typical >= 4 * cycle.long_lag:
        lags.add(cycle.long_lag)
    return tuple(sorted(lags))


def _folds(params: Params, cycle: Cycle, typical: int) -> dict[str, Any]:
    """Return the gap and the fold lengths by name: what params.yaml says, else what the typical length affords."""
    horizon, gap = params.data.horizon, params.folds.gap
    given = {fold: getattr(params.folds, fold) for fold in FOLDS}
    wanted = min(cycle.fold or typical, int(0.07 * typical))
    lengths: dict[str, Any] = {}
    apart = horizon - 1 if gap is None else gap
    for least in (2 * horizon, horizon):
        full = max(wanted // horizon * horizon, least)
        half = max(wanted // 2 // horizon * horizon, least)
        derived = {"early_stopping": half, "temperature": half, "ood": full, "conformal": full, "test": full}
        lengths = {fold: given[fold] or derived[fold] for fold in FOLDS}
        if sum(lengths.values()) + len(FOLDS) * apart <= typical / 2:
            break
    if gap is None and sum(lengths.values()) + len(FOLDS) * apart > typical / 3:
        apart = 0
    return lengths | {"gap": apart}


def _context(settings: Settings, lengths: Sequence[int], typical: int) -> int:
    """Return four horizons in whole seasons, at least two seasons, as far as the shorter series can hold it.

    Series under half of the typical length do not hold the others back: they are read with a shorter history.
    """
    season, horizon = settings.season_length, settings.horizon
    wanted = max(2 * season, math.ceil(4 * horizon / season) * season)
    shortest = min(length for length in lengths if 2 * length >= typical)
    room = min(shortest - horizon, typical - settings.reserved - horizon)
    return max(min(wanted, room // season * season), min(2 * season, wanted), 1)
