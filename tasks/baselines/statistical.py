"""Statistical baselines, a series at a time, by the ``statsforecast`` package and its formulas.

Each is Normal at each step: quantile ``mean_h + z_q sigma_h``. Quantiles may be negative; a baseline knows
no lower bound.

``seasonal_naive``
    The value of the same season one cycle before; ``sigma_h = sigma sqrt(floor((h - 1) / m) + 1)`` with ``sigma`` the
    root mean square of the seasonal differences (Hyndman and Athanasopoulos, FPP3, sections 5.2 and 5.5).
``auto_ets``
    Exponential smoothing whose error, trend and season are chosen by AICc (Hyndman et al., 2008, chapter 2). The form
    and parameters are estimated at every ``refit_every``-th cutoff, and the states are filtered up to each cutoff in
    between, since one estimation takes 0.4 s for two years of days and one filtering 1 ms.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tasks.errors import UserError

STATISTICAL = ("seasonal_naive", "auto_ets")
PARALLEL_POINTS = 20_000  # estimated observations (fits x history) above which a second process pays for its start

Array = NDArray[np.float64]
Moments = tuple[Array, Array, str]


class BaselineForecast(NamedTuple):
    """Quantile forecasts and what had to be done differently from what was asked.

    Attributes
    ----------
    quantiles
        ``(W, H, Q)`` float32 in the units of the data: windows series by series, in the order of their cutoffs.
    notes
        One sentence per series and reason for which a simpler method stood in, empty as a rule.
    """

    quantiles: NDArray[np.float32]
    notes: list[str]


def forecast_baseline(
    name: str,
    y_by_series: Sequence[NDArray[Any]],
    cutoff_indices: Sequence[NDArray[Any]],
    horizon: int,
    season_length: int,
    levels: NDArray[Any],
    max_history: int = 730,
    *,
    refit_every: int = 7,
    n_jobs: int | None = None,
    series_names: Sequence[str] | None = None,
) -> BaselineForecast:
    """Forecast every (series, cutoff) window with one baseline.

    Parameters
    ----------
    name
        ``seasonal_naive`` or ``auto_ets``.
    y_by_series
        One ``(T_i,)`` array a series; a missing value is replaced by the one a season before it.
    cutoff_indices
        One integer array a series: cutoff ``c`` sees ``y[:c]`` and forecasts steps ``c .. c + horizon - 1``.
    horizon, season_length
        In steps.
    levels
        ``(Q,)`` quantile levels in (0, 1).
    max_history
        Observations before an estimation that it may use.
    refit_every
        ``auto_ets`` alone: cutoffs from one estimation to the next; 1 estimates at each.
    n_jobs
        Processes for ``auto_ets``; by default as many as the machine has cores, one where the work is small.
    series_names
        ``unique_id`` of each series, for the notes; its position otherwise.

    Returns
    -------
    BaselineForecast
        Quantiles ``(W, H, Q)`` float32 and notes.

    Raises
    ------
    UserError
        If a cutoff has no observation before it.
    ValueError
        If the name is unknown or the arguments do not fit together.
    """
    if name not in STATISTICAL:
        raise ValueError(f"statistical baselines are {', '.join(STATISTICAL)}, not {name!r}")
    levels = np.asarray(levels, dtype=np.float64)
    if levels.ndim != 1 or not np.all((levels > 0) & (levels < 1)):
        raise ValueError(f"quantile levels lie in (0, 1), got {levels}")
    if min(horizon, season_length, max_history, refit_every) < 1:
        raise ValueError("horizon, season_length, max_history and refit_every are at least 1")
    names = [str(i) for i in range(len(y_by_series))] if series_names is None else [str(n) for n in series_names]
    if not len(y_by_series) == len(cutoff_indices) == len(names):
        raise ValueError(f"{len(y_by_series)} series, {len(cutoff_indices)} cutoff arrays and {len(names)} names")

    jobs: list[tuple[Any, ...]] = []
    for label, y, cutoffs in zip(names, y_by_series, cutoff_indices, strict=True):
        cutoffs = np.asarray(cutoffs, dtype=np.int64)
        require_history(label, y, cutoffs)
        jobs.append((name, fill_gaps(y, season_length), cutoffs, horizon, season_length, max_history, refit_every))

    z = norm.ppf(levels)
    results = _run(jobs, name, max_history, refit_every, n_jobs)
    windows = [mean[:, None] + sigma[:, None] * z for moments in results for mean, sigma, _ in moments]
    quantiles = np.asarray(windows, dtype=np.float32).reshape(-1, horizon, levels.size)
    notes = []
    for label, moments in zip(names, results, strict=True):
        for reason, count in Counter(reason for _, _, reason in moments if reason).items():
            notes.append(f"Series {label}, {count} of {len(moments)} cutoffs: {reason}.")
    return BaselineForecast(quantiles, notes)


def require_history(label: str, y: NDArray[Any], cutoffs: NDArray[Any]) -> None:
    """Raise UserError where a series has no observation before its first cutoff."""
    if len(cutoffs) and (min(cutoffs) < 1 or not np.isfinite(y[: min(cutoffs)]).any()):
        raise UserError(
            f"Column y of series {label} has no value before its cutoff at row {min(cutoffs)}, "
            f"and a baseline needs at least one."
        )


def _run(jobs: list[tuple[Any, ...]], name: str, max_history: int, refit_every: int, n_jobs: int | None) -> list[list[Moments]]:
    """Forecast each series, in processes where estimation is the cost (statsforecast's ETS holds the GIL)."""
    points = sum(-(-len(job[2]) // refit_every) * min(max_history, len(job[1])) for job in jobs)
    if n_jobs is None:
        n_jobs = (os.cpu_count() or 1) if points > PARALLEL_POINTS else 1
    n_jobs = min(n_jobs, len(jobs))
    if name != "auto_ets" or n_jobs <= 1:
        return [_forecast_series(*job) for job in jobs]
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_forecast_series, *zip(*jobs, strict=True)))


def _forecast_series(
    name: str, y: Array, cutoffs: NDArray[np.int64], horizon: int, season_length: int, max_history: int, refit: int
) -> list[Moments]:
    """Return mean ``(H,)``, standard deviation ``(H,)`` and a reason, empty as a rule, at each cutoff of one series."""
    moments: dict[int, Moments] = {}
    model: Any = None
    start = 0
    for position, cutoff in enumerate(np.unique(cutoffs).tolist()):
        recent = y[max(0, cutoff - max_history) : cutoff]
        if name == "seasonal_naive" or recent.size < 2 * season_length:
            moments[cutoff] = seasonal_naive_moments(recent, horizon, season_length)
            continue
        found = None
        if model is not None and position % refit:
            found = _ets_moments(model, y[start:cutoff], horizon, season_length)
        if found is None:
            start = max(0, cutoff - max_history)
            model, problem = _fit_ets(recent, season_length)
            found = None if model is None else _ets_moments(model, None, horizon, season_length)
        if found is None:
            mean, sigma, reason = seasonal_naive_moments(recent, horizon, season_length)
            reason = reason or f"seasonal naive in place of auto_ets ({problem or 'its forecast is not finite'})"
            moments[cutoff] = mean, sigma, reason
        else:
            moments[cutoff] = *found, ""
    return [moments[cutoff] for cutoff in cutoffs.tolist()]


def seasonal_naive_moments(y: Array, horizon: int, season_length: int) -> Moments:
    """Mean and standard deviation as statsforecast's SeasonalNaive has them; season 1 below two seasons of history."""
    reason = ""
    if y.size < 2 * season_length:
        reason = f"naive of the last value ({y.size} observations are less than two seasons of {season_length})"
        season_length = 1
    steps = np.arange(horizon)
    mean = y[-season_length:][steps % season_length]
    differences = y[season_length:] - y[:-season_length]
    sigma = np.sqrt(np.mean(differences**2)) if differences.size else 0.0
    return mean, sigma * np.sqrt(steps // season_length + 1.0), reason


def _fit_ets(y: Array, season_length: int) -> tuple[Any, str]:
    """Return a fitted AutoETS, or None and why it could not be estimated."""
    from statsforecast.models import AutoETS

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return AutoETS(season_length=season_length).fit(y), ""
    except Exception as error:  # statsforecast raises bare Exception where no form fits
        return None, str(error) or type(error).__name__


def _ets_moments(model: Any, y: Array | None, horizon: int, season_length: int) -> tuple[Array, Array] | None:
    """Mean and standard deviation ``(H,)`` after the fitted history, or after ``y`` which begins where it began.

    statsforecast takes the number of whole seasons in its class 1 variances from the last step and uses it for all
    steps, which widens the early ones. A call that ends with each season gets every step's own number right.
    """
    mean, sigma = np.empty(horizon), np.empty(horizon)
    z = float(norm.ppf(0.9))
    for first in range(0, horizon, season_length):
        last = min(first + season_length, horizon)
        with np.errstate(all="ignore"):
            result = model.predict(last, level=[80]) if y is None else model.forward(y, last, level=[80])
        mean[first:last] = result["mean"][first:last]
        sigma[first:last] = (result["hi-80"][first:last] - result["mean"][first:last]) / z
    if not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
        return None
    return mean, sigma


def fill_gaps(y: NDArray[Any], season_length: int) -> Array:
    """Replace each missing value by the one a season before it, else by the last known; leading gaps by the first."""
    filled = np.array(y, dtype=np.float64)
    gaps = np.flatnonzero(~np.isfinite(filled))
    if gaps.size and gaps.size < filled.size:
        first = int(np.flatnonzero(np.isfinite(filled))[0])
        filled[:first] = filled[first]
        for gap in gaps[gaps > first].tolist():
            filled[gap] = filled[gap - season_length] if gap - season_length >= first else filled[gap - 1]
    return filled
