"""Configurations of the forecasters, one a family; free of torch, so reading params.yaml stays quick."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
DirectHead = Literal["quantile", "normal", "student_t", "negative_binomial", "categorical"]


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
    """DeepAR (Salinas et al., 2020): LSTM width and layers, its head, and the sampled paths of a forecast.

    With a categorical head it forecasts ``bins`` of the target, and can be sampled speculatively.
    """

    hidden_size: Count = 48
    layers: Count = 2
    dropout: Dropout = 0.1
    head: Literal["normal", "categorical"] = "normal"
    bins: Annotated[int, Field(ge=4)] = 64
    paths: Annotated[int, Field(ge=2)] = 100


class DirectConfig(ForecasterConfig):
    """What our own direct forecasters have besides: the head that their backbone's output feeds."""

    head: DirectHead = "quantile"


class StreamingConfig(DirectConfig):
    """What families with a backbone that streams have besides: forecasts of all steps at once, or sampled paths.

    ``bins`` and ``paths`` matter for ``decoding: paths`` alone, whose head is categorical unless another is named.
    """

    decoding: Literal["direct", "paths"] = "direct"
    bins: Annotated[int, Field(ge=4)] = 64
    paths: Annotated[int, Field(ge=2)] = 100

    @model_validator(mode="before")
    @classmethod
    def _paths_are_of_bins(cls, block: Any) -> Any:
        if isinstance(block, dict) and block.get("decoding") == "paths" and block.get("head") is None:
            return {**block, "head": "categorical"}
        return block


class TCNConfig(StreamingConfig):
    """Temporal convolutional network (Bai et al., 2018): channels, dilation levels, taps of a filter."""

    width: Count = 48
    levels: Annotated[int, Field(ge=1, le=16)] = 5
    kernel_size: Annotated[int, Field(ge=2)] = 3
    dropout: Dropout = 0.1


class TiDEConfig(DirectConfig):
    """TiDE (Das et al., 2023): width of the encoding, of the blocks' inner layers, blocks of encoder and of decoder."""

    width: Count = 96
    hidden: Count = 192
    layers: Count = 2
    dropout: Dropout = 0.2
    max_epochs: Count = 16


class MambaConfig(StreamingConfig):
    """Mamba (Gu and Dao, 2023): model width, blocks, state size N, convolution taps, expansion of the inner width."""

    width: Count = 48
    layers: Count = 2
    state_size: Count = 16
    conv_size: Count = 4
    expand: Count = 2
    dropout: Dropout = 0.1
    batch_size: Count = 64
    learning_rate: LearningRate = 4e-3


class WaveNetConfig(ForecasterConfig):
    """WaveNet (van den Oord et al., 2016): channels, stacks of dilation levels, taps, head and sampled paths."""

    width: Count = 32
    levels: Annotated[int, Field(ge=1, le=16)] = 7
    stacks: Count = 1
    kernel_size: Annotated[int, Field(ge=2)] = 2
    dropout: Dropout = 0.1
    head: DirectHead = "categorical"
    bins: Annotated[int, Field(ge=4)] = 64
    paths: Annotated[int, Field(ge=2)] = 100
    batch_size: Count = 64


class S4DConfig(StreamingConfig):
    """S4D (Gu et al., 2022): model width, blocks, states of a channel, their initial spectrum and discretisation."""

    width: Count = 48
    layers: Count = 2
    state_size: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    initialisation: Literal["legs", "lin", "inv", "real"] = "legs"
    discretisation: Literal["zoh", "bilinear", "euler"] = "zoh"
    dropout: Dropout = 0.1


class Mamba2Config(MambaConfig):
    """Mamba-2 (Dao and Gu, 2024): as Mamba, and the heads that share expand * width inner channels."""

    heads: Count = 8

    @model_validator(mode="after")
    def _heads_share_the_inner_width(self) -> Mamba2Config:
        if (self.expand * self.width) % self.heads:
            raise PydanticCustomError(
                "sentence",
                "forecasters.mamba2.heads is {heads}; it must divide expand * width, {inner}",
                {"heads": self.heads, "inner": self.expand * self.width},
            )
        return self


class HybridConfig(MambaConfig):
    """Mamba with one attention layer in the middle (after Jamba, Lieber et al., 2024): attention heads and window."""

    layers: Annotated[int, Field(ge=2)] = 3
    heads: Count = 4
    window: Count = 512

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> HybridConfig:
        if self.width % self.heads:
            raise PydanticCustomError(
                "sentence",
                "forecasters.hybrid.heads is {heads}; it must divide width, {width}",
                {"heads": self.heads, "width": self.width},
            )
        return self


class GradientBoostingConfig(BaseModel):
    """Gradient boosting: rows to learn from, trees, their leaves, and what each split may look at."""

    model_config = ForecasterConfig.model_config

    rows: Annotated[int, Field(ge=100)] = 200_000
    trees: Count = 250
    learning_rate: LearningRate = 0.1
    leaves: Annotated[int, Field(ge=2)] = 31
    least_rows: Count = 40
    feature_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_epochs: Literal[1] = 1
