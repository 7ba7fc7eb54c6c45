"""Configurations of the forecasters, one a family; free of torch, so reading params.yaml stays quick."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]


class ForecasterConfig(BaseModel):
    """What every family has: windows a step, the step size of AdamW and the longest training in epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    batch_size: Count = 128
    learning_rate: LearningRate = 3e-3
    max_epochs: Count = 8


class TFTConfig(ForecasterConfig):
    """Temporal Fusion Transformer (Lim et al., 2021): width of every block, heads, LSTM layers."""

    hidden_size: Count = 24
    attention_heads: Count = 4
    lstm_layers: Count = 1
    dropout: Dropout = 0.1
    hidden_continuous_size: Count = 8
    batch_size: Count = 64
    learning_rate: LearningRate = 4e-3

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TFTConfig:
        if self.hidden_size % self.attention_heads:
            raise PydanticCustomError(
                "sentence",
                "forecasters.tft.hidden_size is {size}; it must be a multiple of attention_heads, {heads}",
                {"size": self.hidden_size, "heads": self.attention_heads},
            )
        return self


class DeepARConfig(ForecasterConfig):
    """DeepAR (Salinas et al., 2020): LSTM width and layers, and the sampled paths of a forecast."""

    hidden_size: Count = 48
    layers: Count = 2
    dropout: Dropout = 0.1
    paths: Annotated[int, Field(ge=2)] = 100


class TCNConfig(ForecasterConfig):
    """Temporal convolutional network (Bai et al., 2018): channels, dilation levels, taps of a filter."""

    width: Count = 48
    levels: Annotated[int, Field(ge=1, le=16)] = 5
    kernel_size: Annotated[int, Field(ge=2)] = 3
    dropout: Dropout = 0.1


class MambaConfig(ForecasterConfig):
    """Mamba (Gu and Dao, 2023): model width, blocks, state size N, convolution taps, expansion of the inner width."""

    width: Count = 48
    layers: Count = 2
    state_size: Count = 16
    conv_size: Count = 4
    expand: Count = 2
    dropout: Dropout = 0.1
    batch_size: Count = 64
    learning_rate: LearningRate = 4e-3
