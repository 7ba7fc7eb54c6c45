"""Group and new-series claims: the law within each group, small and unseen groups, and mutants that fail alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.predictive import LEVELS, Predictive
from models.uncertainty import groups as groups_module
from models.uncertainty.conformal import conformal_quantile, conformal_rank
from models.uncertainty.groups import GroupIntervals, MondrianConformal, new_series_intervals, one_score_per_series
from models.uncertainty.guarantee import coverage_band

NORMAL = torch.from_numpy(stats.norm.ppf(LEVELS))
Quantile = Callable[[Tensor, float], Tensor]


def law_pvalue(covered: np.ndarray, n: int, fresh: int, level: float) -> float:
    """Chi-square p-value of covered counts out of ``fresh``, one a calibration set, against the beta-binomial law."""
    rank = math.ceil(round((n + 1) * level, 9))
    expected = len(covered) * stats.betabinom(fresh, rank, n + 1 - rank).pmf(np.arange(fresh + 1))
    observed = np.bincount(covered, minlength=fresh + 1).astype(float)
    rare = int(np.argmax(expected.cumsum() >= 8)) + 1  # join the cells of small counts
    join = lambda counts: np.concatenate([[counts[:rare].sum()], counts[rare:]])  # noqa: E731
    return float(stats.chisquare(join(observed), join(expected)).pvalue)


def worst_group_law(fit: Callable[[Tensor, list[str]], MondrianConformal]) -> float:
    """Smallest p-value over groups of 9, 19 and 60 scores of sizes 1, 5 and 0.2, in 1500 exchangeable draws each."""
    counts, sizes, fresh, draws = {"small": 9, "wide": 19, "calm": 60}, {"small": 1.0, "wide": 5.0, "calm": 0.2}, 40, 1500
    rng = np.random.default_rng(0)
    labels = [name for name, count in counts.items() for _ in range(count)]
    order = rng.permutation(len(labels))
    labels = [labels[place] for place in order]
    spread = np.array([sizes[label] for label in labels])[:, None]
    fitted = fit(torch.from_numpy(rng.exponential(size=(len(labels), draws)) * spread), labels)
    found = []
    for name, n in counts.items():
        new = torch.from_numpy(rng.exponential(size=(fresh, draws)) * sizes[name])
        covered = (new <= fitted.radius_of([name] * fresh)).sum(0).numpy()
        found.append(law_pvalue(covered, n, fresh, 0.9))
    return min(found)


def mondrian(scores: Tensor, labels: list[str]) -> MondrianConformal:
    return MondrianConformal.fit(scores, labels, 0.9)


def test_coverage_within_each_group_follows_the_exact_law() -> None:
    assert worst_group_law(mondrian) > 1e-3


@pytest.mark.parametrize(
    "mutant",
    [
        lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level) - 2],
        lambda scores, level: torch.quantile(scores, level, dim=0),
    ],
    ids=["rank too low", "interpolated"],
)
def test_the_law_rejects_wrong_quantiles_within_groups(mutant: Quantile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "conformal_quantile", mutant)
    assert worst_group_law(mondrian) < 1e-9


def test_the_law_rejects_one_radius_for_all_groups() -> None:
    assert (
        worst_group_law(lambda scores, labels: MondrianConformal(0.9, "marginal", {}, {}, conformal_quantile(scores, 0.9)))
        < 1e-9
    )


def test_small_and_unseen_groups_get_the_whole_line_and_records_that_say_so() -> None:
    scores = torch.arange(28, dtype=torch.float64)[:, None].expand(28, 2)
    labels = ["large"] * 20 + ["small"] * 8
    fitted = MondrianConformal.fit(scores, labels, 0.9)
    radius = fitted.radius_of(["small", "large", "new"])
    assert radius.tolist() == [[math.inf] * 2, [18.0] * 2, [math.inf] * 2]
    found = {record.group: (record.n, record.rank, record.finite, record.promise) for record in fitted.records(["new"])}
    assert found == {"large": (20, 19, True, "group"), "new": (0, 1, False, "group"), "small": (8, 9, False, "group")}


def test_the_marginal_fallback_is_finite_and_promises_nothing_for_the_group() -> None:
    scores = torch.arange(28, dtype=torch.float64)
    fitted = MondrianConformal.fit(scores, ["large"] * 20 + ["small"] * 8, 0.9, fallback="marginal")
    assert fitted.radius_of(["small", "new", "large"]).tolist() == [26.0, 26.0, 18.0]
    assert [(record.promise, record.finite) for record in fitted.records(["new"])] == [
        ("group", True),
        ("marginal", True),
        ("marginal", True),
    ]
    few = MondrianConformal.fit(scores[:5], ["a"] * 5, 0.9, fallback="marginal")
    assert few.radius_of(["a"]).tolist() == [math.inf]


def test_ties_only_add_coverage_within_groups() -> None:
    """Three score values: the covered share of 3000 is at least the law's lower bound with probability 1 - 1e-4 a draw."""
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.integers(0, 3, size=(60, 30)).astype(float))
    fitted = MondrianConformal.fit(scores, ["a"] * 21 + ["b"] * 39, 0.8)
    new = torch.from_numpy(rng.integers(0, 3, size=(3000, 30)).astype(float))
    for name, n in (("a", 21), ("b", 39)):
        share = (new <= fitted.radius_of([name])).double().mean(0)
        assert (share >= coverage_band(n, 3000, 0.8, 1 - 1e-4)[0]).all()


def panel(series: int, windows: int, horizon: int, seed: int) -> tuple[Predictive, Tensor, list[str]]:
    """Forecasts that are right on average, while each series has a size of error of its own."""
    rng = np.random.default_rng(seed)
    size = np.repeat(rng.lognormal(sigma=1.0, size=(series, 1)), windows, axis=0)
    noise = torch.from_numpy(rng.normal(size=(series * windows, horizon)) * size)
    return Predictive(NORMAL.expand(*noise.shape, -1)), noise, [f"s{index // windows:03d}" for index in range(len(noise))]


@pytest.mark.parametrize("name", ["tail", "cqr", "cqr_asymmetric", "scaled_residual"])
def test_group_intervals_are_nested_and_survive_a_restart(name: str) -> None:
    predictive, target, series = panel(4, 12, 3, seed=0)
    fitted = GroupIntervals.fit(name, predictive, target, series, fallback="marginal")
    again = GroupIntervals.from_state(json.loads(json.dumps(fitted.state(), allow_nan=False)))
    new = Predictive(predictive.values[:3])
    previous = None
    for level in (80, 90, 95):
        bounds = fitted.interval(new, ["s000", "s003", "unseen"], level)
        same = again.interval(new, ["s000", "s003", "unseen"], level)
        assert all(torch.equal(one, other) for one, other in zip(bounds, same, strict=True))
        assert fitted.record(level, ["unseen"]) == again.record(level, ["unseen"])
        if previous is not None:
            assert (bounds[0] <= previous[0]).all()
            assert (bounds[1] >= previous[1]).all()
        previous = bounds
    rows = {row["group"]: row for row in fitted.record(95, ["unseen"])}
    assert rows["unseen"] == {"group": "unseen", "n": 0, "rank": 1, "finite": True, "promise": "marginal"}
    assert rows["s000"]["n"] == 12


def series_law(choice: str, radius_of: Callable[[Tensor, list[str]], Tensor]) -> float:
    """p-value of the coverage of 40 new series over 400 draws of 19, of which the harder ones have more windows."""
    count, fresh, draws = 19, 40, 400
    rng = np.random.default_rng(5)
    covered = np.empty(draws, dtype=int)
    for draw in range(draws):
        hardness = 3 * rng.exponential(size=count + fresh)
        scores = [level + rng.exponential(size=12 if level > 3 else 2) for level in hardness]
        labels = [f"s{index:02d}" for index in range(count) for _ in scores[index]]
        radius = float(radius_of(torch.from_numpy(np.concatenate(scores[:count])), labels))
        held = [each.max() if choice == "worst" else each[0] for each in scores[count:]]
        covered[draw] = int((np.array(held) <= radius).sum())
    return law_pvalue(covered, count, fresh, 0.9)


@pytest.mark.parametrize("choice", ["random", "worst"])
def test_coverage_of_new_series_follows_the_exact_law(choice: str) -> None:
    def radius(scores: Tensor, labels: list[str]) -> Tensor:
        return conformal_quantile(one_score_per_series(scores, labels, choice, seed=3), 0.9)  # type: ignore[arg-type]

    assert series_law(choice, radius) > 1e-3


@pytest.mark.parametrize("choice", ["random", "worst"])
def test_the_law_rejects_all_windows_of_the_seen_series(choice: str) -> None:
    assert series_law(choice, lambda scores, labels: conformal_quantile(scores, 0.9)) < 1e-9


def test_a_series_choice_is_seeded_uniform_and_of_the_series_own_windows() -> None:
    scores = torch.arange(12, dtype=torch.float64)[:, None]
    labels = ["b"] * 5 + ["a"] * 4 + ["c"] * 3
    assert one_score_per_series(scores, labels, "worst")[:, 0].tolist() == [8.0, 4.0, 11.0]
    assert torch.equal(one_score_per_series(scores, labels, seed=7), one_score_per_series(scores, labels, seed=7))
    drawn = torch.stack([one_score_per_series(scores, labels, seed=seed)[:, 0] for seed in range(600)])
    for column, (first, count) in enumerate(((5, 4), (0, 5), (9, 3))):
        observed = np.bincount(drawn[:, column].long().numpy() - first, minlength=count)
        assert len(observed) == count
        assert stats.chisquare(observed).pvalue > 1e-3


def test_new_series_intervals_count_series_not_windows() -> None:
    predictive, target, series = panel(8, 50, 2, seed=1)
    fitted = new_series_intervals("scaled_residual", predictive, target, series, levels=(80, 90), choice="worst")
    assert fitted.record(90) == {"unit": "series, worst window", "n": 8, "rank": 9, "finite": False, "constant_steps": []}
    assert fitted.record(80)["finite"]
    lower, upper = fitted.interval(predictive, 80)
    whole = ((lower <= target) & (target <= upper)).reshape(8, 50, 2).all(1)
    assert (whole.sum(0) == 8).all()  # rank 8 of 8: the largest score of each step


def test_bad_labels_scores_and_names_are_errors() -> None:
    scores = torch.zeros(4)
    with pytest.raises(ValueError, match="there are 4 scores and 3 group names"):
        MondrianConformal.fit(scores, ["a"] * 3, 0.9)
    with pytest.raises(ValueError, match="score 1 is missing"):
        MondrianConformal.fit(torch.tensor([0.0, math.nan]), ["a", "a"], 0.9)
    with pytest.raises(ValueError, match="'mean' is not a fallback for small groups"):
        MondrianConformal.fit(scores, ["a"] * 4, 0.9, fallback="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'first' is not a way to choose"):
        one_score_per_series(scores, ["a"] * 4, "first")  # type: ignore[arg-type]
