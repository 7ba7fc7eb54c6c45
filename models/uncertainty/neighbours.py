"""Out-of-distribution score by the distance to the k-th nearest training window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.uncertainty.ood import check_features

__all__ = ["NearestNeighbours"]

CELLS = 4_000_000
"""Distances that are held at a time."""


@dataclass(frozen=True)
class NearestNeighbours:
    """Distance to the k-th nearest training window (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", 2022), which assumes no shape of the training features.

    Features are standardised by the training windows' ``centre`` and ``spread`` ``(D,)`` and, as the paper has it, brought
    to unit length, which compares directions; ``unit_length`` off keeps how far out a window lies, as features like level
    and scale need. ``bank`` ``(n, D)`` has the training windows so normalised.
    """

    centre: Tensor
    spread: Tensor
    bank: Tensor
    k: int
    unit_length: bool

    @classmethod
    def fit(cls, features: Tensor, k: int = 10, unit_length: bool = True) -> NearestNeighbours:
        """Fit on features ``(n, D)``.

        Warns of features that do not vary. Raises ValueError for missing or infinite features, or unless 1 <= k <= n.
        """
        features = check_features(features)
        if not 1 <= k <= len(features):
            raise ValueError(f"k of the nearest neighbours must be between 1 and the {len(features)} training windows, got {k}")
        spread, centre = torch.std_mean(features, dim=0, correction=0)
        spread = torch.where(spread > 1e-12 * centre.abs(), spread, torch.ones_like(spread))
        return cls(centre, spread, _normalised(features, centre, spread, unit_length), k, unit_length)

    def score(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n,)``; larger is stranger. Exact, a chunk of windows at a time.

        A window that is itself in the bank counts as its own nearest neighbour.
        """
        features = _normalised(features.to(torch.float64), self.centre, self.spread, self.unit_length)
        chunks = features.split(max(1, CELLS // len(self.bank)))
        return torch.cat([self._kth_distance(chunk) for chunk in chunks])

    def _kth_distance(self, features: Tensor) -> Tensor:
        distance = torch.cdist(features, self.bank, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.kthvalue(self.k, dim=1).values

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        settings = torch.tensor([self.k, int(self.unit_length)])
        return {"centre": self.centre, "spread": self.spread, "bank": self.bank.contiguous(), "settings": settings}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> NearestNeighbours:
        k, unit_length = state["settings"].tolist()
        return cls(state["centre"], state["spread"], state["bank"], k, bool(unit_length))


def _normalised(features: Tensor, centre: Tensor, spread: Tensor, unit_length: bool) -> Tensor:
    features = (features - centre) / spread
    return torch.nn.functional.normalize(features, dim=1) if unit_length else features
