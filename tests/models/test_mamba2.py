"""The Mamba-2 block against the paper's recurrence, causality, and its initial values."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from models.forecasters.mamba2 import Mamba2Backbone, Mamba2Block
from models.layers.state_space import no_weight_decay_parameters


def paper(block: Mamba2Block, x: Tensor) -> Tensor:
    """One window (time, width) through a Mamba-2 block, step by step and head by head (Dao & Gu 2024, figure 6)."""
    parameters = dict(block.named_parameters())
    heads, inner = len(parameters["A_log"]), len(parameters["norm.weight"])
    size, state = inner // heads, block.state_size
    projected = x @ parameters["in_proj.weight"].T
    gate, branch, raw = projected[:, :inner], projected[:, inner:-heads], projected[:, -heads:]
    kernel, bias = parameters["convolution.convolution.weight"][:, 0], parameters["convolution.convolution.bias"]
    taps = kernel.shape[1]
    S = torch.zeros(heads, size, state, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[0]):
        mixed = bias.clone()
        for j in range(taps):
            if t - (taps - 1) + j >= 0:
                mixed = mixed + kernel[:, j] * branch[t - (taps - 1) + j]
        mixed = mixed * torch.sigmoid(mixed)
        B, C = mixed[inner : inner + state], mixed[inner + state :]
        y = torch.zeros(inner, dtype=x.dtype)
        for h in range(heads):
            u = mixed[h * size : (h + 1) * size]
            delta = torch.log1p(torch.exp(raw[t, h] + parameters["dt_bias"][h]))
            S[h] = torch.exp(-delta * torch.exp(parameters["A_log"][h])) * S[h] + delta * torch.outer(u, B)
            y[h * size : (h + 1) * size] = S[h] @ C + parameters["D"][h] * u
        gated = y * gate[t] * torch.sigmoid(gate[t])
        normed = gated / torch.sqrt(gated.square().mean() + 1e-5) * parameters["norm.weight"]
        outputs.append(parameters["out_proj.weight"] @ normed)
    return torch.stack(outputs)


@pytest.mark.parametrize(("width", "heads", "time"), [(6, 1, 1), (6, 4, 21), (8, 16, 37)])
def test_block_equals_the_recurrence_of_the_paper(width: int, heads: int, time: int) -> None:
    torch.manual_seed(0)
    block = Mamba2Block(width, state_size=3, conv_size=4, expand=2, heads=heads).double()
    with torch.no_grad():
        block.D.add_(torch.randn_like(block.D))
        block.norm.weight.add_(0.3 * torch.randn_like(block.norm.weight))
        x = torch.randn(2, time, width, dtype=torch.float64)
        expected = torch.stack([paper(block, window) for window in x])
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("step", [0, 7, 18, 38])
@pytest.mark.parametrize("training", [True, False])
def test_no_output_sees_a_later_input_and_all_see_the_first(step: int, training: bool) -> None:
    torch.manual_seed(0)
    backbone = Mamba2Backbone(8, 2, state_size=4, conv_size=4, expand=2, heads=4, dropout=0.1).double().train(training)
    x = torch.randn(4, 40, 8, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
    size = gradient.abs().amax((0, 2))
    assert size[0] > 0 and size[step] > 0
    assert size[step + 1 :].max() == 0


def test_initial_values_follow_the_authors() -> None:
    torch.manual_seed(0)
    block = Mamba2Block(width=64, state_size=8, conv_size=4, expand=2, heads=128)
    transition = block.A_log.detach().exp()
    assert transition.min() >= 1 and transition.max() <= 16 * (1 + 1e-5)
    # The mean of 128 uniform draws in [1, 16]: standard error 15 / sqrt(12 * 128); four of them.
    assert abs(float(transition.mean()) - 8.5) < 4 * 15 / math.sqrt(12 * 128)
    step = torch.nn.functional.softplus(block.dt_bias.double())
    # Round trip in float32 through the inverse softplus: relative error of some 1e-7 / 1e-3.
    assert step.min() >= 1e-3 * (1 - 1e-3) and step.max() <= 1e-1 * (1 + 1e-3)
    assert torch.equal(block.D, torch.ones(128))


def test_weight_decay_spares_the_dynamics_also_on_a_copy() -> None:
    backbone = Mamba2Backbone(8, 2, state_size=4, conv_size=4, expand=2, heads=2, dropout=0.0)
    expected = {f"blocks.{layer}.block.{name}" for layer in range(2) for name in ("A_log", "D", "dt_bias")}
    assert no_weight_decay_parameters(backbone) == expected
    assert no_weight_decay_parameters(copy.deepcopy(backbone)) == expected


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    backbone = Mamba2Backbone(8, 2, state_size=4, conv_size=4, expand=2, heads=4, dropout=0.1)
    backbone(torch.randn(4, 20, 8)).mul(torch.randn(4, 20, 8)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_autocast_leaves_the_output_near_full_precision() -> None:
    """bfloat16 keeps 8 bits, so a relative error of 2^-8 an operation; some ten of them in a row here."""
    torch.manual_seed(0)
    backbone = Mamba2Backbone(8, 1, state_size=4, conv_size=4, expand=2, heads=4, dropout=0.0).eval()
    x = torch.randn(2, 30, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(x).float()
    assert (found - backbone(x)).abs().max() < 10 * 2**-8 * backbone(x).abs().max()


def test_sizes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="heads must divide expand \\* width = 16, got 3"):
        Mamba2Backbone(8, 1, state_size=4, conv_size=4, expand=2, heads=3, dropout=0.0)
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        Mamba2Backbone(8, 1, state_size=4, conv_size=4, expand=2, heads=0, dropout=0.0)
