"""Temporal Fusion Transformer (Lim et al., 2021): pytorch-forecasting's network behind our interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.forecasters.base import Forecaster, Prediction, unscale
from models.forecasters.config import TFTConfig
from models.panel import Batch, PanelSchema
from models.predictive import LEVELS


class Identity(nn.Module):
    """Leaves predictions in the window's own scale, in which the networks learn."""

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return data["prediction"]


def embedding_sizes(schema: PanelSchema) -> dict[str, tuple[int, int]]:
    """Name -> (categories, width) as pytorch-forecasting's embeddings want it."""
    return {name: (count, min(8, (count + 3) // 2)) for name, count in schema.all_categories}


class TFT(Forecaster):
    """Quantiles from pytorch-forecasting's ``TemporalFusionTransformer``, fed by our loader."""

    def __init__(self, schema: PanelSchema, config: TFTConfig) -> None:
        from pytorch_forecasting import TemporalFusionTransformer
        from pytorch_forecasting.metrics import QuantileLoss

        super().__init__()
        known = [schema.reals[index] for index in schema.future_reals]
        categories = [name for name, _ in schema.categories]
        self.network = TemporalFusionTransformer(
            hidden_size=config.hidden_size,
            lstm_layers=config.lstm_layers,
            dropout=config.dropout,
            attention_head_size=config.attention_heads,
            hidden_continuous_size=config.hidden_continuous_size,
            output_size=len(LEVELS),
            loss=QuantileLoss(list(LEVELS)),
            max_encoder_length=schema.context,
            static_categoricals=[name for name, _ in schema.static],
            time_varying_categoricals_encoder=categories,
            time_varying_categoricals_decoder=categories,
            time_varying_reals_encoder=list(schema.reals),
            time_varying_reals_decoder=known,
            x_reals=list(schema.reals),
            x_categoricals=[name for name, _ in schema.all_categories],
            embedding_sizes=embedding_sizes(schema),
            logging_metrics=nn.ModuleList(),
            output_transformer=Identity(),
        )
        self._encoded: Tensor | None = None
        self.network.post_lstm_add_norm_encoder.register_forward_hook(self._keep_encoded)

    def _keep_encoded(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Keep the output of the shared normalisation's first call, which is the encoder's; the second is the decoder's."""
        if self._encoded is None:
            self._encoded = output

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Quantiles in the window's own scale ``(B, H, Q)`` and features ``(B, hidden)`` at the last known step."""
        self._encoded = None
        quantiles = self.network(batch)["prediction"]
        encoded, self._encoded = self._encoded, None
        assert encoded is not None
        rows = torch.arange(len(encoded), device=encoded.device)
        return quantiles, encoded[rows, batch["encoder_lengths"] - 1]

    def loss(self, batch: Batch) -> Tensor:
        return self.quantile_loss(self(batch)[0], batch)

    def predict(self, batch: Batch) -> Prediction:
        quantiles, features = self(batch)
        return Prediction(unscale(quantiles.sort(dim=-1).values, batch), features)
