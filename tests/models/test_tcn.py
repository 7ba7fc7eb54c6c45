"""Causal convolutions and the TCN: what an output may see, and how far back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.forecasters.tcn import TCNBackbone
from models.layers.causal_conv import CausalConv1d, receptive_field


def sensitivity(backbone: nn.Module, time: int, step: int) -> Tensor:
    """Largest gradient of output `step` with respect to each of `time` inputs, over a batch of 8 random windows."""
    x = torch.randn(8, time, 8, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    weight = torch.rand(output.shape, dtype=torch.float64) + 0.5
    (gradient,) = torch.autograd.grad(output, x, weight)
    return gradient.abs().amax((0, 2))


def test_convolution_equals_its_defining_sum() -> None:
    """y[t] = bias + sum_j weight[j] x[t - (k - 1 - j) d], with zeros before the start."""
    torch.manual_seed(0)
    layer = CausalConv1d(2, 3, kernel_size=3, dilation=2).double()
    x = torch.randn(4, 2, 9, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    weight, bias = parameters["convolution.weight"], parameters["convolution.bias"]
    expected = bias[None, :, None].repeat(4, 1, 9)
    for t in range(9):
        for j in range(3):
            source = t - (2 - j) * 2
            if source >= 0:
                expected[:, :, t] = expected[:, :, t] + x[:, :, source] @ weight[:, :, j].T
    torch.testing.assert_close(layer(x), expected)


def test_depthwise_convolution_keeps_channels_apart() -> None:
    layer = CausalConv1d(4, 4, kernel_size=3, groups=4)
    x = torch.randn(1, 4, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 2].sum(), x)
    assert gradient[0, 2].abs().sum() > 0
    assert gradient[0, [0, 1, 3]].abs().sum() == 0


def test_weight_norm_keeps_the_kernel_length_in_its_own_parameter() -> None:
    layer = CausalConv1d(2, 2, kernel_size=3, weight_norm=True)
    x = torch.randn(1, 2, 5)
    before = layer(x) - layer(torch.zeros_like(x))
    with torch.no_grad():
        dict(layer.named_parameters())["convolution.parametrizations.weight.original0"].mul_(2.0)
    torch.testing.assert_close(layer(x) - layer(torch.zeros_like(x)), 2.0 * before)


@pytest.mark.parametrize(("kernel_size", "levels"), [(2, 1), (2, 4), (3, 3), (5, 2)])
def test_receptive_field_by_gradient_equals_the_formula(kernel_size: int, levels: int) -> None:
    torch.manual_seed(0)
    backbone = TCNBackbone(8, levels, kernel_size, dropout=0.0).double().eval()
    expected = 1 + 2 * (kernel_size - 1) * (2**levels - 1)
    assert backbone.receptive_field == expected
    time = expected + 5
    seen = sensitivity(backbone, time, time - 1).nonzero().flatten()
    assert seen.min() == time - expected
    assert seen.max() == time - 1


def test_receptive_field_counts_the_convolutions_of_a_block() -> None:
    assert receptive_field(3, [1, 2, 4]) == 29
    assert receptive_field(3, [1, 2, 4], convolutions_per_block=1) == 15


@pytest.mark.parametrize("step", [0, 7, 18])
@pytest.mark.parametrize("training", [True, False])
def test_no_output_sees_a_later_input(step: int, training: bool) -> None:
    torch.manual_seed(0)
    backbone = TCNBackbone(8, 3, 3, dropout=0.2).double().train(training)
    gradient = sensitivity(backbone, 20, step)
    assert gradient[step] > 0
    assert gradient[step + 1 :].abs().max() == 0


def test_a_window_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    backbone = TCNBackbone(8, 2, 3, dropout=0.0).double().train()
    x = torch.randn(5, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(backbone(x)[2:3], backbone(x[2:3]))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    backbone = TCNBackbone(8, 2, 3, dropout=0.5)
    x = torch.randn(2, 12, 8)
    assert not torch.equal(backbone(x), backbone(x))
    backbone.eval()
    assert torch.equal(backbone(x), backbone(x))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size and dilation must be at least 1"):
        CausalConv1d(2, 2, kernel_size=0)
    for sizes in ((0, 2, 3), (8, 0, 3), (8, 2, 1)):
        with pytest.raises(ValueError, match="must be at least 1"):
            TCNBackbone(*sizes, dropout=0.0)
