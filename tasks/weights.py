"""A trained member from its file, without what training it needs: Lightning takes seconds and 150 MB to import."""

from __future__ import annotations

from pathlib import Path

from models.forecasters.base import Forecaster
from models.forecasters.factory import build_forecaster


def load_member(family: str, config, schema, weights: Path) -> Forecaster:  # type: ignore[no-untyped-def]
    """A trained forecaster from its safetensors file, ready to predict."""
    from safetensors.torch import load_model

    forecaster = build_forecaster(family, schema, config)
    load_model(forecaster, str(weights), strict=True)
    return forecaster.eval()
