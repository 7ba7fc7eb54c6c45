"""One call for every baseline: from the prepared panel to quantile forecasts of the test fold."""

from __future__ import annotations

from typing import get_args

import numpy as np

from models.panel import Panel, Windows, places_by_series
from models.predictive import LEVELS
from tasks.baselines.additive import forecast_prophet
from tasks.baselines.statistical import BaselineForecast, forecast_baseline
from tasks.errors import UserError
from tasks.params import Baseline, Baselines
from tasks.prepare import Prepared

BASELINES: tuple[str, ...] = get_args(Baseline)


def forecast_fold(name: str, prepared: Prepared, settings: Baselines) -> BaselineForecast:
    """Forecast every window of the test fold with one baseline.

    They are fitted to each series' own history before the cutoff.

    Returns
    -------
    BaselineForecast
        Quantiles ``(W, H, len(LEVELS))`` float32 in the order of the fold's windows, and notes.

    Raises
    ------
    UserError
        If the name is unknown or a cutoff has no observation before it.
    """
    if name not in BASELINES:
        raise UserError(f"baselines.models in params.yaml names {name!r}; known are {', '.join(BASELINES)}.")
    levels = np.array(LEVELS)
    panel = prepared.panel
    series, cutoffs = histories(panel, prepared.fold("test", "evaluate"))
    labels = [str(label) for label in prepared.ids]
    if name == "prophet":
        return forecast_prophet(prepared, series, cutoffs, levels, settings.prophet_history, series_names=labels)
    return forecast_baseline(
        name,
        series,
        cutoffs,
        panel.schema.horizon,
        panel.schema.season_length,
        levels,
        settings.max_history,
        series_names=labels,
    )


def histories(panel: Panel, windows: Windows) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Observed target ``(T_i,)`` float32 and cutoffs ``(W_i,)`` int64 of each series."""
    target, offsets = panel.rows[:, 0].numpy(), panel.offsets.numpy()
    series = [target[start : start + n] for start, n in zip(offsets, panel.observed.numpy(), strict=False)]
    return series, [windows.cutoff[places].numpy() for places in places_by_series(windows.series, panel.n_series)]
