"""Selective prediction: which forecasts to give so that the risk of those given is bounded, and what abstaining buys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.uncertainty.scores import aurc

__all__ = [
    "KeptRow",
    "SelectiveGuarantee",
    "aurc_ratio",
    "clipped_loss",
    "hoeffding_bentkus",
    "kept_table",
    "least_windows",
    "miscoverage_loss",
    "threshold_grid",
]

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def miscoverage_loss(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    """Share of a window's steps that lie outside their interval: ``(n, H)`` each -> ``(n,)``, in [0, 1]."""
    return ((target < lower) | (target > upper)).to(torch.float64).mean(-1)


def clipped_loss(loss: Tensor, bound: float) -> Tensor:
    """``min(loss, bound) / bound`` of losses of at least 0 ``(n,)``, in [0, 1]; a risk of r is one of ``r * bound``."""
    if not bound > 0:
        raise ValueError(f"the bound of a clipped loss must be above 0, got {bound}")
    return loss.to(torch.float64).clamp(max=bound) / bound


def hoeffding_bentkus(mean: float, count: int, risk: float) -> float:
    """p-value of 'the expected loss is above ``risk``' from the ``mean`` of ``count`` independent losses in [0, 1].

    The smaller of Hoeffding's exp(-n h1(min(mean, r), r)), with h1(a, b) the divergence between Bernoulli variables, and
    Bentkus' e P(Bin(n, r) <= ceil(n mean)) (Bates et al., 2021; Angelopoulos et al., "Learn then Test", 2021, eq. 6).
    """
    from scipy.stats import binom

    if count == 0 or mean >= risk:
        return 1.0
    divergence = (1.0 - mean) * math.log((1.0 - mean) / (1.0 - risk))
    if mean > 0:
        divergence += mean * math.log(mean / risk)
    bentkus = math.e * float(binom.cdf(math.ceil(round(count * mean, 9)), count, risk))
    return min(1.0, math.exp(-count * divergence), bentkus)


def least_windows(risk: float, delta: float) -> int:
    """Fewest windows whose losses, were they all 0, bound the risk: the smallest n with (1 - risk)^n <= delta."""
    return math.ceil(round(math.log(delta) / math.log1p(-risk), 9))


def threshold_grid(uncertainty: Tensor, count: int = 40, smallest_share: float = 0.2) -> Tensor:
    """Thresholds to test, ascending: quantiles of ``uncertainty`` ``(n,)`` on a fold other than the calibration one.

    They answer shares from ``smallest_share`` to all, the last being infinite. The first must answer enough windows of the
    calibration fold, several times `least_windows`, for its test to have any power: where it fails nothing is answered.
    """
    shares = torch.linspace(smallest_share, 1.0, count, dtype=torch.float64)
    thresholds = torch.quantile(uncertainty.to(torch.float64), shares[:-1], interpolation="higher").unique()
    return torch.cat([thresholds, torch.tensor([math.inf], dtype=torch.float64)])


@dataclass(frozen=True)
class SelectiveGuarantee:
    """Answer where uncertainty is at most ``threshold``: the expected loss of what is answered is then at most ``risk``.

    Attributes
    ----------
    threshold : minus infinity where no threshold was certified, so that nothing is answered
    risk, delta : the bound, and the probability over calibration folds with which it may fail
    answered, empirical_risk : share of calibration windows answered and the mean loss of those; NaN where none is
    windows : size of the calibration fold
    """

    threshold: float
    risk: float
    delta: float
    answered: float
    empirical_risk: float
    windows: int

    @classmethod
    def fit(cls, uncertainty: Tensor, loss: Tensor, thresholds: Tensor, *, risk: float, delta: float) -> SelectiveGuarantee:
        """Learn then test (Angelopoulos et al., 2021) on calibration windows' uncertainty and loss in [0, 1], ``(n,)`` each.

        ``thresholds`` come from another fold (`threshold_grid`): they must not depend on these windows. They are tested from
        the smallest up, each at the full ``delta``, up to the first that fails, and the one before it is chosen; that a
        larger one happens to do well again does not count. Such a fixed sequence errs only if it rejects the first true
        hypothesis that it meets, so P(risk of what is answered > ``risk``) <= ``delta``, for windows that are independent
        and like those to come. Overlapping or neighbouring windows know less than they count for; thin them first.

        Raises
        ------
        ValueError
            If the fold is too small for any threshold to be certified, a loss is not in [0, 1], something is missing, or
            risk or delta are not in (0, 1).
        """
        if not (0.0 < risk < 1.0 and 0.0 < delta < 1.0):
            raise ValueError(f"risk and delta of a selective guarantee must be in (0, 1), got {risk} and {delta}")
        needed = least_windows(risk, delta)
        if len(loss) < needed:
            raise ValueError(
                f"the selective fold has {len(loss)} windows; a risk of {risk:g} with probability {1 - delta:g} takes at least "
                f"{needed}, even if none of them lost anything"
            )
        uncertainty, loss = uncertainty.to(torch.float64), loss.to(torch.float64)
        if uncertainty.shape != loss.shape or bool(uncertainty.isnan().any()):
            raise ValueError("every window of the selective fold takes one uncertainty and one loss; some are missing")
        if not bool(((loss >= 0) & (loss <= 1)).all()):
            raise ValueError("losses of a selective guarantee must be in [0, 1]; clip them at a stated bound (clipped_loss)")
        chosen = -math.inf
        for threshold in thresholds.to(torch.float64).sort().values.tolist():
            kept = loss[uncertainty <= threshold]
            if not len(kept) or hoeffding_bentkus(float(kept.mean()), len(kept), risk) > delta:
                break
            chosen = threshold
        kept = loss[uncertainty <= chosen]
        return cls(chosen, risk, delta, len(kept) / len(loss), float(kept.mean()), len(loss))

    @property
    def certified(self) -> bool:
        """Whether any threshold was."""
        return self.threshold > -math.inf

    def answer(self, uncertainty: Tensor) -> Tensor:
        """Whether each forecast is given, bool ``(...)``; none of unknown (NaN) uncertainty."""
        return (uncertainty <= self.threshold) & self.certified

    def statement(self) -> str:
        """One sentence for the guarantee card."""
        promise = f"risk at most {self.risk:g} with probability {1 - self.delta:g}"
        if not self.certified:
            return f"No threshold could be certified for {promise} from {self.windows} windows: every forecast is withheld."
        return (
            f"Forecasts of uncertainty up to {self.threshold:g} are given, {self.answered:.0%} of {self.windows} calibration "
            f"windows, with {promise} (there {self.empirical_risk:.4g}), if windows are independent and like these."
        )

    def state(self) -> dict[str, Any]:
        """Plain numbers, for JSON; infinite and missing ones are strings."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SelectiveGuarantee:
        values = {name: float(value) for name, value in state.items() if name != "windows"}
        return cls(**values, windows=int(state["windows"]))


class KeptRow(NamedTuple):
    """What keeping the most certain ``share`` of windows, ``kept`` in number, does to the mean loss.

    ``threshold`` is the largest uncertainty kept, and ``ratio`` the mean loss over that of all windows.
    """

    share: float
    kept: int
    threshold: float
    loss: float
    ratio: float


def kept_table(uncertainty: Tensor, loss: Tensor, shares: tuple[float, ...] = SHARES) -> list[KeptRow]:
    """The trade-off between answering and error, a row a share, from ``(n,)`` uncertainties and losses.

    Raises ValueError without windows or for a share that is not in (0, 1].
    """
    if not len(loss) or not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError("a table of kept shares takes at least one window and shares in (0, 1]")
    order = torch.argsort(uncertainty, stable=True)
    uncertainty, loss = uncertainty[order].to(torch.float64), loss[order].to(torch.float64)
    whole, rows = float(loss.mean()), []
    for share in shares:
        count = math.ceil(round(share * len(loss), 9))
        mean = float(loss[:count].mean())
        rows.append(KeptRow(share, count, float(uncertainty[count - 1]), mean, mean / whole if whole > 0 else 1.0))
    return rows


def aurc_ratio(uncertainty: Tensor, loss: Tensor) -> float:
    """Area under the risk-coverage curve over that of the oracle, which sorts by the loss itself; 1 is perfect.

    1 as well where nothing is lost.
    """
    oracle = aurc(loss, loss)
    return aurc(uncertainty, loss) / oracle if oracle > 0 else 1.0


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
