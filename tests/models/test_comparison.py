"""The paired block bootstrap: what it finds in simulated losses, and that blocks, not windows, carry the evidence."""

from __future__ import annotations

import pytest
import torch

from models.uncertainty.comparison import paired_block_bootstrap


def losses(seed: int, blocks: int = 26, each: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of windows whose block sets their level, and the blocks' names."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.exp(0.5 * torch.randn(blocks, generator=generator)).repeat_interleave(each)
    noise = torch.exp(0.3 * torch.randn(blocks * each, generator=generator))
    return level * noise, torch.arange(blocks).repeat_interleave(each)


def test_a_uniform_gain_is_found_exactly() -> None:
    old, block = losses(0)
    found = paired_block_bootstrap(old, 0.9 * old, block)
    assert found.change == pytest.approx(-0.1) and found.lower == pytest.approx(-0.1) and found.upper == pytest.approx(-0.1)
    assert found.better == 1.0
    assert paired_block_bootstrap(old, 1.01 * old, block).better == 0.0
    assert paired_block_bootstrap(old, old, block).better == 0.0, "no better is not better"


def test_equals_win_as_often_as_the_confidence_lets_them() -> None:
    """Two forecasters of one quality: at 0.9 about a tenth of 200 contests lets the challenger through."""
    through = 0
    for seed in range(200):
        old, block = losses(seed)
        shift = 0.1 * torch.randn(26, generator=torch.Generator().manual_seed(1000 + seed)).repeat_interleave(20)
        through += paired_block_bootstrap(old, old * (1 + shift), block, resamples=300).better >= 0.9
    assert 8 <= through <= 36  # binomial(200, 0.1) within four deviations


def test_windows_of_one_block_do_not_count_as_independent() -> None:
    """All windows of a block move together: drawing windows instead of blocks would be surer than it may be."""
    old, block = losses(3)
    shift = 0.1 * torch.randn(26, generator=torch.Generator().manual_seed(9)).repeat_interleave(20)
    new = old * (1 + shift)
    by_block, by_window = (paired_block_bootstrap(old, new, names) for names in (block, torch.arange(len(old))))
    assert by_block.upper - by_block.lower > 2 * (by_window.upper - by_window.lower)


def test_what_cannot_be_compared_is_told() -> None:
    old, block = losses(0)
    with pytest.raises(ValueError, match="520 and 519 losses in 520 blocks"):
        paired_block_bootstrap(old, old[1:], block)
    with pytest.raises(ValueError, match="at least two blocks"):
        paired_block_bootstrap(old, old, torch.zeros(520))
