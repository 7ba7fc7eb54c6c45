"""How far NeuralForecast's and Darts' conformal intervals reach to both sides, transcribed from their sources.

Their packages want other versions than ours, and both fit intervals together with a model of their own; what they compute
from errors is a line each. ``error`` float ``(W, H)`` holds one series' calibration windows: ``|y - forecast|`` around a
point forecast, or ``max(low - y, y - high)`` around an interval; the answer is the reach of each step, ``(H,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST = 2
"""Calibration windows of a series: NeuralForecast's ``PredictionIntervals`` refuses fewer, and one error has no quantiles."""


def neuralforecast_error(error: Array, level: float) -> Array:
    """``conformal_error`` of NeuralForecast 3.3: the quantile of absolute errors at ``(1 + level) / 2``, which is where its
    ``utils.add_conformal_error_intervals`` cuts them, linearly interpolated."""
    return np.asarray(np.quantile(error, (1 + level) / 2, axis=0))


def neuralforecast_distribution(error: Array, level: float) -> Array:
    """``conformal_distribution``, its default: quantiles of the forecast plus and minus every absolute error
    (``utils.add_conformal_distribution_intervals``)."""
    return np.asarray(np.quantile(np.concatenate([-error, error]), (1 + level) / 2, axis=0))


def darts_conformal(error: Array, level: float) -> Array:
    """``ConformalNaiveModel`` and ``ConformalQRModel`` of Darts, symmetric: the ``level`` quantile, the next higher error.

    Around a point forecast it is the first model, around an interval the second (Romano et al., 2019).
    """
    return np.asarray(np.quantile(error, level, axis=0, method="higher"))


POINT: Mapping[str, Callable[[Array, float], Array]] = {
    "neuralforecast_error": neuralforecast_error,
    "neuralforecast_distribution": neuralforecast_distribution,
    "darts_naive": darts_conformal,
}
"""Methods around a point forecast."""
INTERVAL: Mapping[str, Callable[[Array, float], Array]] = {"darts_qr": darts_conformal}
"""Methods around an interval."""
