"""Gated residual networks of the Temporal Fusion Transformer (Lim et al., 2021, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.dropout import Dropout

__all__ = ["GateAddNorm", "GatedLinearUnit", "GatedResidual", "ResampleNorm", "interpolation"]


def interpolation(width: int, output: int) -> Tensor:
    """Matrix ``(width, output)`` that stretches a vector to ``output`` entries, linear between its entries."""
    rows = torch.eye(width)[None]
    return functional.interpolate(rows, output, mode="linear", align_corners=True)[0]


class ResampleNorm(nn.Module):
    """LayerNorm(2 sigmoid(mask) * stretch(x)): ``(..., width) -> (..., output)``.

    The stretch, a linear interpolation, lets a residual connection change its width without a weight matrix
    (pytorch-forecasting's replacement of the paper's linear layer).
    """

    matrix: Tensor

    def __init__(self, width: int, output: int) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(output))
        self.norm = nn.LayerNorm(output)
        self.register_buffer("matrix", interpolation(width, output), persistent=False)

    def scaled(self, stretched: Tensor) -> Tensor:
        """The second half of the map, for what has been multiplied by ``matrix`` already."""
        result: Tensor = self.norm(stretched * (2.0 * self.mask.sigmoid()))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x @ self.matrix)


class GatedLinearUnit(nn.Module):
    """GLU(dropout(x) W + b): ``(..., width) -> (..., output)`` (Lim et al., equation 5)."""

    def __init__(self, width: int, output: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(width, 2 * output)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)  # two products, as halves that are each contiguous are several times quicker to pass over
        halves = zip(self.linear.weight.chunk(2), self.linear.bias.chunk(2), strict=True)
        value, gate = (functional.linear(x, weight, bias) for weight, bias in halves)
        return value * gate.sigmoid()


class GateAddNorm(nn.Module):
    """LayerNorm(GLU(x) + skip): ``(..., width), (..., output) -> (..., output)`` (Lim et al., equation 2)."""

    def __init__(self, width: int, output: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = GatedLinearUnit(width, output, dropout)
        self.norm = nn.LayerNorm(output)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.norm(self.gate(x) + skip)
        return result


class GatedResidual(nn.Module):
    """Gated residual network (Lim et al., equations 2 to 5): ``(..., width) -> (..., output)``.

    LayerNorm(skip + GLU(dropout(W2 ELU(W1 x + W3 c + b1) + b2))), where skip is x, stretched by `ResampleNorm` if
    the widths differ. A context ``(..., context)`` is broadcast against x.

    Parameters
    ----------
    width, hidden, output : int
        Entries in, between the two linear layers, and out.
    dropout : float
        Dropout before the gate.
    context : int
        Entries of the context; 0 for none.
    """

    def __init__(self, width: int, hidden: int, output: int, dropout: float = 0.0, context: int = 0) -> None:
        super().__init__()
        self.resample = ResampleNorm(width, output) if width != output else None
        self.inner = nn.Linear(width, hidden)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.outer = nn.Linear(hidden, hidden)
        self.gate_norm = GateAddNorm(hidden, output, dropout)
        for linear in (self.inner, self.outer):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="leaky_relu")
            nn.init.zeros_(linear.bias)
        if self.context is not None:
            nn.init.xavier_uniform_(self.context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.finish(self.inner(x), x if self.resample is None else self.resample(x), context)

    def finish(self, inner: Tensor, skip: Tensor, context: Tensor | None = None) -> Tensor:
        """The map from W1 x + b1 ``(..., hidden)`` and skip ``(..., output)`` on."""
        if self.context is not None and context is not None:
            inner = inner + self.context(context)
        result: Tensor = self.gate_norm(self.outer(functional.elu(inner)), skip)
        return result

    def finish_by_entry(self, inner: Tensor, stretched: Tensor, context: Tensor | None = None) -> Tensor:
        """The same map of N = B T places with entries first, (hidden, N) and (output, N) -> (output, N).

        ``stretched`` is not scaled yet where the widths differ. For few entries, over which sums along the last axis are
        slow. ``context`` is ``(B, context)``, of all T places of a window.
        """
        if self.context is not None and context is not None:
            of_window = self.context(context).t()
            inner = (inner.unflatten(1, (len(context), -1)) + of_window[..., None]).flatten(1)
        hidden = self.outer.weight @ functional.elu(inner) + self.outer.bias[:, None]
        gate = self.gate_norm.gate
        opened = functional.glu(gate.linear.weight @ gate.dropout(hidden) + gate.linear.bias[:, None], dim=0)
        if self.resample is not None:
            stretched = _normalise(stretched * (2.0 * self.resample.mask.sigmoid())[:, None], self.resample.norm)
        return _normalise(opened + stretched, self.gate_norm.norm)


def _normalise(values: Tensor, norm: nn.LayerNorm) -> Tensor:
    """``norm`` over the first axis of ``(output, N)``."""
    values = values - values.mean(0)
    values = values * (values.square().mean(0) + norm.eps).rsqrt()
    return values * norm.weight[:, None] + norm.bias[:, None]
