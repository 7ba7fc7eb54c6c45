"""Causal attention over a sliding window, with the rolling cache of keys and values that streams it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Recorded, Sliding, State, StateSpec, Trail
from models.layers.state_space import SequenceMixer

__all__ = ["CausalAttention"]


class CausalAttention(SequenceMixer):
    """Multi-head attention of every step to itself and the `window - 1` steps before it.

    No position is encoded: the recurrent layers around it carry order (Lieber et al., "Jamba", 2024). The cache holds
    the last `window` keys and values, so a step costs O(window), whatever the context.

    Parameters
    ----------
    width : int
        Channels in and out.
    heads : int
        Attention heads.
    window : int
        Steps that one output sees, itself included.

    Raises
    ------
    ValueError
        If `heads` does not divide `width` or `window` is below 1.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.2; the window as in Beltagy, Peters & Cohan,
    "Longformer" (2020), section 3.1, one-sided.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width = {width}, got {heads}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.heads, self.window, self.head_size = heads, window, width // heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """Keys and values, newest last, and how many steps were seen, which says how many of them are real."""
        cache = (self.heads, self.window, self.head_size)
        return StateSpec("keys", cache), StateSpec("values", cache), StateSpec("seen", (), "count")

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, head, time, head size) of (batch, time, width)."""
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _output(self, attended: Tensor) -> Tensor:
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs t - window + 1 to t."""
        query, key, value = self._heads(x)
        time = x.shape[1]
        if time <= self.window:
            return self._output(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        mask = torch.ones(time, time, dtype=torch.bool, device=x.device).tril().triu(1 - self.window)
        return self._output(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As `forward`, going on from `state`; also the state after the last step."""
        output, keys, values = self._read(x, state)
        time = x.shape[1]
        return output, (keys[:, :, time:], values[:, :, time:], state[2] + time)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """As `extend`, with the state after any of the steps."""
        output, keys, values = self._read(x, state)
        seen = state[2][:, None] + torch.arange(x.shape[1] + 1, device=x.device)
        return output, (Sliding(keys, self.window, 2), Sliding(values, self.window, 2), Recorded(seen))

    def _read(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, and keys and values of the cache and of `x` one after the other."""
        keys, values, seen = state
        query, key, value = self._heads(x)
        time, kept = x.shape[1], self.window
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        source = torch.arange(kept + time, device=x.device)
        age = torch.arange(kept, kept + time, device=x.device)[:, None] - source  # (time, window + time)
        real = source >= kept - seen.clamp(max=kept)[:, None]  # (batch, window + time)
        mask = ((age >= 0) & (age < kept)) & real[:, None]
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None])
        return self._output(attended), keys, values

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As `extend` for the one step (batch, width)."""
        output, state = self.extend(x_t[:, None], state)
        return output[:, 0], state
