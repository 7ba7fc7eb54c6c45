"""Predictions of trained members over windows, in batches."""

from __future__ import annotations

import numpy as np
import torch

from models.forecasters.base import Forecaster
from models.panel import Panel, SequentialLoader, Windows

BATCH = 128


def predict_windows(forecaster: Forecaster, panel: Panel, windows: Windows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles ``(n, H, Q)`` in the target's units and encoder features ``(n, D)``, float32 each.

    The random state is set from ``seed`` for the length of the call, so sampling forecasters repeat themselves.
    """
    quantiles, features = [], []
    device = forecaster.levels.device
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in SequentialLoader(panel, windows, BATCH):
            prediction = forecaster.predict({key: value.to(device) for key, value in batch.items()})
            quantiles.append(prediction.quantiles.float().cpu().numpy())
            features.append(prediction.features.float().cpu().numpy())
    return np.concatenate(quantiles), np.concatenate(features)


def encode_windows(forecaster: Forecaster, panel: Panel, windows: Windows) -> torch.Tensor:
    """Encoder features alone, float32 ``(n, D)``, without what a prediction costs."""
    with torch.inference_mode():
        return torch.cat([forecaster.encode(batch).float() for batch in SequentialLoader(panel, windows, BATCH)])
