"""Variable selection of the Temporal Fusion Transformer (Lim et al., 2021, section 4.2), all variables at once.

The paper gives each real variable v a gated residual network GRN_v and adds their outputs with weights that depend on
all variables: sum_v w_v GRN_v(e_v), e_v = p_v x_v + b_v. One network after the other, that is a Python loop over tens
of small matrices. Here the parameters of all networks lie in stacked tensors, with two consequences of x_v being one
number taken into account: every linear map of e_v is an affine function of x_v, and so is the skip connection, whose
LayerNorm then follows from x_v and five numbers a variable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.gated_residual import GatedResidual, ResampleNorm, interpolation
from models.layers.gated_sum import EPSILON, gated_sum
from models.layers.lookup import lookup_sum

__all__ = ["RealNetworks", "VariableSelection"]


class RealNetworks(nn.Module):
    """The gated residual networks of R real variables, stacked along the first axis of each parameter.

    Parameters
    ----------
    count : int
        Variables, R.
    width : int
        Entries that embed one number.
    output : int
        Entries of a network's output.
    dropout : float
        Dropout before each network's gate.
    """

    stretch: Tensor

    def __init__(self, count: int, width: int, output: int, dropout: float) -> None:
        super().__init__()
        hidden = min(width, output)
        self.dropout = Dropout(dropout)
        self.inner_weight = nn.Parameter(torch.randn(count, hidden, width) * (2.0 / width) ** 0.5)  # Kaiming, fan in
        self.inner_bias = nn.Parameter(torch.zeros(count, hidden))
        self.outer_weight = nn.Parameter(torch.randn(count, hidden, hidden) * (2.0 / hidden) ** 0.5)
        self.outer_bias = nn.Parameter(torch.zeros(count, hidden))
        bound = (6.0 / (hidden + 2 * output)) ** 0.5  # Xavier
        self.gate_weight = nn.Parameter(torch.empty(count, 2 * output, hidden).uniform_(-bound, bound))
        self.gate_bias = nn.Parameter(torch.zeros(count, 2 * output))
        self.norm_weight = nn.Parameter(torch.ones(count, output))
        self.norm_bias = nn.Parameter(torch.zeros(count, output))
        self.stretched = width != output
        if self.stretched:
            self.skip_mask = nn.Parameter(torch.zeros(count, output))
            self.skip_weight = nn.Parameter(torch.ones(count, output))
            self.skip_bias = nn.Parameter(torch.zeros(count, output))
            self.register_buffer("stretch", interpolation(width, output), persistent=False)

    def _skip(self, x: Tensor, slope: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Skip connection of e = ``slope`` x + ``start`` as a product: factors ``(R, N)`` twice, matrix ``(R, output, 3)``.

        The skip is ``matrix @ [1, first, second]``. Stretched and scaled it is p x + q; with p and q less their means,
        y = x + k, q' = q - k p, LayerNorm(p x + q) = weight (p y + q') / sqrt(var) + bias where
        var = mean(p^2) y^2 + 2 mean(p q') y + mean(q'^2) + epsilon. Any k is right; k = mean(p q) / mean(p^2) makes p and
        q' orthogonal, so that nothing cancels, and is a constant to the gradient.
        """
        if not self.stretched:
            return x, torch.zeros_like(x), torch.stack([start, slope, torch.zeros_like(slope)], dim=2)
        scale = 2.0 * self.skip_mask.sigmoid()
        p, q = (slope @ self.stretch) * scale, (start @ self.stretch) * scale
        p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
        with torch.no_grad():
            shift = (p * q).mean(1, keepdim=True) / p.square().mean(1, keepdim=True).clamp(min=1e-30)
            shift = shift.clamp(-1e4, 1e4)
        q = q - shift * p
        pp, pq, qq = ((a * b).mean(1, keepdim=True) for a, b in ((p, p), (p, q), (q, q)))
        y = x + shift
        inverse = torch.addcmul(qq + EPSILON, y, torch.addcmul(2.0 * pq, y, pp)).rsqrt()
        return y * inverse, inverse, torch.stack([self.skip_bias, self.skip_weight * p, self.skip_weight * q], dim=2)

    def forward(self, x: Tensor, slope: Tensor, start: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the networks' outputs ``(N, output)``.

        ``x`` and the selection ``weights`` are ``(R, N)``; ``slope`` and ``start`` ``(R, width)`` embed each variable.
        """
        inner = self.inner_weight @ torch.stack([slope, start], dim=2)
        inner = torch.stack([inner[..., 0], inner[..., 1] + self.inner_bias], dim=2)
        factors = self.dropout.factors((*self.inner_bias.shape, x.shape[1]), x)
        *rows, matrix = self._skip(x, slope, start)
        gate = torch.cat([self.gate_weight, self.gate_bias[..., None]], dim=2)
        return gated_sum(
            x,
            inner,
            self.outer_weight,
            self.outer_bias,
            factors,
            gate,
            (rows[0], rows[1]),
            matrix,
            self.norm_weight,
            self.norm_bias,
            weights,
        )


class VariableSelection(nn.Module):
    """Weighs variables against each other and adds their networks' outputs (Lim et al., equations 6 to 8).

    Categories come first, then reals. A category's network is its embedding, stretched and normalised (as in
    pytorch-forecasting), a small table that is made once and read by code; so is its part of the weights' network. A
    single variable has weight one, and where there is none the output is zero.

    Parameters
    ----------
    categories : sequence of (int, int)
        Codes and embedding width of each category.
    reals : int
        Number of real variables, R.
    real_width : int
        Entries that embed one real.
    output : int
        Entries of the output.
    dropout : float
        Dropout before every gate.
    context : int
        Entries of the context of the weights; 0 for none.
    """

    offsets: Tensor

    def __init__(
        self, categories: Sequence[tuple[int, int]], reals: int, real_width: int, output: int, dropout: float, context: int
    ) -> None:
        super().__init__()
        self.output, self.n_categories, self.count = output, len(categories), len(categories) + reals
        self.category_norms = nn.ModuleList(ResampleNorm(width, output) for _, width in categories)
        self.reals = RealNetworks(reals, real_width, output, dropout) if reals else None
        widths = [width for _, width in categories]
        self.splits = [*widths, reals * real_width]
        self.weigh: GatedResidual | None = None
        if self.count > 1:
            self.weigh = GatedResidual(sum(self.splits), min(output, self.count), self.count, dropout, context)
        first = torch.tensor([0, *(count for count, _ in categories)]).cumsum(0)[:-1]
        self.register_buffer("offsets", first, persistent=False)

    def forward(
        self, codes: Tensor, tables: Sequence[Tensor], x: Tensor, slope: Tensor, start: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select from C categories and R reals at T steps of B windows.

        Parameters
        ----------
        codes : Tensor
            int64 ``(B, T, C)``.
        tables : sequence of Tensor
            Embedding of each category, ``(codes, width)``.
        x : Tensor
            Reals ``(B, T, R)``.
        slope, start : Tensor
            Embedding of real v is ``slope[v] x + start[v]``; ``(R, real_width)`` each.
        context : Tensor, optional
            ``(B, context)``, of all steps of a window.

        Returns
        -------
        selected : Tensor
            ``(B, T, output)``.
        weights : Tensor
            ``(B, T, C + R)``, adding to one.
        """
        batch, steps = x.shape[:2]
        if self.count == 0:
            return x.new_zeros((batch, steps, self.output)), x.new_zeros((batch, steps, 0))
        codes, flat = (codes + self.offsets).flatten(0, 1), x.flatten(0, 1)
        if self.weigh is None:
            weights = x.new_ones((1, len(flat)))
        else:
            weights = self._weights(self.weigh, codes, tables, flat, slope, start, context)
        selected: Tensor | None = None
        if self.reals is not None:
            selected = self.reals(flat.t().contiguous(), slope, start, weights[self.n_categories :])
        if self.n_categories:
            parts = [norm(table) for norm, table in zip(self.category_norms, tables, strict=True)]
            by_category = weights[: self.n_categories].t()
            read = lookup_sum(codes, torch.cat(parts), by_category)
            selected = read if selected is None else selected + read
        assert selected is not None
        return selected.view(batch, steps, -1), weights.t().view(batch, steps, -1)

    def _weights(
        self,
        weigh: GatedResidual,
        codes: Tensor,
        tables: Sequence[Tensor],
        flat: Tensor,
        slope: Tensor,
        start: Tensor,
        context: Tensor | None,
    ) -> Tensor:
        """Selection weights ``(C + R, B T)``, without the long vector of all embeddings.

        Their network begins with two linear maps of that vector, W1 and the stretch of its skip connection; both are
        applied to each variable's embedding, which leaves one product with ``flat`` and one look-up a category.
        """
        hidden = weigh.inner.out_features
        joint = weigh.inner.weight.t()
        if weigh.resample is not None:
            joint = torch.cat([joint, weigh.resample.matrix], dim=1)
        else:
            joint = torch.cat([joint, torch.eye(len(joint), dtype=joint.dtype, device=joint.device)], dim=1)
        *by_category, by_real = joint.split(self.splits)
        by_real = by_real.view(*slope.shape, joint.shape[1])
        constant = (start[..., None] * by_real).sum((0, 1))
        both = torch.addmm(constant, flat, (slope[..., None] * by_real).sum(1))
        if self.n_categories:
            parts = [table @ part for table, part in zip(tables, by_category, strict=True)]
            both = both + lookup_sum(codes, torch.cat(parts))
        both = both.t().contiguous()
        inner, skip = both[:hidden] + weigh.inner.bias[:, None], both[hidden:]
        return weigh.finish_by_entry(inner, skip, context).softmax(dim=0)
