"""Packed linear layers are the layers they stand for, for any number of rows, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.forecasters.binned_paths import can_compile, inference_copy
from models.forecasters.tcn import TCNBackbone
from models.layers.packed import PackedLinear, pack_linear_layers


@pytest.mark.parametrize("rows", [(), (1,), (2,), (5,), (3, 7), (40,)])
@pytest.mark.parametrize(("width", "dtype"), [(96, torch.float32), (8, torch.float32), (96, torch.float64)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_linear_layer(rows: tuple[int, ...], width: int, dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(width + 3, width, dtype=dtype), torch.randn(*rows, width, dtype=dtype)
    bias = torch.randn(width + 3, dtype=dtype) if with_bias else None
    torch.testing.assert_close(PackedLinear(weight, bias)(x), functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_every_linear_layer_within_is_packed() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(80, 80), nn.Sequential(nn.GELU(), nn.Linear(80, 4)))
    x = torch.randn(6, 80)
    expected = module(x)
    pack_linear_layers(module)
    assert not any(isinstance(part, nn.Linear) for part in module.modules())
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_a_copy_for_inference_leaves_its_original_as_it_was() -> None:
    torch.manual_seed(0)
    original = TCNBackbone(64, 2, 3, 0.0).eval()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    x = torch.randn(2, 9, 64)
    copied = inference_copy(original)
    torch.testing.assert_close(copied(x), original(x), rtol=1e-4, atol=1e-5)
    assert original.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    original(x).sum().backward()  # still learns


def test_a_compiled_layer_is_the_same() -> None:
    torch.manual_seed(0)
    layer = PackedLinear(torch.randn(80, 96), torch.randn(80))
    x = torch.randn(5, 96)
    run = torch.compile(layer, dynamic=False) if can_compile() else layer  # as `PathSampler` does
    with torch.no_grad():
        torch.testing.assert_close(run(x), layer(x), rtol=1e-5, atol=1e-5)
