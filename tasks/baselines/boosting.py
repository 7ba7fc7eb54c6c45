"""Gradient boosting across series: one direct multi-step model on lags, calendar, holidays and known-future covariates.

A row is one (window, step). Its target is ``(y - base) / scale``, where ``base`` is the mean of the last four values of
the same phase of the season before the cutoff and ``scale`` the standard deviation of the window, so that trees, which
cannot extrapolate, learn what departs from the season in units that every series shares.

Two ensembles of histogram trees (scikit-learn, after Ke et al., 2017) make a location-scale model
``y = base + scale (m(x) + s(x) z)``: ``m`` by squared error, ``s`` by gamma deviance on ``m``'s absolute training
residuals. Both learn from the training fold; the early-stopping fold chooses their number of trees and gives the
quantiles of ``z`` at each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.panel import SCALE_FLOOR, Panel, Windows
from tasks.baselines.statistical import BaselineForecast
from tasks.errors import UserError
from tasks.prepare import Prepared

ROW_BUDGET = 250_000  # training rows; on the Chicago panel three times as many take three times as long for 0.03 points of WAPE
PHASES = 4  # values of the same phase that make the base
MAX_CATEGORIES = 255  # scikit-learn's limit; a category of more values is read as a number
RESIDUAL_SPREAD_FLOOR = 1e-3  # of the window's scale
ENOUGH_RESIDUALS = 200  # at a step, for quantiles of its own; all steps share theirs below that
FEW_RESIDUALS = 100  # below which the outer quantiles are the extremes and a note says so
CHUNK = 4096  # windows forecast at a time
SETTINGS: dict[str, Any] = {"max_leaf_nodes": 31, "min_samples_leaf": 40, "n_iter_no_change": 20, "random_state": 0}
SEED = 1

Array = NDArray[np.float32]
Models = tuple[Any, Any]


def forecast_boosting(prepared: Prepared, levels: NDArray[Any], row_budget: int = ROW_BUDGET) -> BaselineForecast:
    """Train on the training fold and forecast the test fold.

    Parameters
    ----------
    prepared
        The panel and its folds.
    levels
        ``(Q,)`` quantile levels in (0, 1).
    row_budget
        (window, step) rows to train on, drawn by window without replacement where the fold holds more.

    Returns
    -------
    BaselineForecast
        Quantiles ``(W, H, Q)`` float32 in the order of the test fold's windows, and notes.

    Raises
    ------
    UserError
        If a fold to learn from holds no window.
    """
    panel, horizon = prepared.panel, prepared.panel.schema.horizon
    train = _drawn(prepared.fold("train", "fit baselines"), max(1, row_budget // horizon))
    check = _drawn(prepared.fold("early_stopping", "fit baseline quantiles"), max(1, row_budget // (2 * horizon)))
    for fold, windows in (("train", train), ("early_stopping", check)):
        if not len(windows):
            raise UserError(
                f"The {fold} fold holds no window, and gradient_boosting in baselines.models of params.yaml needs one: "
                f"give longer series, shorter folds, or take it off the list."
            )
    models = _fit(panel, train, check)
    z, notes = _residual_quantiles(models, panel, check, levels)
    test = prepared.fold("test", "evaluate")
    quantiles = np.empty((len(test), horizon, len(levels)), dtype=np.float32)
    for start in range(0, len(test), CHUNK):
        part = slice(start, start + CHUNK)
        centre, spread, base, scale = _predict(models, panel, test[part])
        unit = centre[..., None] + spread[..., None] * z
        quantiles[part] = base[..., None] + scale[:, None, None] * unit
    return BaselineForecast(quantiles, notes)


def window_features(panel: Panel, windows: Windows) -> tuple[Array, Array, Array]:
    """What is known of each step of each window at its cutoff.

    Parameters
    ----------
    panel, windows
        ``n`` windows with horizon ``H``.

    Returns
    -------
    features
        ``(n, H, F)`` float32, NaN where the series had not begun; columns as ``feature_names`` has them.
    base
        ``(n, H)`` mean of the last values of the same phase of the season, in the target's units.
    scale
        ``(n,)`` standard deviation of the window's history, floored as ``Panel.gather`` floors it.
    """
    schema, horizon, season = panel.schema, panel.schema.horizon, panel.schema.season_length
    rows, series, cutoff = panel.rows.numpy(), windows.series.numpy(), windows.cutoff.numpy()
    target, offset = rows[:, 0], panel.offsets.numpy()[series]

    def past(step: NDArray[np.int64]) -> Array:
        """Target at steps ``(n, ...)`` of each window's own series; NaN before its first."""
        start = offset.reshape(-1, *[1] * (step.ndim - 1))
        return np.where(step >= 0, target[start + np.maximum(step, 0)], np.float32(np.nan))

    history = past(cutoff[:, None] - np.arange(schema.context, 0, -1))
    centre = _mean(history, 1)
    scale = np.sqrt(_mean((history - centre[:, None]) ** 2, 1))
    scale = np.maximum(np.maximum(scale, SCALE_FLOOR * _mean(np.abs(history), 1)), 1e-6)

    ahead = np.arange(horizon)
    step = cutoff[:, None] + ahead
    phase = season * (ahead // season + 1)  # shortest whole number of seasons that reaches behind the cutoff
    same = [phase + number * season for number in range(PHASES)]
    seasonal = np.stack([past(step - lag) for lag in same], axis=-1)
    base = _mean(seasonal, -1)
    last = past(cutoff - 1)
    base = np.where(np.isnan(base), np.where(np.isnan(last), centre, last)[:, None], base)

    week, before = _mean(history[:, -season:], 1), _mean(history[:, -2 * season : -season], 1)
    row = offset[:, None] + step
    parts = [
        np.broadcast_to(ahead + 1.0, step.shape)[..., None],
        (seasonal - base[..., None]) / scale[:, None, None],
        _each_step(np.stack([(last - centre) / scale, (week - centre) / scale, (before - centre) / scale], 1), horizon),
        _each_step(np.stack([centre / scale, (history[:, -1] - past(cutoff - 1 - season)) / scale], 1), horizon),
        ((base - centre[:, None]) / scale[:, None])[..., None],
        *(_lag(past, step, lag, same, base, scale) for lag in schema.lags),
        rows[row][..., 1 : 1 + len(schema.known)],
        panel.codes.numpy()[row],
        *(panel.codes.numpy()[np.maximum(row - lag, offset[:, None])][..., _events(panel)] > 0 for lag in same[:2]),
        _each_step(panel.static.numpy()[series], horizon),
    ]
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=-1), base, scale


def feature_names(panel: Panel) -> list[str]:
    """Names of the columns of ``window_features``."""
    schema = panel.schema
    events = [schema.categories[index][0] for index in _events(panel)]
    return [
        "step",
        *(f"season_{number + 1}_back" for number in range(PHASES)),
        *("last", "last_season", "season_before", "level", "seasonal_change", "base"),
        *(f"{kind}_{lag}" for lag in schema.lags for kind in ("lag", "lag_less_its_base")),
        *schema.known,
        *(name for name, _ in schema.categories),
        *(f"{name}_{number}_back" for number in (1, 2) for name in events),
        *(name for name, _ in schema.static),
    ]


def _events(panel: Panel) -> list[int]:
    """Positions of the categories whose code 0 means "nothing special": they explain an odd value of a past season."""
    return [index for index, (name, _) in enumerate(panel.schema.categories) if name.startswith("holiday")]


def _lag(past: Any, step: NDArray[np.int64], lag: int, same: list[NDArray[np.int64]], base: Array, scale: Array) -> Array:
    """Target ``lag`` steps earlier against ``base`` and against what was its own base then, ``(n, H, 2)``."""
    value = past(step - lag)
    own = _mean(np.stack([past(step - lag - back) for back in same], axis=-1), -1)
    return np.asarray(np.stack([value - base, value - own], axis=-1) / scale[:, None, None], dtype=np.float32)


def _each_step(values: NDArray[Any], horizon: int) -> NDArray[Any]:
    """``(n, F)`` repeated over the horizon, ``(n, H, F)``."""
    return np.broadcast_to(values[:, None], (len(values), horizon, values.shape[1]))


def _mean(values: Array, axis: int) -> Array:
    """Mean of what is not NaN; NaN where nothing is."""
    seen = ~np.isnan(values)
    count = seen.sum(axis)
    total = np.where(seen, values, 0).sum(axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _drawn(windows: Windows, count: int) -> Windows:
    """At most ``count`` of the windows, in their order."""
    if len(windows) <= count:
        return windows
    chosen = np.random.default_rng(SEED).choice(len(windows), count, replace=False)
    return windows[torch.from_numpy(np.sort(chosen))]


def _table(panel: Panel, windows: Windows) -> tuple[Array, Array]:
    """Rows ``(n H, F)`` and scaled targets ``(n H,)``; steps without a target are left out."""
    features, base, scale = window_features(panel, windows)
    target = ((panel.targets(windows).numpy() - base) / scale[:, None]).ravel()
    seen = np.isfinite(target)
    return features.reshape(-1, features.shape[-1])[seen], target[seen]


def _fit(panel: Panel, train: Windows, check: Windows) -> Models:
    """Location and spread models on ``train``; ``check`` ends the growth of each."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, y = _table(panel, train)
    x_check, y_check = _table(panel, check)
    counts = dict((*panel.schema.categories, *panel.schema.static))
    category = [counts.get(name, MAX_CATEGORIES + 1) <= MAX_CATEGORIES for name in feature_names(panel)]
    common = {**SETTINGS, "categorical_features": category, "early_stopping": True}
    location = HistGradientBoostingRegressor(learning_rate=0.06, max_iter=400, **common)
    location.fit(x, y, X_val=x_check, y_val=y_check)
    size, size_check = (
        np.maximum(np.abs(values - location.predict(rows)), RESIDUAL_SPREAD_FLOOR)
        for rows, values in ((x, y), (x_check, y_check))
    )
    spread = HistGradientBoostingRegressor(loss="gamma", learning_rate=0.1, max_iter=100, **common)
    spread.fit(x, size, X_val=x_check, y_val=size_check)
    return location, spread


def _predict(models: Models, panel: Panel, windows: Windows) -> tuple[Array, Array, Array, Array]:
    """``m(x)`` and ``s(x)`` ``(n, H)`` in units of the scale, with base ``(n, H)`` and scale ``(n,)``."""
    features, base, scale = window_features(panel, windows)
    rows = features.reshape(-1, features.shape[-1])
    centre, spread = (model.predict(rows).reshape(base.shape) for model in models)
    return centre, np.maximum(spread, RESIDUAL_SPREAD_FLOOR), base, scale


def _residual_quantiles(models: Models, panel: Panel, windows: Windows, levels: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Quantiles ``(H, Q)`` of the standardised residuals of the early-stopping fold, and a note where they are few."""
    centre, spread, base, scale = _predict(models, panel, windows)
    z = ((panel.targets(windows).numpy() - base) / scale[:, None] - centre) / spread
    z = z.astype(np.float64)
    seen = np.isfinite(z)
    notes = []
    if seen.sum() < FEW_RESIDUALS:
        notes.append(
            f"Quantiles come from {int(seen.sum())} residuals of the early-stopping fold, so the outer ones are rough."
        )
    if seen.sum(0).min() < ENOUGH_RESIDUALS:
        return np.broadcast_to(np.quantile(z[seen], levels), (z.shape[1], len(levels))), notes
    return np.stack([np.quantile(z[seen[:, step], step], levels) for step in range(z.shape[1])]), notes
