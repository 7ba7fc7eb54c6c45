"""Out-of-distribution scores on encoder features, with thresholds as conformal p-values.

Scores on categorical logits and on neighbours are in `models.uncertainty.ood_logits` and `models.uncertainty.neighbours`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Mahalanobis",
    "RelativeMahalanobis",
    "TiedMahalanobis",
    "check_features",
    "conformal_p_value",
    "constant_features",
]


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
        features = features.to(torch.float64)
        mean = features.mean(0)
        return cls(mean, _whitening(features - mean))

    def score(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n,)``; larger is stranger."""
        return ((features.to(torch.float64) - self.mean) @ self.whiten.T).square().sum(-1)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {"mean": self.mean, "whiten": self.whiten}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Mahalanobis:
        return cls(state["mean"], state["whiten"])


@dataclass(frozen=True)
class TiedMahalanobis:
    """Squared Mahalanobis distance to the nearest class mean, all classes with one covariance (Lee et al., 2018).

    Classes are what the training windows divide into: series or groups. ``means`` ``(C, D)``, ``whiten`` ``(D, D)``.
    """

    means: Tensor
    whiten: Tensor

    @classmethod
    def fit(cls, features: Tensor, classes: Tensor, shrinkage: float | None = None) -> TiedMahalanobis:
        """Fit on features ``(n, D)`` and their ``classes`` ``(n,)``.

        Features should be standardised, since covariances are shrunk towards a multiple of the identity: by
        ``shrinkage`` in [0, 1], Ledoit and Wolf's (2004) where left out. Warns of features that do not vary. Raises
        ValueError for missing or infinite features, or with ``shrinkage`` 0 for a singular covariance.
        """
        features = check_features(features)
        index = torch.unique(classes, return_inverse=True)[1]
        count = torch.bincount(index).to(torch.float64)
        means = torch.zeros((len(count), features.shape[1]), dtype=torch.float64).index_add_(0, index, features)
        means = means / count[:, None]
        return cls(means, _whitening(features - means[index], shrinkage))

    def score(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n,)``; larger is stranger."""
        white = features.to(torch.float64) @ self.whiten.T
        distances = [(white - centre).square().sum(-1) for centre in self.means @ self.whiten.T]
        return torch.stack(distances).amin(0)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {"means": self.means, "whiten": self.whiten}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> TiedMahalanobis:
        return cls(state["means"], state["whiten"])


@dataclass(frozen=True)
class RelativeMahalanobis:
    """Distance to the nearest class less that to all training windows together: what is unlike each class, not merely rare.

    Directions in which classes do not differ cancel, so that near misses are not drowned by them. Ren et al., "A Simple
    Fix to Mahalanobis Distance for Improving Near-OOD Detection" (2021), equation 3.
    """

    classes: TiedMahalanobis
    background: Mahalanobis

    @classmethod
    def fit(cls, features: Tensor, classes: Tensor, shrinkage: float | None = None) -> RelativeMahalanobis:
        """As `TiedMahalanobis.fit`; raises ValueError besides for one class, where the score would be about 0 for all."""
        if len(classes.unique()) < 2:
            raise ValueError("relative Mahalanobis distance compares classes of training windows; there is only one")
        tied = TiedMahalanobis.fit(features, classes, shrinkage)
        centre = features.to(torch.float64).mean(0)
        return cls(tied, Mahalanobis(centre, _whitening(features.to(torch.float64) - centre, shrinkage)))

    def score(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n,)``; larger is stranger, and below 0 is common."""
        return self.classes.score(features) - self.background.score(features)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        background = {f"background_{name}": values for name, values in self.background.state().items()}
        return {**self.classes.state(), **background}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> RelativeMahalanobis:
        background = {name: state[f"background_{name}"] for name in ("mean", "whiten")}
        return cls(TiedMahalanobis.from_state(state), Mahalanobis.from_state(background))


def conformal_p_value(scores: Tensor, calibration: Tensor) -> Tensor:
    """``(1 + #{calibration >= s}) / (n + 1)`` of each score ``(m,)``: at most alpha with probability alpha.

    Valid where the calibration windows ``(n,)`` and the new one are exchangeable (Bates et al., 2023).
    """
    ordered = calibration.to(torch.float64).sort().values
    smaller = torch.searchsorted(ordered, scores.to(torch.float64).contiguous())
    return (1 + len(ordered) - smaller).to(torch.float64) / (len(ordered) + 1)


def constant_features(features: Tensor) -> list[int]:
    """Columns of features ``(n, D)`` that have one value in all windows, to rounding."""
    features = features.to(torch.float64)
    size = features.abs().amax(0)
    return ((features.amax(0) - features.amin(0)) <= 1e-12 * size).nonzero()[:, 0].tolist()


def check_features(features: Tensor) -> Tensor:
    """Features ``(n, D)`` in float64; ValueError where they are missing or infinite, a warning where they do not vary."""
    features = features.to(torch.float64)
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features of training windows must be finite; some are missing or infinite")
    constant = constant_features(features)
    if constant:
        places = ", ".join(str(column) for column in constant)
        warnings.warn(
            f"features {places} of {features.shape[1]} do not vary over the training windows; they say nothing there, and "
            "any other value later counts as strange",
            stacklevel=3,
        )
    return features


def _whitening(centred: Tensor, shrinkage: float | None = None) -> Tensor:
    """Inverse Cholesky factor ``(D, D)`` of the shrunk covariance of ``centred`` ``(n, D)``, whose mean is 0."""
    from sklearn.covariance import LedoitWolf, shrunk_covariance

    if shrinkage is None:
        covariance = torch.from_numpy(LedoitWolf(assume_centered=True).fit(centred.numpy()).covariance_)
        ridge = 1e-9 * covariance.diagonal().mean().clamp(min=1e-12)
        covariance = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    else:
        empirical = (centred.T @ centred / len(centred)).numpy()
        covariance = torch.from_numpy(shrunk_covariance(empirical, shrinkage=shrinkage))
    identity = torch.eye(len(covariance), dtype=torch.float64)
    try:
        factor = torch.linalg.cholesky(covariance)
    except torch.linalg.LinAlgError as error:
        raise ValueError("the covariance of the features is singular; shrinkage above 0 makes it regular") from error
    return torch.linalg.solve_triangular(factor, identity, upper=False).contiguous()
