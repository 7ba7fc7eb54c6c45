"""From a family's name to its network."""

from __future__ import annotations

from typing import Any

from models.forecasters.base import Forecaster, SequenceForecaster
from models.panel import PanelSchema

NETWORKS = ("tft", "deepar", "tcn", "wavenet", "s4d", "mamba", "mamba2", "hybrid", "tide")
"""Families that learn by a gradient."""
FAMILIES = (*NETWORKS, "gradient_boosting")


def build_forecaster(family: str, schema: PanelSchema, config: Any) -> Forecaster:
    """Return an untrained forecaster of ``family`` for panels of ``schema``.

    ``config`` is the family's configuration from ``models.forecasters.config``. Raises ValueError for a family that
    does not exist. Imports only what the family needs.
    """
    if family == "tft":
        from models.forecasters.tft import TFT

        return TFT(schema, config)
    if is_binned_lstm(family, config):
        from models.forecasters.lstm import LSTMBackbone

        lstm = LSTMBackbone(config.hidden_size, config.layers, config.dropout)
        return _autoregressive(schema, config.hidden_size, lstm, config)
    if family == "deepar":
        from models.forecasters.deepar import DeepAR

        return DeepAR(schema, config)
    if family == "tide":
        from models.forecasters.tide import TiDE

        return TiDE(schema, config)
    if family == "gradient_boosting":
        from models.forecasters.gradient_boosting import GradientBoosting

        return GradientBoosting(schema)
    if family == "wavenet":
        from models.forecasters.wavenet import WaveNet, WaveNetBackbone

        wavenet = WaveNetBackbone(config.width, config.levels, config.stacks, config.kernel_size, config.dropout)
        return _autoregressive(schema, config.width, wavenet, config, WaveNet)
    if family not in FAMILIES:
        raise ValueError(f"'{family}' is not a family; there are {', '.join(FAMILIES)}")
    if config.decoding == "paths":
        return _autoregressive(schema, config.width, build_backbone(family, config), config)
    return SequenceForecaster(schema, config.width, build_backbone(family, config), config.head)


def is_binned_lstm(family: str, config: Any) -> bool:
    """Whether the family is DeepAR's with bins in place of its normal likelihood."""
    return family == "deepar" and config.head == "categorical"


def _autoregressive(schema: PanelSchema, width: int, backbone: Any, config: Any, kind: Any = None) -> Forecaster:
    from models.forecasters.autoregressive import Autoregressive
    from models.heads import build_head

    options = {"bins": config.bins} if config.head == "categorical" else {}
    forecaster: Forecaster = (kind or Autoregressive)(
        schema, width, backbone, build_head(config.head, width, **options), config.paths
    )
    return forecaster


def build_backbone(family: str, config: Any):  # type: ignore[no-untyped-def]
    """Return the causal backbone ``(B, T, width) -> (B, T, width)`` of a direct family."""
    if family == "tcn":
        from models.forecasters.tcn import TCNBackbone

        return TCNBackbone(config.width, config.levels, config.kernel_size, config.dropout)
    if family == "s4d":
        from models.forecasters.s4d import S4DBackbone

        spectrum = (config.initialisation, config.discretisation)
        return S4DBackbone(config.width, config.layers, config.state_size, *spectrum, config.dropout)
    sizes = (config.width, config.layers, config.state_size, config.conv_size, config.expand)
    if family == "mamba":
        from models.forecasters.mamba import MambaBackbone

        return MambaBackbone(*sizes, config.dropout)
    if family == "mamba2":
        from models.forecasters.mamba2 import Mamba2Backbone

        return Mamba2Backbone(*sizes, config.heads, config.dropout)
    from models.forecasters.hybrid import HybridBackbone

    return HybridBackbone(*sizes, config.heads, config.dropout, config.window)
