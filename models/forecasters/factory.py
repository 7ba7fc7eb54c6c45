"""From a family's name to its network."""

from __future__ import annotations

from models.forecasters.base import Forecaster
from models.panel import PanelSchema

FAMILIES = ("tft", "deepar", "tcn", "mamba")


def build_forecaster(family: str, schema: PanelSchema, config) -> Forecaster:  # type: ignore[no-untyped-def]
    """Return an untrained forecaster of ``family`` for panels of ``schema``.

    ``config`` is the family's configuration from ``models.forecasters.config``. Raises ValueError for a family that
    does not exist. Imports only what the family needs.
    """
    if family == "tft":
        from models.forecasters.tft import TFT

        return TFT(schema, config)
    if family == "deepar":
        from models.forecasters.deepar import DeepAR

        return DeepAR(schema, config)
    from models.forecasters.base import SequenceForecaster

    if family == "tcn":
        from models.forecasters.tcn import TCNBackbone

        tcn = TCNBackbone(config.width, config.levels, config.kernel_size, config.dropout)
        return SequenceForecaster(schema, config.width, tcn)
    if family == "mamba":
        from models.forecasters.mamba import MambaBackbone

        mamba = MambaBackbone(config.width, config.layers, config.state_size, config.conv_size, config.expand, config.dropout)
        return SequenceForecaster(schema, config.width, mamba)
    raise ValueError(f"'{family}' is not a family; there are {', '.join(FAMILIES)}")
