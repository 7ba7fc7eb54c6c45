"""An LSTM that passes over a long sequence in blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["lstm_in_blocks"]

BLOCK = 2_000_000
"""Steps times windows times hidden entries a block on a CPU, whose workspace then has about 120 megabytes."""


def lstm_in_blocks(
    lstm: nn.Module, values: Tensor | PackedSequence, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Any, tuple[Tensor, Tensor]]:
    """What ``lstm(values, state)`` returns, for ``values`` ``(B, T, W)`` of a batch-first LSTM in one direction.

    A packed sequence goes through as it is.

    On a CPU torch keeps a workspace for the backward pass that grows with T; blocks that hand the state on put a limit to
    it. Each block costs some copies, so blocks are as long as a workspace may be that the C library still keeps for the
    next step (`tasks.train.KEEP_MEMORY`) and does not ask the operating system for anew.
    """
    if isinstance(values, PackedSequence) or values.device.type != "cpu":
        return lstm(values, state)
    assert isinstance(lstm, nn.LSTM)
    steps = max(8, BLOCK // (len(values) * lstm.hidden_size))
    if values.shape[1] <= steps:
        return lstm(values, state)
    outputs = []
    for block in values.split(steps, dim=1):
        output, state = lstm(block, state)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs, dim=1), state
