"""The block ``serving`` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.forecasters.config import Count
from tasks.params_file import Block

Seconds = Annotated[float, Field(gt=0.0)]
Text = Annotated[str, Field(min_length=1)]


class Serving(Block):
    """Where `weatherglass serve` listens, whom it answers and how much it takes."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    allowed_hosts: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    api_keys: Text | None = None
    body_megabytes: Annotated[float, Field(gt=0.0)] = 16.0
    body_seconds: Seconds = 30.0
    series: Count = 1000
    steps: Count = 100_000
    waiting: Count = 64
    batch: Count = 256
    workers: Count | None = None
    forecast_seconds: Seconds = 120.0
    streams: Count = 1000
    reload_seconds: Seconds = 5.0
    drain_seconds: Annotated[float, Field(ge=0.0)] = 2.0
