"""Prophet: trend, seasons, holidays and regressors by curve fitting (Taylor and Letham, 2018), a model a series.

The model is fitted anew at every ``REFIT_EVERY``-th test cutoff on the history before it and extrapolated from there at
the cutoffs between. Seasons are multiplicative where the history is positive and additive otherwise; the remaining
options are Prophet's own defaults. Dated data has Prophet's seasons of the year, week and day as the data's length and
step allow; whole-number time has one of ``features.season_length`` steps. Holidays carry the day before and after, and
known-future covariates are regressors. Quantiles are those of ``SAMPLES`` simulated paths of trend and noise.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from tasks.baselines.statistical import BaselineForecast, fill_gaps, require_history, seasonal_naive_moments

if TYPE_CHECKING:
    from tasks.prepare import Prepared

REFIT_EVERY = 2  # one fit of four years of days takes 0.3 s, one forecast 0.06 s
SAMPLES = 1000
FITS_WORTH_A_PROCESS = 20
FOURIER_ORDER = 10  # of the one season of whole-number time, at most
QUIET = ("cmdstanpy", "prophet", "prophet.plot", "prophet.models")


@dataclass(frozen=True)
class SeriesJob:
    """One series to forecast, in plain arrays for a process of its own.

    ``frame`` has columns ``ds``, ``y`` (NaN where unknown) and the regressors, a row a step, future steps included.
    ``season`` is 0 where Prophet chooses the seasons by the dates.
    """

    frame: pd.DataFrame
    cutoffs: NDArray[np.int64]
    horizon: int
    season_length: int
    season: int
    max_history: int
    levels: NDArray[np.float64]
    holidays: pd.DataFrame | None
    seed: int


def forecast_prophet(
    prepared: Prepared,
    y_by_series: Sequence[NDArray[Any]],
    cutoff_indices: Sequence[NDArray[Any]],
    levels: NDArray[Any],
    max_history: int,
    *,
    n_jobs: int | None = None,
    series_names: Sequence[str],
) -> BaselineForecast:
    """Forecast every (series, cutoff) window.

    Parameters
    ----------
    prepared
        Gives times, known-future covariates, holidays, horizon and season.
    y_by_series, cutoff_indices
        One ``(T_i,)`` array and one integer array a series: cutoff ``c`` sees ``y[:c]``.
    levels
        ``(Q,)`` quantile levels in (0, 1).
    max_history
        Observations before a fit that it may use.
    n_jobs
        Processes; by default as many as the machine has cores, one where the work is small.
    series_names
        ``unique_id`` of each series, for the notes.

    Returns
    -------
    BaselineForecast
        Quantiles ``(W, H, Q)`` float32, windows series by series, and a note where seasonal naive stood in.

    Raises
    ------
    UserError
        If the package is not installed or a cutoff has no observation before it.
    """
    for label, y, cutoffs in zip(series_names, y_by_series, cutoff_indices, strict=True):
        require_history(label, y, cutoffs)
    schema, dated = prepared.panel.schema, np.issubdtype(prepared.times.dtype, np.datetime64)
    jobs = [
        SeriesJob(
            frame=_frame(prepared, index, np.asarray(y), dated),
            cutoffs=np.asarray(cutoffs, dtype=np.int64),
            horizon=schema.horizon,
            season_length=schema.season_length,
            season=0 if dated else schema.season_length,
            max_history=max_history,
            levels=np.asarray(levels, dtype=np.float64),
            holidays=holiday_table(prepared.times, prepared.encoding.holidays) if dated else None,
            seed=index,
        )
        for index, (y, cutoffs) in enumerate(zip(y_by_series, cutoff_indices, strict=True))
    ]
    fits = sum(-(-len(job.cutoffs) // REFIT_EVERY) for job in jobs)
    if n_jobs is None:
        n_jobs = (os.cpu_count() or 1) if fits > FITS_WORTH_A_PROCESS else 1
    if min(n_jobs, len(jobs)) > 1:
        with ProcessPoolExecutor(min(n_jobs, len(jobs)), mp_context=get_context("spawn")) as pool:
            results = list(pool.map(forecast_series, jobs))
    else:
        results = [forecast_series(job) for job in jobs]
    notes = [
        f"Series {label}, {count} of {len(reasons)} cutoffs: seasonal naive in place of prophet ({reason})."
        for label, (_, reasons) in zip(series_names, results, strict=True)
        for reason, count in Counter(reason for reason in reasons if reason).items()
    ]
    return BaselineForecast(np.concatenate([quantiles for quantiles, _ in results]), notes)


def holiday_table(ds: NDArray[Any], region: str | None) -> pd.DataFrame | None:
    """Prophet's ``holidays`` for the span of ``ds``: names by day, each with the day before and after; None for none."""
    if region is None:
        return None
    import holidays

    country, _, subdivision = region.partition("-")
    years = range(pd.Timestamp(ds.min()).year, pd.Timestamp(ds.max()).year + 1)
    days = holidays.country_holidays(country, subdiv=subdivision or None, years=years, observed=True)
    rows = [(pd.Timestamp(day), name.replace(" (observed)", "")) for day, name in sorted(days.items())]
    table = pd.DataFrame(rows, columns=["ds", "holiday"])
    return table.assign(lower_window=-1, upper_window=1) if len(table) else None


def _frame(prepared: Prepared, index: int, y: NDArray[Any], dated: bool) -> pd.DataFrame:
    """All rows of one series, its future included; whole-number time is told to Prophet as days."""
    panel = prepared.panel
    start, stop = int(panel.offsets[index]), int(panel.offsets[index + 1])
    if dated:
        ds = pd.DatetimeIndex(prepared.time(torch.tensor(index), torch.arange(stop - start)))
    else:
        ds = pd.date_range("2000-01-01", periods=stop - start, freq="D")
    target = np.full(stop - start, np.nan)
    target[: len(y)] = y
    known = panel.rows[start:stop, 1 : 1 + len(prepared.encoding.known_future)].numpy().astype(np.float64)
    return pd.DataFrame({"ds": ds, "y": target} | {f"known_{column}": known[:, column] for column in range(known.shape[1])})


def forecast_series(job: SeriesJob) -> tuple[NDArray[np.float32], list[str]]:
    """Quantiles ``(W, H, Q)`` of one series and, a cutoff each, why Prophet could not forecast it, empty as a rule."""
    found: dict[int, tuple[NDArray[Any], str]] = {}
    model: Any = None
    reason = ""
    with _quiet_and_seeded(job.seed):
        for position, cutoff in enumerate(np.unique(job.cutoffs).tolist()):
            history = job.frame.iloc[max(0, cutoff - job.max_history) : cutoff]
            if model is None or position % REFIT_EVERY == 0:
                model, reason = _fit(job, history)
            quantiles = None
            if model is not None:
                future = job.frame.iloc[cutoff : cutoff + job.horizon].drop(columns="y")
                paths = model.predictive_samples(future)["yhat"]
                quantiles = np.quantile(paths, job.levels, axis=1).T
                if not np.isfinite(quantiles).all():
                    quantiles, reason = None, "its forecast is not finite"
            if quantiles is None:
                past = fill_gaps(history["y"].to_numpy(), job.season_length)
                mean, sigma, _ = seasonal_naive_moments(past, job.horizon, job.season_length)
                found[cutoff] = mean[:, None] + sigma[:, None] * norm.ppf(job.levels), reason
            else:
                found[cutoff] = quantiles, ""
    windows = [found[cutoff] for cutoff in job.cutoffs.tolist()]
    shape = (len(windows), job.horizon, len(job.levels))
    return np.array([quantiles for quantiles, _ in windows], dtype=np.float32).reshape(shape), [why for _, why in windows]


def _fit(job: SeriesJob, history: pd.DataFrame) -> tuple[Any, str]:
    """A fitted Prophet, or None and why there is none."""
    from prophet import Prophet

    known = history["y"].notna().sum()
    if known < 2 * job.season_length or known < 2:
        return None, f"{known} observations are less than two seasons of {job.season_length}"
    options: dict[str, Any] = {"seasonality_mode": "multiplicative" if history["y"].min() > 0 else "additive"}
    if job.season:
        options |= dict.fromkeys(("yearly_seasonality", "weekly_seasonality", "daily_seasonality"), False)
    try:
        model = Prophet(holidays=job.holidays, uncertainty_samples=SAMPLES, **options)
        if job.season > 1:
            model.add_seasonality("season", period=job.season, fourier_order=min(FOURIER_ORDER, job.season // 2))
        for name in history.columns[2:]:
            model.add_regressor(name)
        model.fit(history)
    except (RuntimeError, ValueError) as error:  # Stan's optimiser and Prophet's own checks
        return None, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return model, ""


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """Silence the packages' progress lines, and seed the global generator from which Prophet draws; both put back after."""
    loggers = [logging.getLogger(name) for name in QUIET]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True  # a level would not do: cmdstanpy sets its own when it is imported, at the first fit
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
