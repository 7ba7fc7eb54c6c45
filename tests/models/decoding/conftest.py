"""Panel and schema of the tests of models/, with autoregressive forecasters on bins over them."""

from __future__ import annotations

import pytest
import torch

from models.panel import Batch, Panel, Windows


@pytest.fixture
def batch(panel: Panel) -> Batch:
    """Four windows in float64, the last with less history than the context."""
    gathered = panel.gather(Windows(torch.tensor([0, 0, 1, 2]), torch.tensor([30, 41, 20, 5])))
    return {name: value.double() if value.is_floating_point() else value for name, value in gathered.items()}
