"""Temporal Fusion Transformer (Lim et al., 2021): quantiles, and what they were read from."""

from __future__ import annotations

import torch
from torch import Tensor

from models.forecasters.base import Forecaster, Prediction, align_right, unscale
from models.forecasters.config import TFTConfig
from models.forecasters.tft_network import TFTNetwork
from models.panel import Batch, PanelSchema
from models.predictive import LEVELS

__all__ = ["TFT"]


class TFT(Forecaster):
    """Quantiles at `LEVELS` from `TFTNetwork`.

    Attributes
    ----------
    variables : dict of str to tuple of str
        Names of the ``static``, ``encoder`` and ``decoder`` variables, in the order of the weights of `interpret`.
    """

    def __init__(self, schema: PanelSchema, config: TFTConfig) -> None:
        super().__init__()
        self.network = TFTNetwork(schema, config, len(LEVELS))
        self.context = schema.context
        categories = tuple(name for name, _ in schema.categories)
        self.variables: dict[str, tuple[str, ...]] = {
            "static": tuple(name for name, _ in schema.static),
            "encoder": (*categories, *schema.reals),
            "decoder": (*categories, *(schema.reals[index] for index in schema.future_reals)),
        }

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Quantiles in the window's own scale ``(B, H, Q)`` and features ``(B, hidden)`` at the last known step."""
        output = self.network(batch, attention=False)
        rows = torch.arange(len(output.encoded), device=output.encoded.device)
        return output.prediction, output.encoded[rows, batch["encoder_lengths"] - 1]

    def loss(self, batch: Batch) -> Tensor:
        return self.quantile_loss(self(batch)[0], batch)

    def predict(self, batch: Batch) -> Prediction:
        quantiles, features = self(batch)
        return Prediction(unscale(quantiles.sort(dim=-1).values, batch), features)

    @torch.no_grad()
    def interpret(self, batch: Batch) -> dict[str, Tensor]:
        """What each forecast was read from (Lim et al., 2021, section 7).

        Returns
        -------
        dict
            ``static``, ``encoder`` and ``decoder``: selection weights ``(B, V)`` of the variables named in `variables`,
            averaged over the steps of the window's history or horizon; each row adds to one, if there are variables.
            ``attention`` ``(B, H, context)``: what step h of the forecast reads of the history, averaged over heads; the
            last column is the newest step, so that column j is lag context - j + h for h counted from 0, and steps
            before a series began have weight 0. ``horizon_attention`` ``(B, H, H)``: what it reads of earlier steps of
            the horizon, not its own nor later ones. The rows of both together add to one.
        """
        output = self.network(batch)
        lengths = batch["encoder_lengths"]
        steps = output.encoder_weights.shape[1]
        inside = torch.arange(steps, device=lengths.device)[None] < lengths[:, None]
        encoder = (output.encoder_weights * inside[..., None]).sum(1) / lengths[:, None]
        assert output.attention is not None
        attention = output.attention.mean(dim=2)
        history = align_right(attention[..., :steps].transpose(1, 2), lengths, self.context).transpose(1, 2)
        return {
            "static": output.static_weights,
            "encoder": encoder,
            "decoder": output.decoder_weights.mean(1),
            "attention": history,
            "horizon_attention": attention[..., steps:],
        }
