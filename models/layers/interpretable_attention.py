"""Interpretable multi-head attention of the Temporal Fusion Transformer (Lim et al., 2021, section 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout

__all__ = ["InterpretableAttention", "decoder_mask"]

MASKED = -1e9
"""Score of a step that must not be attended to."""


def decoder_mask(history: int, horizon: int, lengths: Tensor | None) -> Tensor:
    """Steps that a forecast must not read, bool ``(1 or B, horizon, history + horizon)``.

    A step of the horizon reads the history and the steps before its own, not itself. ``lengths`` ``(B,)`` are the
    filled steps of each left-aligned history; None where all are full.
    """
    device = None if lengths is None else lengths.device
    step = torch.arange(horizon, device=device)
    future = (step[None, :] >= step[:, None])[None]
    if lengths is None:
        return torch.cat([future.new_zeros((1, horizon, history)), future], dim=2)
    padding = torch.arange(history, device=device)[None] >= lengths[:, None]
    return torch.cat([padding[:, None].expand(-1, horizon, -1), future.expand(len(lengths), -1, -1)], dim=2)


class InterpretableAttention(nn.Module):
    """Attention whose heads share their values, so that the average of their weights tells what is read.

    Lim et al. (2021), equations 13 to 16. All heads are one matrix product each for queries, keys and values.

    Parameters
    ----------
    width, heads : int
        Entries of a step, a multiple of the number of heads.
    dropout : float
        Dropout of each head's result and of the output.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, self.head_width)
        self.output = nn.Linear(self.head_width, width, bias=False)
        self.dropout = Dropout(dropout)
        for linear in (self.query, self.key):
            for part in linear.weight.detach().split(self.head_width):  # each head has its own fan
                nn.init.xavier_uniform_(part)
        for linear in (self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.query, self.key, self.value):
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read ``steps`` ``(B, T, width)`` for each of ``queries`` ``(B, H, width)``.

        ``mask`` is bool, ``(1 or B, H, T)``, True where a step must not be read. Returns
        ``(B, H, width)`` and the heads' weights ``(B, H, heads, T)``, which add to one over T.
        """
        batch, horizon, _ = queries.shape
        query = (self.query(queries) * self.head_width**-0.5).view(batch, horizon, self.heads, -1).transpose(1, 2)
        key = self.key(steps).view(batch, -1, self.heads, self.head_width).transpose(1, 2)
        penalty = torch.zeros_like(mask, dtype=steps.dtype).masked_fill_(mask, MASKED)
        if len(mask) > 1:
            penalty = penalty[:, None].expand(-1, self.heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(penalty, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
        weights = scores.view(batch, self.heads * horizon, -1).softmax(dim=-1)
        read = (weights @ self.value(steps)).view(batch, self.heads, horizon, self.head_width)
        result: Tensor = self.dropout(self.output(self.dropout(read).mean(dim=1)))
        return result, weights.view(batch, self.heads, horizon, -1).transpose(1, 2)
