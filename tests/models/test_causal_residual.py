"""The residual block of matrix products beside its definition, and a TCN that computes its last outputs alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.forecasters import tcn
from models.forecasters.tcn import TCNBackbone
from models.layers.causal_residual import Convolution, causal_residual, causal_residual_reference, keep_channels


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return torch.autograd.grad(output, inputs, weight)


@pytest.mark.parametrize(("steps", "wanted", "dilation"), [(20, 5, 2), (20, 20, 3), (9, 4, 8), (3, 1, 1)])
@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_block_equals_its_definition_in_values_and_gradients(
    steps: int, wanted: int, dilation: int, probability: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(steps, 6, 4, dtype=torch.float64, requires_grad=True)
    parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 4, 3), (4,)) * 2]
    first: Convolution = (parameters[0], parameters[1], keep_channels(6, 4, probability, x))
    second: Convolution = (parameters[2], parameters[3], keep_channels(6, 4, probability, x))
    factor = 1.0 / (1.0 - probability)
    fast = causal_residual(x, first, second, dilation, wanted, factor)
    slow = causal_residual_reference(x, first, second, dilation, wanted, factor)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, [x, *parameters]), gradients(slow, [x, *parameters]))


@pytest.mark.parametrize(("steps", "wanted"), [(60, 5), (29, 1), (12, 12), (2, 2), (40, 20)])
@pytest.mark.parametrize("training", [True, False])
def test_last_outputs_equal_the_end_of_the_full_pass(steps: int, wanted: int, training: bool) -> None:
    torch.manual_seed(0)
    backbone = TCNBackbone(8, 3, 3, dropout=0.3).double().train(training)
    project = nn.Linear(5, 8).double()
    inputs = torch.randn(7, steps, 5, dtype=torch.float64, requires_grad=True)
    variables = [inputs, *project.parameters(), *backbone.parameters()]
    torch.manual_seed(1)
    slow = backbone(project(inputs))[:, -wanted:]
    torch.manual_seed(1)
    fast = backbone.last(inputs, wanted, project)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, variables), gradients(slow, variables))


def test_last_outputs_of_a_large_batch_equal_those_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcn, "NUMBERS_AT_A_TIME", 2 * 30 * 8)
    backbone = TCNBackbone(8, 3, 3, dropout=0.3).eval()
    inputs = torch.randn(5, 30, 8)
    torch.testing.assert_close(backbone.last(inputs, 2, nn.Identity()), backbone(inputs)[:, -2:])


def test_kept_channels_are_those_of_torch() -> None:
    x = torch.ones(50, 8, 3)
    torch.manual_seed(4)
    dropped = nn.Dropout1d(0.3)(x)
    torch.manual_seed(4)
    kept = keep_channels(50, 8, 0.3, x)
    assert kept is not None
    assert torch.equal(dropped[..., 0] > 0, kept)
