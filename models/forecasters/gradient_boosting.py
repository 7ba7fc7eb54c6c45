"""Gradient boosting across series: one direct multi-step model of trees on lags, seasons, calendar and covariates.

A row is one (window, step). Its target is ``(y - base) / scale``, where ``base`` is the mean of the last values of the
same phase of the season before the cutoff and ``scale`` that of the window, so that trees, which cannot extrapolate,
learn what departs from the season in units that every series shares. Two ensembles of trees make a location-scale
model ``y = base + scale (m(x) + s(x) z)`` with quantiles of ``z`` at each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.forecasters.base import Forecaster, Prediction, align_right, scaled_target, unscale
from models.forecasters.config import GradientBoostingConfig
from models.layers.trees import TreeEnsemble
from models.panel import Batch, Panel, PanelSchema, SequentialLoader, Windows
from models.predictive import LEVELS

__all__ = ["PHASES", "GradientBoosting", "boosting_rows", "feature_names", "fit_boosting"]

Array = NDArray[Any]

PHASES = 4
"""Values of the same phase that make the base."""
SPREAD_FLOOR = 1e-3
"""Least spread of a step, in units of the window's scale."""
CHUNK = 1024
"""Windows gathered at a time while fitting."""
ENOUGH_RESIDUALS = 200
"""At a step, for quantiles of its own; all steps share theirs below that."""
PATIENCE = 20
"""Trees that may bring nothing before growth ends."""


class GradientBoosting(Forecaster):
    """Trees for the location ``m`` and the spread ``s``, and ``z`` ``(H, Q)`` the quantiles of standardised residuals.

    It is fitted by `fit_boosting`, not by a gradient; untrained, it answers with the seasonal base. Features of a
    window are those of its first step.
    """

    z: Tensor

    def __init__(self, schema: PanelSchema) -> None:
        super().__init__()
        self.schema = schema
        self.location, self.spread = TreeEnsemble(), TreeEnsemble()
        self.register_buffer("z", torch.zeros(schema.horizon, len(LEVELS)))

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``m`` and ``s`` ``(B, H)`` in units of the scale, of rows ``(B, H, F)``."""
        flat = rows.flatten(0, 1)
        return self.location(flat).view(rows.shape[:2]), self.spread(flat).view(rows.shape[:2]).clamp(min=SPREAD_FLOOR)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Quantiles in the window's own scale ``(B, H, Q)`` and features ``(B, F)``."""
        rows, base = boosting_rows(batch, self.schema)
        location, spread = self.moments(rows)
        quantiles = (base + location)[..., None] + spread[..., None] * self.z
        return quantiles.to(self.z.dtype), rows[:, 0].nan_to_num()

    def loss(self, batch: Batch) -> Tensor:
        return self.quantile_loss(self(batch)[0], batch)

    def predict(self, batch: Batch) -> Prediction:
        quantiles, features = self(batch)
        return Prediction(unscale(quantiles, batch), features)

    def encode(self, batch: Batch) -> Tensor:
        return boosting_rows(batch, self.schema)[0][:, 0].nan_to_num()


def boosting_rows(batch: Batch, schema: PanelSchema) -> tuple[Tensor, Tensor]:
    """What is known of each step of each window at its cutoff, in the window's own scale.

    Returns
    -------
    rows
        ``(B, H, F)``, NaN where the series had not begun; columns as `feature_names` has them.
    base
        ``(B, H)`` mean of the last values of the same phase of the season.
    """
    lengths, context, season = batch["encoder_lengths"], schema.context, schema.season_length
    past, ahead = align_right(batch["encoder_cont"], lengths, context), batch["decoder_cont"]
    before = torch.arange(context, device=past.device)[None] < (context - lengths)[:, None]
    past = past.masked_fill(before[..., None], torch.nan)
    history, horizon, lags = past[..., 0], ahead.shape[1], len(schema.lags)

    step = torch.arange(horizon, device=past.device)
    back = _phases_back(step, season)
    earlier = context + step[:, None] - back  # columns of the history, (H, PHASES); below zero where it is too short
    seasonal = _columns(history, earlier)
    last = history[:, -1:]
    base = _mean(seasonal)
    base = torch.where(base.isnan(), last, base)
    loc, scale = batch["target_scale"].unbind(1)
    week, week_before = history[:, -season:].nanmean(1), history[:, max(context - 2 * season, 0) : context - season].nanmean(1)
    change = last[:, 0] - history[:, context - 1 - season] if context > season else torch.full_like(week, torch.nan)
    window = torch.stack([last[:, 0], week, week_before, loc / scale, change], dim=1)
    lagged = ahead[..., ahead.shape[-1] - lags :]
    own = (
        torch.stack([_mean(_columns(past[..., past.shape[-1] - lags + lag], earlier)) for lag in range(lags)], -1)
        if lags
        else lagged
    )
    codes, static = batch["decoder_cat"], len(schema.static)
    old_codes = align_right(batch["encoder_cat"], lengths, context)
    events = [static + index for index, (name, _) in enumerate(schema.categories) if name.startswith("holiday")]
    parts = [
        (step + 1.0).expand(len(base), -1)[..., None],
        seasonal - base[..., None],
        window[:, None].expand(-1, horizon, -1),
        base[..., None],
        lagged - base[..., None],
        lagged - own,
        ahead[..., 1 : 1 + len(schema.known)],
        codes,
        *(_columns(old_codes[..., event].to(base.dtype), earlier[:, :2]) > 0 for event in events),
    ]
    return torch.cat([part.to(base.dtype) for part in parts], dim=-1), base


def feature_names(schema: PanelSchema) -> tuple[str, ...]:
    """Names of the columns of `boosting_rows`."""
    events = [name for name, _ in schema.categories if name.startswith("holiday")]
    return (
        "step",
        *(f"season_{number + 1}_back" for number in range(PHASES)),
        *("last", "last_season", "season_before", "level", "seasonal_change", "base"),
        *schema.lag_names,
        *(f"{name}_less_its_base" for name in schema.lag_names),
        *schema.known,
        *(name for name, _ in schema.all_categories),
        *(f"{name}_{number}_back" for name in events for number in (1, 2)),
    )


def _phases_back(step: Tensor, season: int) -> Tensor:
    """Steps back to the last `PHASES` values of the same phase before the cutoff, ``(H, PHASES)``, the newest first."""
    first = season * (step // season + 1)
    return first[:, None] + season * torch.arange(PHASES, device=step.device)


def _columns(values: Tensor, columns: Tensor) -> Tensor:
    """``values`` ``(B, T)`` at ``columns`` ``(H, P)``: ``(B, H, P)``, NaN at columns below zero."""
    return values[:, columns.clamp(min=0)].masked_fill(columns < 0, torch.nan)


def _mean(values: Tensor) -> Tensor:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    return values.nanmean(-1)


def fit_boosting(
    panel: Panel, train: Windows, check: Windows, config: GradientBoostingConfig, seed: int
) -> tuple[GradientBoosting, dict[str, float]]:
    """Fit on windows of ``train`` that ``seed`` draws; ``check``, of a later fold, ends the growth.

    Two ensembles of histogram trees (scikit-learn, after Ke et al., 2017): ``m`` by squared error, ``s`` by gamma deviance
    on ``m``'s absolute residuals. The quantiles of ``z`` are those of ``check``.

    Returns
    -------
    GradientBoosting
        Ready to predict.
    dict
        ``train_loss`` and ``early_stopping_loss``: mean pinball losses in the windows' own scale, as networks report.

    Raises
    ------
    ValueError
        If ``train`` or ``check`` holds no window.
    """
    horizon = panel.schema.horizon
    for name, windows in (("train", train), ("early_stopping", check)):
        if not len(windows):
            raise ValueError(f"the {name} fold holds no window, and gradient_boosting learns from it")
    train, check = _drawn(train, config.rows // horizon, seed), _drawn(check, config.rows // (2 * horizon), seed)
    model = GradientBoosting(panel.schema)
    (x, y), (x_check, y_check) = _table(panel, train), _table(panel, check)
    model.location = _grow(config, seed, "squared_error", x, y, x_check, y_check)
    size, size_check = (
        np.maximum(np.abs(values - model.location(torch.from_numpy(rows)).numpy()), SPREAD_FLOOR)
        for rows, values in ((x, y), (x_check, y_check))
    )
    model.spread = _grow(config, seed, "gamma", x, size, x_check, size_check)
    model.z.copy_(_residual_quantiles(model, panel, check))
    losses = {name: _loss(model, panel, part) for name, part in (("train_loss", train), ("early_stopping_loss", check))}
    return model.eval(), losses


def _drawn(windows: Windows, count: int, seed: int) -> Windows:
    """At most ``count`` of the windows and at least one, in their order."""
    count = max(1, count)
    if len(windows) <= count:
        return windows
    chosen = np.random.default_rng(seed).choice(len(windows), count, replace=False)
    return windows[torch.from_numpy(np.sort(chosen))]


def _table(panel: Panel, windows: Windows) -> tuple[Array, Array]:
    """Rows ``(n H, F)`` float32 and targets ``(n H,)`` less their base, in the window's scale; without missing targets."""
    rows, targets = [], []
    for batch in SequentialLoader(panel, windows, CHUNK):
        features, base = boosting_rows(batch, panel.schema)
        rows.append(features.flatten(0, 1).numpy())
        targets.append((scaled_target(batch) - base).flatten().numpy())
    x, y = np.concatenate(rows), np.concatenate(targets)
    seen = np.isfinite(y)
    return x[seen], y[seen]


def _grow(
    config: GradientBoostingConfig, seed: int, loss: Any, x: Array, y: Array, x_check: Array, y_check: Array
) -> TreeEnsemble:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    empty = np.isnan(x).all(0)  # the histogram of a column wants one number at least; trees cannot split on a constant
    x, x_check = np.where(empty, 0.0, x), np.where(empty, 0.0, x_check)
    grown = HistGradientBoostingRegressor(
        loss=loss,
        learning_rate=config.learning_rate,
        max_iter=config.trees if loss == "squared_error" else -(-config.trees // 4),
        max_leaf_nodes=config.leaves,
        min_samples_leaf=config.least_rows,
        max_features=config.feature_share,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        random_state=seed,
    )
    with threadpool_limits(torch.get_num_threads(), user_api="openmp"):  # members that grow at once would hinder one another
        grown.fit(x, y, X_val=x_check, y_val=y_check)
    return TreeEnsemble.from_sklearn(grown)


def _residual_quantiles(model: GradientBoosting, panel: Panel, windows: Windows) -> Tensor:
    """Quantiles ``(H, Q)`` of the standardised residuals of ``windows``; the same for every step where they are few."""
    parts = []
    for batch in SequentialLoader(panel, windows, CHUNK):
        rows, base = boosting_rows(batch, panel.schema)
        location, spread = model.moments(rows)
        parts.append(((scaled_target(batch) - base - location) / spread).numpy())
    z = np.concatenate(parts)
    seen = np.isfinite(z)
    levels = np.array(LEVELS)
    if seen.sum(0).min() < ENOUGH_RESIDUALS:
        return torch.from_numpy(np.quantile(z[seen], levels)).expand(z.shape[1], -1)
    return torch.from_numpy(np.stack([np.quantile(z[seen[:, step], step], levels) for step in range(z.shape[1])]))


def _loss(model: GradientBoosting, panel: Panel, windows: Windows) -> float:
    """Mean pinball loss over windows, in the window's own scale."""
    with torch.inference_mode():
        losses = [float(model.loss(batch)) * len(batch["groups"]) for batch in SequentialLoader(panel, windows, CHUNK)]
    return sum(losses) / len(windows)
