"""The block ``monitor`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from models.forecasters.config import Count
from tasks.params_file import Block, sentence

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Monitor(Block):
    """What `weatherglass monitor` calls an alarm, and what an alarm starts."""

    window: Count | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.99
    coverage_tolerance: Share = 0.05
    crps_increase: Annotated[float, Field(ge=0.0)] = 0.25
    width_increase: Annotated[float, Field(ge=0.0)] = 0.5
    pit_distance: Share = 0.1
    ood_rate: Share = 0.1
    psi: Annotated[float, Field(gt=0.0)] = 0.25
    range: Share = 0.05
    adaptive: Literal["aci", "pid"] = "aci"
    retrain: bool = False
    webhook: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("webhook")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):  # told without the value, which is a secret
            raise sentence("monitor.webhook does not begin with http:// or https://; it must be an address, or null")
        return value
