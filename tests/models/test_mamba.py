"""The Mamba block against the paper's recurrence, causality, and its initial values."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from models.forecasters.mamba import MambaBackbone, MambaBlock, no_weight_decay_parameters


def paper(block: MambaBlock, x: Tensor) -> Tensor:
    """One window (time, width) through a Mamba block, step by step and channel by channel (Gu & Dao 2023)."""
    parameters = dict(block.named_parameters())
    inner, state = parameters["A_log"].shape
    rank = parameters["dt_proj.weight"].shape[1]
    projected = x @ parameters["in_proj.weight"].T
    branch, gate = projected[:, :inner], projected[:, inner:]
    kernel, bias = parameters["convolution.convolution.weight"][:, 0], parameters["convolution.convolution.bias"]
    taps = kernel.shape[1]
    h = torch.zeros(inner, state, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[0]):
        mixed = bias.clone()
        for j in range(taps):
            if t - (taps - 1) + j >= 0:
                mixed = mixed + kernel[:, j] * branch[t - (taps - 1) + j]
        u = mixed * torch.sigmoid(mixed)
        selected = parameters["x_proj.weight"] @ u
        step, B, C = selected[:rank], selected[rank : rank + state], selected[rank + state :]
        raw = parameters["dt_proj.weight"] @ step + parameters["dt_proj.bias"]
        delta = torch.log1p(torch.exp(raw))
        y = torch.zeros(inner, dtype=x.dtype)
        for e in range(inner):
            h[e] = torch.exp(-delta[e] * torch.exp(parameters["A_log"][e])) * h[e] + delta[e] * B * u[e]
            y[e] = C @ h[e] + parameters["D"][e] * u[e]
        outputs.append(parameters["out_proj.weight"] @ (y * gate[t] * torch.sigmoid(gate[t])))
    return torch.stack(outputs)


def randomise(block: MambaBlock) -> None:
    """Move A_log and D off their initial values, which would hide a mix-up of channels."""
    with torch.no_grad():
        block.A_log.add_(0.3 * torch.randn_like(block.A_log))
        block.D.add_(torch.randn_like(block.D))


@pytest.mark.parametrize(("width", "time"), [(6, 1), (6, 21), (18, 17)])
def test_block_equals_the_recurrence_of_the_paper(width: int, time: int) -> None:
    torch.manual_seed(0)
    block = MambaBlock(width, state_size=3, conv_size=4, expand=2).double()
    randomise(block)
    x = torch.randn(2, time, width, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([paper(block, window) for window in x])
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("step", [0, 7, 18])
@pytest.mark.parametrize("training", [True, False])
def test_no_output_sees_a_later_input_and_all_see_the_first(step: int, training: bool) -> None:
    torch.manual_seed(0)
    backbone = MambaBackbone(8, layers=2, state_size=4, conv_size=4, expand=2, dropout=0.1).double().train(training)
    x = torch.randn(4, 20, 8, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
    size = gradient.abs().amax((0, 2))
    assert size[0] > 0 and size[step] > 0
    assert size[step + 1 :].max() == 0


def test_a_prefix_gives_the_prefix_of_the_output() -> None:
    torch.manual_seed(0)
    backbone = MambaBackbone(8, layers=2, state_size=4, conv_size=3, expand=2, dropout=0.0).double().eval()
    x = torch.randn(3, 40, 8, dtype=torch.float64)
    torch.testing.assert_close(backbone(x)[:, :17], backbone(x[:, :17]))


def test_initial_values_follow_the_paper() -> None:
    torch.manual_seed(0)
    block = MambaBlock(width=40, state_size=5, conv_size=4, expand=2)
    assert block.dt_proj.in_features == math.ceil(40 / 16) == 3
    assert block.x_proj.out_features == 3 + 2 * 5
    torch.testing.assert_close(-torch.exp(block.A_log), -torch.arange(1.0, 6.0).repeat(80, 1))
    assert torch.equal(block.D, torch.ones(80))
    step = torch.nn.functional.softplus(block.dt_proj.bias.double())
    # Round trip in float32 through the inverse softplus: relative error of some 1e-7 / 1e-3.
    assert step.min() >= 1e-3 * (1 - 1e-3) and step.max() <= 1e-1 * (1 + 1e-3)
    # The mean of 80 uniform draws of log step: standard error log(100) / sqrt(12 * 80) = 0.149; four of them.
    assert abs(step.log().mean() - math.log(1e-2)) < 4 * math.log(100) / math.sqrt(12 * 80)


def test_weight_decay_spares_the_dynamics_also_on_a_copy() -> None:
    backbone = MambaBackbone(8, layers=2, state_size=4, conv_size=4, expand=2, dropout=0.0)
    expected = {f"blocks.{layer}.block.{name}" for layer in range(2) for name in ("A_log", "D")}
    assert no_weight_decay_parameters(backbone) == expected
    assert no_weight_decay_parameters(copy.deepcopy(backbone)) == expected
    assert expected <= dict(backbone.named_parameters()).keys()
    assert no_weight_decay_parameters(MambaBlock(8, 4, 4, 2)) == {"A_log", "D"}
    assert no_weight_decay_parameters(torch.nn.Linear(2, 2)) == set()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    backbone = MambaBackbone(8, layers=2, state_size=4, conv_size=4, expand=2, dropout=0.1)
    backbone(torch.randn(4, 20, 8)).square().mul(torch.randn(4, 20, 8)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    backbone = MambaBackbone(8, layers=1, state_size=4, conv_size=4, expand=2, dropout=0.5)
    x = torch.randn(2, 12, 8)
    assert not torch.equal(backbone(x), backbone(x))
    backbone.eval()
    assert torch.equal(backbone(x), backbone(x))


def test_a_size_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="state_size must be at least 1, got 0"):
        MambaBackbone(8, layers=1, state_size=0, conv_size=4, expand=2, dropout=0.0)
