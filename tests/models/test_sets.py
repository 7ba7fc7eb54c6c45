"""Prediction sets of classes: exact laws, the published definitions by slow loops, and mutants that fail alike."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from models.uncertainty import sets as sets_module
from models.uncertainty.conformal import conformal_quantile, conformal_rank
from models.uncertainty.guarantee import coverage_band
from models.uncertainty.sets import (
    SetConformal,
    mass_before_by_rank,
    mass_before_by_run,
    run_bounds,
    set_summary,
)

KINDS = [("lac", False), ("aps", False), ("aps", True), ("ordinal", False), ("ordinal", True)]


def generator(randomised: bool, seed: int) -> torch.Generator | None:
    return torch.Generator().manual_seed(seed) if randomised else None


def rows(count: tuple[int, ...], classes: int, seed: int, heat: float = 1.0) -> tuple[Tensor, Tensor]:
    """Probabilities ``(*count, classes)`` that are too sure by ``heat``, and labels by the true ones."""
    rng = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(*count, classes, generator=rng, dtype=torch.float64)
    flat = logits.softmax(-1).reshape(-1, classes)
    labels = torch.multinomial(flat, 1, generator=rng).reshape(count)
    return (heat * logits).softmax(-1), labels


def law_pvalue(covered: np.ndarray, n: int, fresh: int, level: float) -> float:
    """Chi-square p-value of covered counts out of ``fresh``, one a calibration set, against the beta-binomial law."""
    rank = math.ceil(round((n + 1) * level, 9))
    expected = len(covered) * stats.betabinom(fresh, rank, n + 1 - rank).pmf(np.arange(fresh + 1))
    observed = np.bincount(covered, minlength=fresh + 1).astype(float)
    rare = int(np.argmax(expected.cumsum() >= 8)) + 1  # join the cells of small counts
    join = lambda counts: np.concatenate([[counts[:rare].sum()], counts[rare:]])  # noqa: E731
    return float(stats.chisquare(join(observed), join(expected)).pvalue)


def set_law(kind: str, randomised: bool) -> float:
    """p-value of coverage over 1500 exchangeable draws, which lie along the middle axis: 19 rows against 40 others."""
    n, fresh, draws = 19, 40, 1500
    probabilities, labels = rows((n + fresh, draws), 5, seed=1, heat=1.7)
    fitted = SetConformal.fit(kind, probabilities[:n], labels[:n], 0.9, generator(randomised, 2))  # type: ignore[arg-type]
    chosen = fitted.sets(probabilities[n:], generator(randomised, 3))
    return law_pvalue(chosen.gather(-1, labels[n:, :, None])[..., 0].sum(0).numpy(), n, fresh, 0.9)


@pytest.mark.parametrize(("kind", "randomised"), [("lac", False), ("aps", True), ("ordinal", True)])
def test_coverage_of_sets_follows_the_exact_law(kind: str, randomised: bool) -> None:
    assert set_law(kind, randomised) > 1e-3


@pytest.mark.parametrize(("kind", "randomised"), [("lac", False), ("aps", True), ("ordinal", True)])
@pytest.mark.parametrize(
    "mutant",
    [
        lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level) - 2],
        lambda scores, level: scores.sort(dim=0).values[conformal_rank(len(scores), level)],
        lambda scores, level: torch.quantile(scores, level, dim=0),
    ],
    ids=["rank too low", "rank too high", "interpolated"],
)
def test_the_law_rejects_wrong_quantiles(
    kind: str, randomised: bool, mutant: Callable[[Tensor, float], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "conformal_quantile", mutant)
    assert set_law(kind, randomised) < 1e-9


@pytest.mark.parametrize(("kind", "randomised"), KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_coverage_is_at_least_nominal_with_ties_too(kind: str, randomised: bool, tied: bool) -> None:
    """4000 rows against 299: at least the law's lower bound with probability 1 - 1e-4 a step, however wrong the rows."""
    n, fresh = 299, 4000
    probabilities, labels = rows((n + fresh, 2), 7, seed=4, heat=2.5)
    if tied:  # a handful of distinct rows: nearly all scores are tied
        pattern = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0]])
        probabilities = pattern.double()[(labels + torch.arange(n + fresh)[:, None]) % 2]
    fitted = SetConformal.fit(kind, probabilities[:n], labels[:n], 0.9, generator(randomised, 2))  # type: ignore[arg-type]
    chosen = fitted.sets(probabilities[n:], generator(randomised, 3))
    share = chosen.gather(-1, labels[n:, :, None])[..., 0].double().mean(0)
    assert (share >= coverage_band(n, fresh, 0.9, 1 - 1e-4)[0]).all()


def slow_before(mass: list[float], kind: str) -> list[float]:
    """The mass already held when each class is taken in, by a loop over one row."""
    mode = max(range(len(mass)), key=lambda index: mass[index])
    before, held, first, last = [0.0] * len(mass), mass[mode], mode, mode
    if kind == "aps":
        order = sorted(range(len(mass)), key=lambda index: -mass[index])
        for place, index in enumerate(order):
            before[index] = math.fsum(mass[other] for other in order[:place])
        return before
    while last - first + 1 < len(mass):
        left, right = mass[first - 1] if first else -1.0, mass[last + 1] if last + 1 < len(mass) else -1.0
        taken = last + 1 if right > left else first - 1
        before[taken], held = held, held + mass[taken]
        first, last = min(first, taken), max(last, taken)
    return before


@pytest.mark.parametrize("kind", ["aps", "ordinal"])
def test_mass_before_equals_the_slow_definition(kind: str) -> None:
    mass, _ = rows((200,), 9, seed=0)
    mass[:3] = torch.tensor([[0.0] * 8 + [1.0], [1.0] + [0.0] * 8, [1 / 9] * 9], dtype=torch.float64)
    fast = {"aps": mass_before_by_rank, "ordinal": mass_before_by_run}[kind](mass)
    slow = torch.tensor([slow_before(row, kind) for row in mass.tolist()], dtype=torch.float64)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_ordinal_sets_are_runs_about_the_mode_and_shortest_where_there_is_one_mode() -> None:
    classes = 9
    centre = torch.linspace(-1, 10, 120, dtype=torch.float64)[:, None]
    humps = torch.softmax(-0.3 * (torch.arange(classes) - centre).abs() ** 1.5, dim=-1)
    labels = torch.multinomial(humps, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    fitted = SetConformal.fit("ordinal", humps, labels, 0.8)
    chosen = fitted.sets(humps)
    assert chosen.gather(-1, humps.argmax(-1, keepdim=True)).all()
    for row, inside in zip(humps, chosen, strict=True):
        places = inside.nonzero()[:, 0]
        assert len(places) == int(places[-1] - places[0]) + 1
        held = float(row[inside].sum())
        lengths = [b - a for a, b in itertools.combinations(range(classes + 1), 2) if float(row[a:b].sum()) >= held - 1e-12]
        assert len(places) == min(lengths)


def test_sure_forecasts_that_are_right_do_not_widen_the_sets_of_others() -> None:
    """A fifth of windows puts all its mass in one bin, rightly; the others' sets still reach the calibrated mass alone."""
    unsure, truth = rows((400,), 10, seed=7)
    sure = torch.nn.functional.one_hot(torch.arange(100) % 10, 10).double()
    both, labels = torch.cat([sure, unsure]), torch.cat([torch.arange(100) % 10, truth])
    fitted = SetConformal.fit("ordinal", both, labels, 0.9)
    assert float(fitted.threshold) < 0.98
    assert (fitted.sets(sure).sum(-1) == 1).all()
    assert fitted.sets(both).gather(-1, labels[:, None]).sum() >= conformal_rank(500, 0.9)


@pytest.mark.parametrize(("kind", "randomised"), [("ordinal", False), ("ordinal", True)])
def test_ordinal_sets_of_many_modes_are_runs_too(kind: str, randomised: bool) -> None:
    probabilities, labels = rows((100, 3), 8, seed=6)
    fitted = SetConformal.fit("ordinal", probabilities, labels, 0.7, generator(randomised, 1))
    chosen = fitted.sets(probabilities, generator(randomised, 2)).int()
    edges = torch.nn.functional.pad(chosen, (1, 1)).diff(dim=-1)
    assert (edges.abs().sum(-1) <= 2).all()


def test_only_sets_that_may_be_empty_are() -> None:
    probabilities, labels = rows((300, 2), 4, seed=7, heat=3.0)
    for kind, randomised in KINDS:
        fitted = SetConformal.fit(kind, probabilities, labels, 0.3, generator(randomised, 1))  # type: ignore[arg-type]
        found = set_summary(fitted.sets(probabilities, generator(randomised, 2)))
        assert (found["empty"] > 0) == fitted.record()["may_be_empty"], kind


def test_lac_is_smallest_and_sure_rows_get_smaller_aps_sets() -> None:
    probabilities, labels = rows((4000,), 10, seed=8)
    size = {}
    for kind, randomised in KINDS:
        fitted = SetConformal.fit(kind, probabilities, labels, 0.9, generator(randomised, 1))  # type: ignore[arg-type]
        chosen = fitted.sets(probabilities, generator(randomised, 2))
        size[kind, randomised] = set_summary(chosen)["size"]
        if kind == "aps":
            sure = probabilities.amax(-1) > 0.6
            assert float(chosen[sure].sum(-1).double().mean()) < 0.7 * float(chosen[~sure].sum(-1).double().mean())
    assert all(size["lac", False] < each for key, each in size.items() if key[0] != "lac")
    assert size["aps", True] < size["aps", False]


@pytest.mark.parametrize(("kind", "randomised"), KINDS)
def test_too_few_rows_give_every_class_and_the_record_says_so(kind: str, randomised: bool) -> None:
    probabilities, labels = rows((8, 3), 5, seed=9)
    fitted = SetConformal.fit(kind, probabilities, labels, 0.9, generator(randomised, 1))  # type: ignore[arg-type]
    chosen = fitted.sets(probabilities, generator(randomised, 2))
    assert chosen.all()
    assert set_summary(chosen)["whole"] == 1.0
    assert fitted.record()["finite"] is False
    assert (fitted.record()["n"], fitted.record()["rank"]) == (8, 9)


@pytest.mark.parametrize(("kind", "randomised"), KINDS)
def test_sets_survive_a_restart_and_float32(kind: str, randomised: bool) -> None:
    probabilities, labels = rows((60, 2), 6, seed=10)
    fitted = SetConformal.fit(kind, probabilities.float(), labels, 0.9, generator(randomised, 1))  # type: ignore[arg-type]
    again = SetConformal.from_state(json.loads(json.dumps(fitted.state(), allow_nan=False)))
    assert torch.equal(*(each.sets(probabilities, generator(randomised, 2)) for each in (fitted, again)))


def test_runs_become_intervals_with_open_outer_bins() -> None:
    edges = torch.tensor([0.0, 1.0, 3.0])
    chosen = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    lower, upper = run_bounds(chosen, edges)
    inf = math.inf
    assert lower.tolist() == [0.0, -inf, 3.0, -inf, inf]
    assert upper.tolist() == [3.0, 0.0, inf, inf, -inf]
    own = torch.stack([edges, edges + 10.0])[:, None]
    lower, upper = run_bounds(chosen[:2].expand(2, -1, -1), own)
    assert lower.tolist() == [[0.0, -inf], [10.0, -inf]]
    assert upper.tolist() == [[3.0, 0.0], [13.0, 10.0]]


def test_bad_input_is_named() -> None:
    probabilities, labels = rows((20,), 4, seed=11)
    with pytest.raises(ValueError, match="logits go through a softmax first"):
        SetConformal.fit("lac", probabilities.log(), labels, 0.9)
    with pytest.raises(ValueError, match="logits go through a softmax first"):
        SetConformal.fit("aps", probabilities * torch.nan, labels, 0.9)
    with pytest.raises(ValueError, match="labels must be integers from 0 to 3"):
        SetConformal.fit("aps", probabilities, labels + 4, 0.9)
    with pytest.raises(ValueError, match="'raps' is not a kind of set"):
        SetConformal.fit("raps", probabilities, labels, 0.9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lac sets are not randomised"):
        SetConformal.fit("lac", probabilities, labels, 0.9, generator(True, 0))
    with pytest.raises(ValueError, match="these sets are randomised"):
        SetConformal.fit("aps", probabilities, labels, 0.9, generator(True, 0)).sets(probabilities)


def test_the_threshold_is_an_order_statistic_of_the_published_scores() -> None:
    probabilities, labels = rows((59,), 5, seed=12)
    lac = SetConformal.fit("lac", probabilities, labels, 0.9)
    assert float(lac.threshold) == float(conformal_quantile(1 - probabilities[torch.arange(59), labels], 0.9))
    ranked = probabilities.sort(dim=-1, descending=True)
    place = (ranked.indices == labels[:, None]).int().argmax(-1)
    scores = ranked.values.cumsum(-1)[torch.arange(59), place]
    aps = SetConformal.fit("aps", probabilities, labels, 0.9)
    assert float(aps.threshold) == pytest.approx(float(scores.sort().values[53]), abs=1e-12)
