"""What every forecaster is, and the direct sequence forecaster that our own networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.heads import build_head
from models.layers.seasonal_base import SeasonalBase
from models.panel import Batch, PanelSchema
from models.predictive import LEVELS, pinball_loss


class Prediction(NamedTuple):
    """``quantiles`` ``(B, H, Q)`` in the target's units, sorted, and ``features`` ``(B, D)`` of the encoder."""

    quantiles: Tensor
    features: Tensor


def scaled_target(batch: Batch) -> Tensor:
    """The true horizon in the window's own scale, ``(B, H)``."""
    loc, scale = batch["target_scale"].unbind(1)
    return (batch["decoder_target"] - loc[:, None]) / scale[:, None]


def unscale(values: Tensor, batch: Batch) -> Tensor:
    """Bring ``(B, H, ...)`` from the window's own scale to the target's units."""
    shape = (-1,) + (1,) * (values.dim() - 1)
    loc, scale = batch["target_scale"].unbind(1)
    return values * scale.view(shape) + loc.view(shape)


class Forecaster(nn.Module, ABC):
    """A network that learns by ``loss`` and answers with quantiles and encoder features."""

    levels: Tensor
    batch_invariant = True
    """Whether a window's prediction, for one random state, is the same whatever else is in its batch (but for rounding)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(LEVELS, dtype=torch.float32), persistent=False)

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch, a scalar in the windows' own scale."""

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """Predictive quantiles and encoder features; deterministic given torch's random state."""

    def encode(self, batch: Batch) -> Tensor:
        """Encoder features alone ``(B, D)``; overridden where they cost less than a prediction."""
        return self.predict(batch).features

    def quantile_loss(self, quantiles: Tensor, batch: Batch) -> Tensor:
        """Mean pinball loss over windows, steps and levels, for quantiles in the window's own scale ``(B, H, Q)``."""
        return 2.0 * pinball_loss(quantiles, scaled_target(batch), self.levels).mean()


class CategoryEmbedding(nn.Module):
    """Embeds every categorical input and concatenates them: int64 ``(B, T, C)`` -> ``(B, T, width)``."""

    def __init__(self, categories: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        sizes = [(count, min(8, (count + 3) // 2)) for _, count in categories]
        self.tables = nn.ModuleList(nn.Embedding(count, size) for count, size in sizes)
        self.width = sum(size for _, size in sizes)

    def forward(self, codes: Tensor) -> Tensor:
        parts = [table(codes[..., index]) for index, table in enumerate(self.tables)]
        return torch.cat(parts, dim=-1) if parts else codes.new_zeros((*codes.shape[:-1], 0), dtype=torch.float32)


class DirectForecaster(Forecaster):
    """A network whose ``forward`` gives the parameters of a head for all steps at once ``(B, H, P)``, and features."""

    def __init__(self, schema: PanelSchema, width: int, head: str) -> None:
        super().__init__()
        self.context = schema.context
        self.head = build_head(head, width)

    def loss(self, batch: Batch) -> Tensor:
        parameters, _ = self(batch)
        return self.head.loss(parameters, batch["decoder_target"], *batch["target_scale"].unbind(1)).mean()

    def predict(self, batch: Batch) -> Prediction:
        parameters, features = self(batch)
        loc, scale = batch["target_scale"].unbind(1)
        return Prediction(self.head.quantiles(parameters, self.levels, loc, scale), features)


class SequenceForecaster(DirectForecaster):
    """Direct multi-step distributions from any causal backbone ``(B, T, width) -> (B, T, width)`` and any head.

    The backbone reads history and horizon as one sequence, in which the unknown future (target, past-only
    covariates) is zero and marked; the last H positions are the forecast. History is always ``context`` steps wide, so
    that a short one is padded alike whatever its batch holds. The head's location is a correction of `SeasonalBase`,
    so the network starts as a seasonal forecast; over the horizon it also reads the past seasons themselves.
    """

    def __init__(self, schema: PanelSchema, width: int, backbone: nn.Module, head: str = "quantile") -> None:
        super().__init__(schema, width, head)
        self.embedding = CategoryEmbedding(schema.all_categories)
        self.base = SeasonalBase(schema, width)
        self.project = nn.Linear(len(schema.reals) + 1 + self.base.cycles + self.embedding.width, width)
        self.backbone = backbone
        self.unknown = [0, *schema.past_reals]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Parameters of the head ``(B, H, P)`` and features ``(B, width)`` at the last known step."""
        lengths, context, decoder = batch["encoder_lengths"], self.context, batch["decoder_cont"]
        encoder = align_right(batch["encoder_cont"], lengths, context)
        codes = torch.cat([align_right(batch["encoder_cat"], lengths, context), batch["decoder_cat"]], dim=1)
        future = decoder.clone()
        future[..., self.unknown] = 0.0
        history = encoder[..., 0]
        seasons = self.base.seasons(history, decoder.shape[1])
        past = nn.functional.pad(encoder, (0, 1 + self.base.cycles))
        ahead = torch.cat([future, torch.ones_like(future[..., :1]), seasons], dim=-1)
        inputs = torch.cat([torch.cat([past, ahead], dim=1), self.embedding(codes)], dim=-1)
        hidden = self._last_hidden(inputs, decoder.shape[1] + 1)
        lags = decoder[..., decoder.shape[-1] - self.base.n_lags :]
        base = self.base(history, seasons, lags, hidden[:, 1:])
        return self.head(hidden[:, 1:], base), hidden[:, 0]

    def _last_hidden(self, inputs: Tensor, wanted: int) -> Tensor:
        """The backbone's last ``wanted`` outputs ``(B, wanted, width)`` for inputs ``(B, T, I)``."""
        backbone: Any = self.backbone
        hidden: Tensor
        if hasattr(backbone, "last"):
            hidden = backbone.last(inputs, wanted, self.project)
        else:
            hidden = backbone(self.project(inputs))[:, -wanted:]
        return hidden


def align_right(values: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Move left-aligned sequences ``(B, T, ...)`` of ``lengths`` ``(B,)`` to the end of ``width`` steps, zero before.

    The newest step of every window then is the last: ``(B, width, ...)``.
    """
    if values.device.type == "cpu" and bool((lengths == width).all()):  # elsewhere the look would wait for the device
        return values
    source = torch.arange(width, device=values.device)[None] - (width - lengths)[:, None]
    index = source.clamp(min=0)[..., None].expand(-1, -1, values.shape[2])
    return torch.where(source[..., None] >= 0, values.gather(1, index), values.new_zeros(()))
