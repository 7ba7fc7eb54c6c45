"""Attention in blocks beside its definition, with every way of masking and with scores of any size."""

from __future__ import annotations

import pytest
import torch

from models.layers import shared_value_attention as module
from models.layers.interpretable_attention import InterpretableAttention, decoder_mask
from models.layers.shared_value_attention import shared_value_attention, shared_value_attention_reference

LENGTHS = torch.tensor([12, 3, 1, 7, 5])


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("size", [1.0, 40.0])
@pytest.mark.parametrize("scores_at_a_time", [1, 10**9])
def test_equals_its_definition_in_values_and_gradients(
    lengths: torch.Tensor | None, size: float, scores_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``size`` 40 makes scores of thousands, whose exponentials float64 does not hold."""
    monkeypatch.setattr(module, "SCORES", scores_at_a_time)
    torch.manual_seed(0)
    shapes = ((5, 7, 12), (5, 19, 12), (5, 19, 6))
    query, key, value = (torch.randn(shape, dtype=torch.float64).mul_(size).requires_grad_() for shape in shapes)
    mask = decoder_mask(12, 7, lengths)
    fast = shared_value_attention(query, key, value, mask, heads=3)
    slow, _ = shared_value_attention_reference(query, key, value, mask, heads=3)
    torch.testing.assert_close(fast, slow)
    above = torch.randn_like(fast)
    gradients = (torch.autograd.grad(read, [query, key, value], above) for read in (fast, slow))
    torch.testing.assert_close(next(gradients), next(gradients), rtol=1e-6, atol=1e-7 * size)


def test_weights_are_those_that_the_result_was_read_with() -> None:
    torch.manual_seed(0)
    attention = InterpretableAttention(12, heads=3).eval()
    queries, steps = torch.randn(5, 7, 12), torch.randn(5, 19, 12)
    mask = decoder_mask(12, 7, LENGTHS)
    weights = attention.weights(queries, steps, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 7, 3))
    assert bool((weights.transpose(1, 2).masked_select(mask[:, None]) == 0).all())
    expected = attention.output(weights.mean(2) @ attention.value(steps))
    torch.testing.assert_close(attention(queries, steps, mask), expected)
