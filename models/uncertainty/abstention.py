"""Which forecasts to withhold: how wrong a forecast is expected to be, and the share withheld for that or strange input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.uncertainty.conformal import conformal_quantile
from models.uncertainty.ood import conformal_p_value
from models.uncertainty.tail import TailProbability

__all__ = ["Abstention", "ExpectedError"]

FLOOR = 1e-6
RIDGE = 1e-3  # a window's worth of pull towards 0, a thousandth as strong


@dataclass(frozen=True)
class ExpectedError:
    """The error that a forecast is expected to have: ``exp(b0 + b1 log spread + b2 log disagreement + b3 surprise)``.

    Coefficients but the first are at least 0: more uncertainty or stranger input never means a smaller error, also beyond
    what was fitted. ``coefficients`` ``(4,)``.
    """

    coefficients: Tensor

    @classmethod
    def spread_alone(cls) -> ExpectedError:
        """The predictive spread itself."""
        return cls(torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64))

    @classmethod
    def fit(cls, signals: Tensor, surprise: Tensor, error: Tensor) -> ExpectedError:
        """Least squares of the logarithm of ``error`` ``(n,)`` on ``signals`` ``(n, 2)`` and ``surprise`` ``(n,)``.

        Signals and errors are in units of the window's scale. Non-negative least squares (Lawson and Hanson, 1974).
        """
        from scipy.optimize import nnls

        inputs, target = _inputs(signals, surprise), error.to(torch.float64).clamp(min=FLOOR).log()
        centre, middle = inputs.mean(0), target.mean()
        pull = RIDGE**0.5 * torch.eye(inputs.shape[1], dtype=torch.float64)
        matrix = torch.cat([inputs - centre, pull])
        slopes = torch.from_numpy(nnls(matrix.numpy(), torch.cat([target - middle, pull.new_zeros(len(pull))]).numpy())[0])
        return cls(torch.cat([(middle - centre @ slopes)[None], slopes]))

    def predict(self, signals: Tensor, surprise: Tensor) -> Tensor:
        """Expected error ``(n,)`` of signals ``(n, 2)`` and surprise ``(n,)``."""
        return torch.exp(self.coefficients[0] + _inputs(signals, surprise) @ self.coefficients[1:])

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {"coefficients": self.coefficients}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ExpectedError:
        return cls(state["coefficients"])


@dataclass(frozen=True)
class Abstention:
    """Withholds the stated share of forecasts for strange input, for a large expected error, or both.

    The tail probabilities of a window's strangeness and of its uncertainty meet as the smaller, whose own distribution on
    a later fold sets the threshold: the share withheld is the nominal one for the two reasons together, not for each.

    Attributes
    ----------
    strangeness, uncertainty : tail probabilities on the OOD fold
    combined : ``(m,)`` larger surprise of the later fold's windows, ascending
    fraction : nominal share of forecasts withheld
    """

    strangeness: TailProbability
    uncertainty: TailProbability
    combined: Tensor
    fraction: float

    @classmethod
    def never(cls) -> Abstention:
        """Gives every forecast."""
        return cls(TailProbability.never(), TailProbability.never(), torch.empty(0, dtype=torch.float64), 0.0)

    @classmethod
    def fit(cls, ood_fold: tuple[Tensor, Tensor], later_fold: tuple[Tensor, Tensor], fraction: float) -> Abstention:
        """Fit on (strangeness, uncertainty) of two folds' windows, ``(n,)`` and ``(m,)`` each."""
        strangeness, uncertainty = (TailProbability.fit(values) for values in ood_fold)
        ranks = cls(strangeness, uncertainty, torch.empty(0, dtype=torch.float64), fraction)
        return cls(strangeness, uncertainty, ranks.combine(*later_fold).sort().values, fraction)

    def combine(self, strangeness: Tensor, uncertainty: Tensor) -> Tensor:
        """The larger of the two surprises ``(n,)``, in nats."""
        return torch.maximum(self.strangeness.apply(strangeness), self.uncertainty.apply(uncertainty))

    def withhold(self, strangeness: Tensor, uncertainty: Tensor) -> Tensor:
        """Whether each forecast is withheld, bool ``(n,)``: with probability at most ``fraction`` for windows like the later
        fold's."""
        return conformal_p_value(self.combine(strangeness, uncertainty), self.combined) <= self.fraction

    @property
    def certified(self) -> bool:
        """Whether the later fold is large enough for any forecast to be withheld."""
        return bool(torch.isfinite(conformal_quantile(self.combined, 1 - self.fraction)))

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        ranks = {"strangeness": self.strangeness.state(), "uncertainty": self.uncertainty.state()}
        named = {f"{part}.{name}": value for part, values in ranks.items() for name, value in values.items()}
        return named | {"combined": self.combined, "fraction": torch.tensor(self.fraction, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Abstention:
        strangeness, uncertainty = (
            TailProbability.from_state({name: state[f"{part}.{name}"] for name in ("value", "surprise", "slope")})
            for part in ("strangeness", "uncertainty")
        )
        return cls(strangeness, uncertainty, state["combined"], float(state["fraction"]))


def _inputs(signals: Tensor, surprise: Tensor) -> Tensor:
    logs = signals.to(torch.float64).clamp(min=FLOOR).log()
    return torch.cat([logs, surprise.to(torch.float64)[:, None]], dim=1)
