"""The report page: what it needs, how it shows numbers, and the page itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "Course", "Fan", "Found", "Interpretation", "Kind", "Ood", "Pit", "RegimeLook", "Reliability", "ReportData",
    "Selective", "Split", "Steps", "format_metric", "page_environment", "render_report",
]  # fmt: skip

FloatArray = NDArray[np.floating[Any]]
Band = tuple[float, float]
NBSP = "\u00a0"
MISSING = "–"
COVERAGE = re.compile(r"(?:joint_)?coverage_(\d+)")


@dataclass(frozen=True)
class Fan:
    """One forecast drawn against what happened: n history values, H steps, bands keyed by their level in percent."""

    label: str  # 'best', 'median' or 'worst'
    unique_id: str
    score: float  # WQL of this series
    cutoff: str
    history_ds: NDArray[Any]  # (n,) datetime64 or int64
    history_y: FloatArray  # (n,)
    ds: NDArray[Any]  # (H,) datetime64 or int64
    y: FloatArray  # (H,) actual values, NaN where unknown
    median: FloatArray  # (H,)
    lo: Mapping[int, FloatArray]  # level in percent -> (H,)
    hi: Mapping[int, FloatArray]
    joint_lo: FloatArray  # (H,) lower edge of the joint 90 % band
    joint_hi: FloatArray  # (H,)


@dataclass(frozen=True)
class Reliability:
    """Observed share of values at or below each forecast quantile, before and after calibration; all (Q,) in [0, 1]."""

    nominal: FloatArray
    before: FloatArray
    after: FloatArray


@dataclass(frozen=True)
class Pit:
    """Probability integral transforms of the test values, before and after calibration; each (n,) in [0, 1]."""

    before: FloatArray
    after: FloatArray


@dataclass(frozen=True)
class Steps:
    """Coverage and mean width of the interval of level ``nominal`` at each step ahead; all (H,)."""

    coverage_before: FloatArray
    coverage_after: FloatArray
    width_before: FloatArray
    width_after: FloatArray
    nominal: float
    coverage_tempered: FloatArray | None = None  # after temperature and before conformal prediction
    width_tempered: FloatArray | None = None


@dataclass(frozen=True)
class Split:
    """Mean predictive variance at each step ``(H,)``, in units of the windows' own, of what members say and how they differ."""

    aleatoric: FloatArray
    epistemic: FloatArray

    @property
    def share(self) -> FloatArray:
        """The epistemic part of the whole ``(H,)``, 0 where there is none."""
        total = self.aleatoric + self.epistemic
        share: FloatArray = np.divide(self.epistemic, total, out=np.zeros(len(total)), where=total > 0)
        return share


@dataclass(frozen=True)
class Course:
    """Coverage of the 90 % intervals and CRPS of the ensemble over all series at each cutoff, all ``(k,)``."""

    times: NDArray[Any]
    coverage: FloatArray
    crps: FloatArray


@dataclass(frozen=True)
class Found:
    """How well changed windows are told from clean ones: (estimate, lower, upper) of a block bootstrap each."""

    auroc: tuple[float, float, float]
    aupr: tuple[float, float, float]
    fpr95: tuple[float, float, float]


@dataclass(frozen=True)
class Kind:
    """A kind of change: (AUROC, FPR at 95 % TPR) by size, and intervals at the middle size where they were computed."""

    name: str
    held_out: bool
    by_size: Mapping[float, tuple[float, float]]
    middle: Found | None


@dataclass(frozen=True)
class Ood:
    """Out-of-distribution scores; a window whose score is above ``threshold`` is flagged."""

    calibration: FloatArray  # (n,) clean windows that set the threshold
    test: FloatArray  # (m,) clean later windows, the control
    perturbed: Mapping[str, FloatArray]  # perturbation -> scores of windows changed on purpose
    threshold: float
    nominal_rate: float  # false-alarm rate the threshold was set for
    test_rate: float  # share of clean test windows that were flagged
    kinds: tuple[Kind, ...] = ()
    mean: Found | None = None  # over the kinds held out


@dataclass(frozen=True)
class Selective:
    """Mean loss of the windows kept when only the most certain share ``coverage`` is answered; all (k,)."""

    coverage: FloatArray
    risk: FloatArray
    oracle_risk: FloatArray  # the same when windows are sorted by their true loss
    kept: tuple[tuple[float, int, float, float], ...] = ()  # share kept, windows, mean loss, over that of all


@dataclass(frozen=True)
class RegimeLook:
    """Windows that have something in common, such as a holiday ahead, and how TFT reads them.

    ``distance`` in [0, 1] is the mean of their attention from the usual pattern; ``variable``, an input over ``kind``,
    is the one whose mean weight differs most from that over all windows, by ``change``.
    """

    split: str
    name: str
    windows: int
    distance: float
    kind: str
    variable: str
    change: float


@dataclass(frozen=True)
class Interpretation:
    """What the members of TFT look at, on average over ``windows`` of the test fold (Lim et al., 2021, section 7)."""

    members: int
    windows: int
    context: int
    season_length: int
    importances: Mapping[str, tuple[tuple[str, float, float], ...]]  # kind -> (variable, weight, spread between members)
    attention: FloatArray  # (L,) share of attention at lags 1..L in steps
    attention_low: FloatArray  # (L,) 10 % of windows lie below
    attention_high: FloatArray  # (L,) 10 % of windows lie above
    distance: float  # of a window's attention from the usual pattern, mean over all windows
    regimes: tuple[RegimeLook, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    ``metrics`` has flat keys ``<model>/<metric>``; a model may lack some. ``coverage_band`` and ``joint_band`` are the
    ranges in which the ensemble's 90 % and joint 90 % coverage fall by sampling alone when the guarantee holds.
    ``against`` has each model's CRPS over the ensemble's, less 1, with its bounds by a paired bootstrap over blocks of time.
    ``interpretation`` is what TFT looks at; without it the page leaves that section out, or says that TFT is not among
    the ``families``.
    """

    title: str
    created: str
    identity: Mapping[str, str]
    data_span: Mapping[str, str]
    metrics: Mapping[str, float]
    families: tuple[str, ...]
    baselines: tuple[str, ...]
    coverage_band: Band
    joint_band: Band
    fans: tuple[Fan, ...]
    reliability: Reliability
    pit: Pit
    steps: Steps
    ood: Ood
    selective: Selective
    card: Mapping[str, str | float | int | list[Any] | dict[str, Any] | None]
    ensemble: str = "ensemble"
    against: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    split: Split | None = None
    course: Course | None = None
    interpretation: Interpretation | None = None


def format_metric(metric: str, value: float | None) -> str:
    """Return ``value`` as the page shows it: percent for coverage and WAPE, else four decimals or four digits."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if metric == "wape" or COVERAGE.fullmatch(metric):
        return f"{100 * value:.1f}{NBSP}%"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def format_percent(value: float, *beside: float) -> str:
    """Return a percentage with as many decimals as keep it apart from the different numbers it is shown beside."""
    for digits in (1, 2, 3):
        text = f"{100 * value:.{digits}f}"
        if all(value == other or text != f"{100 * other:.{digits}f}" for other in beside):
            break
    return f"{text}{NBSP}%"


def page_environment() -> Environment:
    """Where pages find their templates; text is escaped, and a value that is missing is an error."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render_report(data: ReportData) -> str:
    """Return the report as one HTML page that loads nothing from elsewhere.

    Styles and figures are inline; it follows the reader's light or dark setting, prints, and fits a 360 px screen.
    """
    from tasks.report_card import card_rows
    from tasks.report_plots import sections
    from tasks.report_repairs import repairs, without_repairs
    from tasks.report_words import alone, leaderboard, verdict

    columns, rows = leaderboard(without_repairs(data))
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            repairs=repairs(data),
            verdict=verdict(data),
            columns=columns,
            rows=rows,
            alone=alone(without_repairs(data)),
            sections=sections(data),
            card=card_rows(data.card),
        )
    )
