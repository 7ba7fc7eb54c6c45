"""Temperature, top-k and top-p: what target and draft both do to their logits before a token is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AS_THEY_ARE", "Truncation"]


@dataclass(frozen=True)
class Truncation:
    """How logits become the probabilities that tokens are drawn from.

    Speculative decoding keeps the distribution that this makes of the target's logits, so the draft's go through the same.

    Attributes
    ----------
    temperature : float
        Divides the logits; 0 is greedy, all probability on the most likely token.
    top_k : int, optional
        Keep the k most likely tokens.
    top_p : float
        Keep the fewest most likely tokens whose probability together reaches p (Holtzman et al., 2020), after top_k.

    Raises
    ------
    ValueError
        If the temperature is negative, `top_k` below 1 or `top_p` not in (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """float64 probabilities ``(..., V)`` of logits ``(..., V)``; ties of the greedy choice go to the first token."""
        logits = logits.double()
        if self.temperature == 0.0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        mass = logits.softmax(-1)
        if self.top_k is None and self.top_p == 1.0:
            return mass
        ordered, order = mass.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[..., self.top_k :] = 0.0
        if self.top_p < 1.0:
            before = ordered.cumsum(-1) - ordered
            ordered = torch.where(before < self.top_p * ordered.sum(-1, keepdim=True), ordered, 0.0)
        kept = torch.zeros_like(mass).scatter_(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)


AS_THEY_ARE = Truncation()
"""Probabilities of the logits as they are."""
