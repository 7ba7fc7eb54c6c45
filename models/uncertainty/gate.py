"""The gate: is this input like what the model was trained on, and is this forecast certain enough to give?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from models.uncertainty.abstention import Abstention, ExpectedError
from models.uncertainty.conformal import conformal_quantile
from models.uncertainty.descriptors import DESCRIPTORS
from models.uncertainty.neighbours import NearestNeighbours
from models.uncertainty.ood import Mahalanobis, conformal_p_value
from models.uncertainty.tail import TailProbability

__all__ = ["Gate", "Standardisation"]

NEIGHBOURS = 5
WEIGHTS = (0.2, 0.8)  # of the encoder and the descriptors in the alarm rate that they share
HALVES = 40  # stretches of training windows that alternate between fitting distances and ranking them
SPREAD_FLOOR = 0.05  # of descriptors, which are all of order one: less than this is not called strange


@dataclass(frozen=True)
class Standardisation:
    """``(x - centre) / spread`` by column, ``(D,)`` each; ``tame`` bends what is far out to its logarithm, by asinh."""

    centre: Tensor
    spread: Tensor
    tame: bool

    @classmethod
    def fit(cls, features: Tensor) -> Standardisation:
        """By mean and standard deviation of ``(n, D)``; a constant column keeps its unit."""
        spread, centre = torch.std_mean(features.to(torch.float64), dim=0, correction=0)
        return cls(centre, torch.where(spread > 1e-9, spread, torch.ones_like(spread)), False)

    @classmethod
    def fit_robust(cls, features: Tensor) -> Standardisation:
        """By median and median absolute deviation, where many values are equal a third of the standard deviation.

        Missing values are left out, and those of windows to come count as ordinary.
        """
        centre = features.nanmedian(dim=0).values.nan_to_num()
        distance = features - centre
        deviation = 1.4826 * distance.abs().nanmedian(dim=0).values.nan_to_num()
        spread = torch.maximum(deviation, distance.square().nanmean(dim=0).sqrt().nan_to_num() / 3)
        return cls(centre, spread.clamp(min=SPREAD_FLOOR), True)

    def apply(self, features: Tensor) -> Tensor:
        """``(n, D)`` -> ``(n, D)``, float64 and finite."""
        scaled = ((features.to(torch.float64) - self.centre) / self.spread).nan_to_num(nan=0.0)
        return 2 * torch.asinh(scaled / 2) if self.tame else scaled


@dataclass(frozen=True)
class Gate:
    """Out-of-distribution p-values and abstention.

    Two experts look at a window: the Mahalanobis distance of encoder features, which also hold what covariates say, and
    the distance of descriptors to their nearest training windows. Each distance becomes a surprise (`TailProbability`), and
    the score is the larger, in other words the smaller p-value, each over the expert's share of the alarm rate (``WEIGHTS``,
    a weighted Bonferroni correction). The fold kept for it turns the score into a p-value that holds whatever the experts
    are. Experts and weights were chosen by `models.uncertainty.perturb.TUNING` on OOD folds alone.

    Attributes
    ----------
    encoder, descriptors : standardisations of the two kinds of features
    encoder_distance, neighbours : the experts' distances
    tails : the experts' surprises, in this order
    scores : ``(n,)`` scores against which p-values are counted, ascending; of the newest fold that sets a threshold
    alpha : nominal false-alarm rate
    expected_error, abstention : see `with_abstention`
    """

    encoder: Standardisation
    descriptors: Standardisation
    encoder_distance: Mahalanobis
    neighbours: NearestNeighbours
    tails: tuple[TailProbability, ...]
    scores: Tensor
    alpha: float
    expected_error: ExpectedError
    abstention: Abstention

    @classmethod
    def fit(cls, train: Tensor, ood_fold: Tensor | None, *, alpha: float) -> Gate:
        """Fit on features of training windows ``(m, D)`` in order of series and time, and of the OOD fold ``(n, D)``.

        The latter are what p-values are counted against until `with_abstention`; None where nobody asks before that.

        The last columns of features are `models.uncertainty.descriptors`. Distances are fitted to some stretches of the
        training windows and ranked by the others. Until `with_abstention` no forecast is withheld.
        """
        encoded, described = _split(train)
        encoder, descriptors = Standardisation.fit(encoded), Standardisation.fit_robust(described)
        fitting, ranking = _halves(len(train))
        codes, details = encoder.apply(encoded), descriptors.apply(described)
        with warnings.catch_warnings():  # a share of zeros that never varied is meant to be strange where it is not zero
            warnings.filterwarnings("ignore", message="features .* do not vary")
            neighbours = NearestNeighbours.fit(details[fitting], min(NEIGHBOURS, len(fitting)), unit_length=False)
        distance = Mahalanobis.fit(codes[fitting])
        tails = (
            TailProbability.fit(distance.score(codes[ranking])),
            TailProbability.fit(neighbours.score(details[ranking])),
        )
        empty = torch.empty(0, dtype=torch.float64)
        gate = cls(
            encoder, descriptors, distance, neighbours, tails, empty, alpha, ExpectedError.spread_alone(), Abstention.never()
        )
        return gate if ood_fold is None else gate._with(scores=gate.score(ood_fold).sort().values)

    def with_abstention(
        self, error: ExpectedError, ood_fold: tuple[Tensor, Tensor], later_fold: tuple[Tensor, Tensor], fraction: float
    ) -> Gate:
        """The gate that withholds a ``fraction`` of forecasts.

        ``error`` orders forecasts by uncertainty. Folds are (scores, uncertainties) ``(n,)`` of windows: the OOD fold ranks
        each, the later one sets the threshold of both together, and is what p-values are counted against from here on: what
        is ordinary drifts, so that a fold years back gives more alarms than it says.
        """
        abstention = Abstention.fit(ood_fold, later_fold, fraction)
        return self._with(expected_error=error, abstention=abstention, scores=later_fold[0].sort().values)

    def _with(self, **changes: object) -> Gate:
        return Gate(**{**vars(self), **changes})

    def score(self, features: Tensor) -> Tensor:
        """The larger surprise of each window ``(n, D)`` -> ``(n,)``, in nats and at least 0."""
        return self.surprises(features).amax(dim=1)

    def surprises(self, features: Tensor) -> Tensor:
        """Surprise of each expert ``(n, D)`` -> ``(n, 2)``, its weight against the larger one counted."""
        encoded, described = _split(features)
        codes, details = self.encoder.apply(encoded), self.descriptors.apply(described)
        distances = (
            self.encoder_distance.score(codes),
            self.neighbours.score(details),
        )
        surprises = (tail.apply(distance) for tail, distance in zip(self.tails, distances, strict=True))
        return torch.stack(list(surprises), dim=1) + torch.tensor(WEIGHTS, dtype=torch.float64).div(max(WEIGHTS)).log()

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

    def uncertainty(self, signals: Tensor, score: Tensor) -> Tensor:
        """What the forecast's error is expected to be, relative to the window's scale.

        ``signals`` ``(n, 2)`` are the forecast's relative spread and the members' relative disagreement.
        """
        return self.expected_error.predict(signals, score)

    def abstain(self, score: Tensor, uncertainty: Tensor) -> Tensor:
        """Whether each forecast is withheld, for strange input or for an error expected to be large, bool ``(n,)``."""
        return self.abstention.withhold(score, uncertainty)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        parts: dict[str, dict[str, Tensor]] = {
            "encoder": _numbers(self.encoder),
            "descriptors": _numbers(self.descriptors),
            "encoder_distance": self.encoder_distance.state(),
            "neighbours": self.neighbours.state(),
            **{f"tail{index}": tail.state() for index, tail in enumerate(self.tails)},
            "expected_error": self.expected_error.state(),
            "abstention": self.abstention.state(),
        }
        named = {f"{part}.{name}": value.contiguous() for part, values in parts.items() for name, value in values.items()}
        return named | {"scores": self.scores, "alpha": torch.tensor(self.alpha, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Gate:
        def part(name: str) -> dict[str, Tensor]:
            return {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}

        def standardisation(name: str) -> Standardisation:
            state = part(name)
            return Standardisation(state["centre"], state["spread"], bool(state["tame"]))

        return cls(
            encoder=standardisation("encoder"),
            descriptors=standardisation("descriptors"),
            encoder_distance=Mahalanobis.from_state(part("encoder_distance")),
            neighbours=NearestNeighbours.from_state(part("neighbours")),
            tails=tuple(TailProbability.from_state(part(f"tail{index}")) for index in range(2)),
            scores=tensors["scores"],
            alpha=float(tensors["alpha"]),
            expected_error=ExpectedError.from_state(part("expected_error")),
            abstention=Abstention.from_state(part("abstention")),
        )


def _split(features: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder features and descriptors, float64."""
    features = features.to(torch.float64)
    return features[:, : -len(DESCRIPTORS)], features[:, -len(DESCRIPTORS) :]


def _halves(n: int) -> tuple[Tensor, Tensor]:
    """Indices that alternate by stretches, since neighbouring windows overlap; all of them twice where there are few."""
    stretch = torch.arange(n) * HALVES // max(1, n)
    if n < 2 * HALVES:
        return torch.arange(n), torch.arange(n)
    return (stretch % 2 == 0).nonzero()[:, 0], (stretch % 2 == 1).nonzero()[:, 0]


def _numbers(part: Standardisation) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in vars(part).items()}
