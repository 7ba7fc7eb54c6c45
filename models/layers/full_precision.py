"""Operations with gradients of their own compute in float32 also where autocast is on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def in_full_precision(function: type[torch.autograd.Function], device: torch.device, *inputs: Any) -> Tensor:
    """``function.apply(*inputs)`` without autocast, tensors of 16 bits among the inputs as float32.

    Autocast casts the arguments of torch's own operations, not those of a `torch.autograd.Function`, whose backward runs
    without it: there the types would not fit together.
    """
    with torch.autocast(device.type, enabled=False):
        whole = (value.float() if isinstance(value, Tensor) and value.dtype in HALF else value for value in inputs)
        result: Tensor = function.apply(*whole)
        return result
