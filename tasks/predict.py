"""Predictions of trained members over windows, in batches."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch

from models.forecasters.base import Forecaster
from models.panel import Panel, SequentialLoader, Windows
from models.uncertainty.mc_dropout import mc_dropout_forecast

BATCH = 128
RANDOM_STATE = threading.Lock()


class Predicted(NamedTuple):
    """A member's forecast, float32: quantiles ``(n, H, Q)`` in the target's units and encoder features ``(n, D)``.

    ``split`` ``(2, n, H)`` is the aleatoric and the epistemic variance over MC dropout passes, None without such.
    """

    quantiles: np.ndarray
    features: np.ndarray
    split: np.ndarray | None


def predict_windows(forecaster: Forecaster, panel: Panel, windows: Windows, seed: int, passes: int = 0) -> Predicted:
    """Forecast ``windows``; with ``passes`` as the mixture over so many MC dropout passes.

    The random state is set from ``seed`` for each batch, so sampling forecasters and dropout repeat themselves, and
    `Forecaster.batch_invariant` ones say the same of a window whatever the other windows are. Threads take turns, since
    they share that state. Features are those of the network without dropout. Raises ValueError where there is none to
    keep on.
    """
    quantiles, features, splits = [], [], []
    device = forecaster.levels.device
    for number, batch in enumerate(SequentialLoader(panel, windows, BATCH)):
        batch = {key: value.to(device) for key, value in batch.items()}
        with RANDOM_STATE, torch.inference_mode(), torch.random.fork_rng(devices=[]):
            if passes:
                values, split = mc_dropout_forecast(forecaster, batch, passes, seed * 1_000_003 + number)
                encoded = forecaster.encode(batch)
                splits.append(split.float().numpy())
            else:
                torch.manual_seed(seed)
                values, encoded = forecaster.predict(batch)
        quantiles.append(values.float().cpu().numpy())
        features.append(encoded.float().cpu().numpy())
    whole = np.concatenate(splits, axis=1) if passes else None
    return Predicted(np.concatenate(quantiles), np.concatenate(features), whole)


def encode_windows(forecaster: Forecaster, panel: Panel, windows: Windows) -> torch.Tensor:
    """Encoder features alone, float32 ``(n, D)``, without what a prediction costs."""
    with torch.inference_mode():
        return torch.cat([forecaster.encode(batch).float() for batch in SequentialLoader(panel, windows, BATCH)])
