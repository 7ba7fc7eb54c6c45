"""Interpretable multi-head attention of the Temporal Fusion Transformer (Lim et al., 2021, section 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.shared_value_attention import shared_value_attention, shared_value_attention_reference

__all__ = ["InterpretableAttention", "decoder_mask"]


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

    def forward(self, queries: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        """Read ``steps`` ``(B, T, width)`` for each of ``queries`` ``(B, H, width)``.

        ``mask`` is bool, ``(1 or B, H, T)``, True where a step must not be read.
        """
        read = shared_value_attention(self.query(queries), self.key(steps), self.value(steps), mask, self.heads)
        result: Tensor = self.dropout(self.output(self.dropout(read).mean(dim=1)))
        return result

    def weights(self, queries: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        """How much each head of `forward` reads of each step, ``(B, H, heads, T)``, adding to one over T."""
        query, key, value = self.query(queries), self.key(steps), self.value(steps)
        return shared_value_attention_reference(query, key, value, mask, self.heads)[1].transpose(1, 2)
