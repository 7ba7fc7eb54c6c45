"""Predictions of trained members over windows, in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from models.forecasters.base import Forecaster
from models.loading import moved
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


def predict_windows(
    forecaster: Forecaster, panel: Panel, windows: Windows, seed: int, passes: int = 0, before: int = 0
) -> Predicted:
    """Forecast ``windows``; with ``passes`` as the mixture over so many MC dropout passes.

    The random state is set from ``seed`` for each batch, so sampling forecasters and dropout repeat themselves, and
    `Forecaster.batch_invariant` ones say the same of a window whatever the other windows are. Threads take turns, since
    they share that state. Where ``before`` windows, whole batches, of the same list were forecast by themselves, the others go
    on as if they had not been. Features are those of the network without dropout. Raises ValueError where there is none to
    keep on.
    """
    parts = list(predicted_parts(forecaster, panel, windows, seed, passes, before))
    split = np.concatenate([part.split for part in parts if part.split is not None], axis=1) if passes else None
    return Predicted(
        np.concatenate([part.quantiles for part in parts]), np.concatenate([part.features for part in parts]), split
    )


def predicted_parts(
    forecaster: Forecaster, panel: Panel, windows: Windows, seed: int, passes: int = 0, before: int = 0
) -> Iterator[Predicted]:
    """What `predict_windows` says, a batch at a time."""
    device = forecaster.levels.device
    for number, batch in enumerate(SequentialLoader(panel, windows, BATCH), start=before // BATCH):
        batch = moved(batch, device)
        split = None
        with RANDOM_STATE, torch.inference_mode(), torch.random.fork_rng(devices=[]):
            if passes:
                values, variances = mc_dropout_forecast(forecaster, batch, passes, seed * 1_000_003 + number)
                encoded, split = forecaster.encode(batch), variances.float().numpy()
            else:
                torch.manual_seed(seed)
                values, encoded = forecaster.predict(batch)
        yield Predicted(values.float().cpu().numpy(), encoded.float().cpu().numpy(), split)


def encode_windows(forecaster: Forecaster, panel: Panel, windows: Windows) -> torch.Tensor:
    """Encoder features alone, float32 ``(n, D)``, without what a prediction costs."""
    with torch.inference_mode():
        return torch.cat([forecaster.encode(batch).float() for batch in SequentialLoader(panel, windows, BATCH)])
