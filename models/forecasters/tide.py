"""TiDE: a dense encoder of the whole history and a decoder of every step with what is known of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.forecasters.base import CategoryEmbedding, DirectForecaster, align_right
from models.forecasters.config import TiDEConfig
from models.layers.seasonal_base import SeasonalBase
from models.panel import Batch, PanelSchema

__all__ = ["TiDE"]

COMPRESSED = 4
"""Numbers to which the inputs of a step of history are projected before the encoder reads them all."""


class DenseBlock(nn.Module):
    """x + dropout(W2 GELU(W1 LayerNorm(x))), ``(..., width) -> (..., width)``."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.contract(nn.functional.gelu(self.expand(self.norm(x))))
        return x + self.dropout(y)


class TiDE(DirectForecaster):
    """Dense layers alone, with any head (Das et al., "Long-term Forecasting with TiDE: Time-series Dense Encoder", 2023).

    The encoder reads the target's history and a projection of each step's other inputs, all steps at once; the decoder
    of a step reads the encoding, the step's place in the horizon, what is known of it and the past seasons of its
    phase. Unlike the paper's, the decoder is one network for all steps, so its size does not grow with the horizon, and
    the linear path around it is `SeasonalBase`.
    """

    def __init__(self, schema: PanelSchema, config: TiDEConfig) -> None:
        super().__init__(schema, config.width, config.head)
        width, dropout = config.width, config.dropout
        self.embedding = CategoryEmbedding(schema.all_categories)
        self.base = SeasonalBase(schema, width)
        self.future = list(schema.future_reals)
        self.compress = nn.Linear(len(schema.reals) + self.embedding.width, COMPRESSED)
        self.encoder = nn.Linear(schema.context * (1 + COMPRESSED), width)
        self.encoding = nn.ModuleList(DenseBlock(width, config.hidden, dropout) for _ in range(config.layers))
        self.known = nn.Linear(len(self.future) + self.base.cycles + self.embedding.width, width)
        self.place = nn.Parameter(0.02 * torch.randn(schema.horizon, width))
        self.decoding = nn.ModuleList(DenseBlock(width, config.hidden, dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Parameters of the head ``(B, H, P)`` and features ``(B, width)``, the encoding of the history."""
        lengths, decoder = batch["encoder_lengths"], batch["decoder_cont"]
        past = align_right(batch["encoder_cont"], lengths, self.context)
        codes = align_right(batch["encoder_cat"], lengths, self.context)
        history = past[..., 0]
        compressed = self.compress(torch.cat([past, self.embedding(codes)], dim=-1))
        encoding = self.encoder(torch.cat([history, compressed.flatten(1)], dim=-1))
        for block in self.encoding:
            encoding = block(encoding)
        seasons = self.base.seasons(history, decoder.shape[1])
        known = torch.cat([decoder[..., self.future], seasons, self.embedding(batch["decoder_cat"])], dim=-1)
        hidden = self.known(known) + encoding[:, None] + self.place
        for block in self.decoding:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        base = self.base(history, seasons, decoder[..., decoder.shape[-1] - self.base.n_lags :], hidden)
        return self.head(hidden, base), encoding
