"""Out-of-distribution scores on encoder features, with thresholds as conformal p-values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mahalanobis:
    """Squared Mahalanobis distance to the training windows (Lee et al., 2018, one class), Ledoit-Wolf covariance.

    ``mean`` ``(D,)`` and ``whiten`` ``(D, D)``, the inverse Cholesky factor of the covariance, both float64.
    """

    mean: Tensor
    whiten: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Mahalanobis:
        """Fit on features ``(n, D)``; shrinkage keeps the covariance regular where features are constant."""
        from sklearn.covariance import LedoitWolf

        features = features.to(torch.float64)
        estimate = LedoitWolf().fit(features.numpy())
        covariance = torch.from_numpy(estimate.covariance_)
        covariance = covariance + 1e-9 * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(covariance), dtype=torch.float64)
        return cls(torch.from_numpy(estimate.location_), torch.linalg.solve_triangular(factor, identity, upper=False))

    def score(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n,)``; larger is stranger."""
        return ((features.to(torch.float64) - self.mean) @ self.whiten.T).square().sum(-1)


def conformal_p_value(scores: Tensor, calibration: Tensor) -> Tensor:
    """``(1 + #{calibration >= s}) / (n + 1)`` of each score ``(m,)``: at most alpha with probability alpha.

    Valid where the calibration windows ``(n,)`` and the new one are exchangeable (Bates et al., 2023).
    """
    ordered = calibration.to(torch.float64).sort().values
    smaller = torch.searchsorted(ordered, scores.to(torch.float64).contiguous())
    return (1 + len(ordered) - smaller).to(torch.float64) / (len(ordered) + 1)
