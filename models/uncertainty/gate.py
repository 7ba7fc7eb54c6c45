"""The gate: is this input like what the model was trained on, and is this forecast certain enough to give?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.uncertainty.conformal import conformal_quantile
from models.uncertainty.ood import Mahalanobis, conformal_p_value


@dataclass(frozen=True)
class Gate:
    """Out-of-distribution p-values and an abstention threshold, both from one fold kept for it.

    Attributes
    ----------
    centre, spread : ``(D,)`` standardisation of the features by the training windows
    mahalanobis : distance on the standardised features
    scores : ``(n,)`` the gate fold's distances, against which p-values are counted
    alpha : nominal false-alarm rate
    uncertainty_limit : forecasts with a larger relative spread are withheld
    """

    centre: Tensor
    spread: Tensor
    mahalanobis: Mahalanobis
    scores: Tensor
    alpha: float
    uncertainty_limit: float

    @classmethod
    def fit(cls, train: Tensor, gate_fold: Tensor, uncertainty: Tensor, *, alpha: float, abstain_fraction: float) -> Gate:
        """Fit on features of training windows ``(m, D)``, of the gate fold ``(n, D)`` and its spreads ``(n,)``."""
        train = train.to(torch.float64)
        spread, centre = torch.std_mean(train, dim=0)
        spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
        mahalanobis = Mahalanobis.fit((train - centre) / spread)
        scores = mahalanobis.score((gate_fold.to(torch.float64) - centre) / spread)
        limit = float(conformal_quantile(uncertainty, 1 - abstain_fraction))
        return cls(centre, spread, mahalanobis, scores.sort().values, alpha, limit)

    def score(self, features: Tensor) -> Tensor:
        """Distance of each window ``(n, D)`` -> ``(n,)``."""
        return self.mahalanobis.score((features.to(torch.float64) - self.centre) / self.spread)

    def p_value(self, score: Tensor) -> Tensor:
        """Conformal p-value of each score, ``(n,)``."""
        return conformal_p_value(score, self.scores)

    @property
    def threshold(self) -> float:
        """The score above which the p-value is at most ``alpha``."""
        return float(conformal_quantile(self.scores, 1 - self.alpha))

    def is_ood(self, score: Tensor) -> Tensor:
        """Whether each window is flagged, bool ``(n,)``."""
        return self.p_value(score) <= self.alpha

    def abstain(self, score: Tensor, uncertainty: Tensor) -> Tensor:
        """Whether each forecast is withheld: strange input or a spread beyond the limit, bool ``(n,)``."""
        return self.is_ood(score) | (uncertainty > self.uncertainty_limit)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {
            "centre": self.centre,
            "spread": self.spread,
            "mean": self.mahalanobis.mean,
            "whiten": self.mahalanobis.whiten.contiguous(),
            "scores": self.scores,
            "limits": torch.tensor([self.alpha, self.uncertainty_limit], dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Gate:
        mahalanobis = Mahalanobis(tensors["mean"], tensors["whiten"])
        alpha, limit = tensors["limits"].tolist()
        return cls(tensors["centre"], tensors["spread"], mahalanobis, tensors["scores"], alpha, limit)
