"""The hybrid of Mamba and attention: its window, causality, and the norms that keep the recurrence calm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.forecasters.hybrid import HybridBackbone
from models.forecasters.mamba import MambaBlock
from models.layers.attention import CausalAttention
from models.layers.state_space import no_weight_decay_parameters


def attend(layer: CausalAttention, x: Tensor) -> Tensor:
    """Windowed causal attention of one series (time, width), query by query and head by head."""
    query, key, value = (x @ layer.qkv_proj.weight.T).chunk(3, dim=-1)
    rows = []
    for t in range(x.shape[0]):
        seen = slice(max(0, t - layer.window + 1), t + 1)
        heads = []
        for h in range(layer.heads):
            part = slice(h * layer.head_size, (h + 1) * layer.head_size)
            weights = torch.softmax(key[seen, part] @ query[t, part] / layer.head_size**0.5, dim=0)
            heads.append(weights @ value[seen, part])
        rows.append(layer.out_proj.weight @ torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [1, 5, 16, 40])
def test_attention_equals_the_formula_within_its_window(window: int) -> None:
    torch.manual_seed(0)
    layer = CausalAttention(8, heads=2, window=window).double()
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    expected = torch.stack([attend(layer, series) for series in x])
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_attention_sees_its_window_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = CausalAttention(8, heads=2, window=6).double()
    x = torch.randn(2, 20, 8, dtype=torch.float64, requires_grad=True)
    output = layer(x)[:, 12]
    (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
    assert (gradient.abs().amax((0, 2)) > 0).nonzero().flatten().tolist() == [7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("step", [0, 7, 18])
@pytest.mark.parametrize("window", [5, 64])
def test_no_output_sees_a_later_input_and_all_see_the_first(step: int, window: int) -> None:
    torch.manual_seed(0)
    backbone = HybridBackbone(8, 4, state_size=4, conv_size=4, expand=2, heads=2, dropout=0.1, window=window).double()
    x = torch.randn(4, 20, 8, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
    size = gradient.abs().amax((0, 2))
    assert size[0] > 0 and size[step] > 0
    assert size[step + 1 :].max() == 0


@pytest.mark.parametrize(("layers", "middle"), [(2, 1), (3, 1), (5, 2), (8, 4)])
def test_one_attention_layer_stands_in_the_middle(layers: int, middle: int) -> None:
    backbone = HybridBackbone(8, layers, state_size=4, conv_size=4, expand=2, heads=2, dropout=0.0)
    kinds = [type(residual.block) for residual in backbone.blocks]
    assert [kind is CausalAttention for kind in kinds] == [layer == middle for layer in range(layers)]
    assert kinds.count(MambaBlock) == layers - 1


def test_norms_make_the_recurrence_deaf_to_the_size_of_dt_B_and_C() -> None:
    """RMSNorm takes out the scale: ten times larger projections change nothing, as they do in the plain block."""
    torch.manual_seed(0)
    x = torch.randn(2, 15, 8, dtype=torch.float64)
    changes = []
    for normalise in (True, False):
        block = MambaBlock(8, state_size=4, conv_size=4, expand=2, normalise=normalise).double()
        with torch.no_grad():
            before = block(x)
            block.x_proj.weight.mul_(10.0)
            changes.append(float((block(x) - before).abs().max() / before.abs().max()))
    assert changes[0] < 1e-2 < changes[1]


def test_every_parameter_learns_and_dynamics_escape_weight_decay() -> None:
    torch.manual_seed(0)
    backbone = HybridBackbone(8, 3, state_size=4, conv_size=4, expand=2, heads=2, dropout=0.1)
    backbone(torch.randn(4, 20, 8)).mul(torch.randn(4, 20, 8)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    expected = {f"blocks.{layer}.block.{name}" for layer in (0, 2) for name in ("A_log", "D")}
    assert no_weight_decay_parameters(backbone) == expected


def test_sizes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="layers must be at least 2"):
        HybridBackbone(8, 1, 4, 4, 2, 2, 0.0)
    with pytest.raises(ValueError, match="heads must divide width = 8, got 3"):
        HybridBackbone(8, 3, 4, 4, 2, 3, 0.0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        HybridBackbone(8, 3, 4, 4, 2, 2, 0.0, window=0)
