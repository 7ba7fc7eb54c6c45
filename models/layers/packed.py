"""A linear layer for inference whose weight is packed once for few rows at a time, where the backend can.

torch packs a weight anew for every product of more than one row, which on a CPU costs about as much as the product itself
where rows are few. So the K + 1 rows of a verified piece would cost several times one row, for no reason of arithmetic.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PackedLinear", "pack_linear_layers"]

ROWS = 8
"""Rows that a weight is packed for; other numbers are right as well."""

FEWEST = 4096
"""Weights of fewer entries stay as they are: a call's own cost is more than packing saves."""

_numbers = itertools.count()
_layers: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_library = torch.library.Library("weatherglass", "FRAGMENT")


class PackedLinear(nn.Module):
    """x W^T + b for (..., in) -> (..., out), the same function as `torch.nn.functional.linear`, without gradients.

    Parameters
    ----------
    weight : Tensor (out, in)
    bias : Tensor (out,), optional
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.detach().contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self._packed = _packed(self.weight)
        self._number = next(_numbers)
        _layers[self._number] = self

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.numel() // self.in_features
        if self._packed is None or rows < 2:
            return functional.linear(x, self.weight, self.bias)
        flat = x.reshape(rows, self.in_features)
        if torch.compiler.is_compiling():  # a compiler knows no packed tensors, so it is shown their number
            output: Tensor = torch.ops.weatherglass.packed_linear(flat, self._number, self.out_features)
        else:
            output = _product(flat, self._packed, self.bias)
        return output.view(*x.shape[:-1], self.out_features)


def pack_linear_layers(module: nn.Module) -> None:
    """Put a `PackedLinear` in the place of every linear layer within ``module``, which is not trained any more."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linear_layers(child)


def _packed(weight: Tensor) -> Any:
    """The packed weight; None where the backend has none or it would not pay."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < FEWEST:
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (AttributeError, RuntimeError):
        return None


def _product(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return output


def _numbered_product(x: Tensor, number: int, width: int) -> Tensor:
    layer = _layers[number]
    return _product(x, layer._packed, layer.bias)


_library.define("packed_linear(Tensor x, int number, int width) -> Tensor")
_library.impl("packed_linear", _numbered_product, "CPU")
torch.library.register_fake("weatherglass::packed_linear", lambda x, number, width: x.new_empty((len(x), width)), lib=_library)
