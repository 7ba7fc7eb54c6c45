"""Hybrid: Mamba blocks with one attention layer in the middle, which can look up a single step that the states blur."""

from __future__ import annotations

from models.forecasters.mamba import MambaBlock
from models.layers.attention import CausalAttention
from models.layers.state_space import ResidualStack, SequenceMixer, check_sizes

__all__ = ["WINDOW", "HybridBackbone"]

WINDOW = 512
"""Default steps that the attention layer sees; a step of the stream costs this much at most, whatever the context."""


class HybridBackbone(ResidualStack):
    """Stack of Mamba blocks whose layer `layers // 2` is windowed causal attention, each normed and residual.

    The Mamba blocks norm dt, B and C. Runs over a whole sequence, or step by step at a cost limited by `window`, not by
    the context (`initial_state`, `step`, `extend`).

    Parameters
    ----------
    width, state_size, conv_size, expand : int
        As in `MambaBlock`.
    layers : int
        Layers, the attention layer included; at least 2.
    heads : int
        Attention heads.
    dropout : float
        Probability of dropping a layer's output, element by element, in [0, 1).
    window : int
        Steps that the attention layer sees, itself included.

    Raises
    ------
    ValueError
        If a size is below 1, `layers` below 2, or `heads` does not divide `width`.

    Lieber et al., "Jamba: A Hybrid Transformer-Mamba Language Model" (2024).
    """

    def __init__(
        self,
        width: int,
        layers: int,
        state_size: int,
        conv_size: int,
        expand: int,
        heads: int,
        dropout: float,
        window: int = WINDOW,
    ) -> None:
        check_sizes(width=width, state_size=state_size, conv_size=conv_size, expand=expand, heads=heads, window=window)
        if layers < 2:
            raise ValueError(f"layers must be at least 2, one of them attention, got {layers}")
        mixers: list[SequenceMixer] = [
            CausalAttention(width, heads, window)
            if layer == layers // 2
            else MambaBlock(width, state_size, conv_size, expand, normalise=True)
            for layer in range(layers)
        ]
        super().__init__(mixers, width, dropout)
