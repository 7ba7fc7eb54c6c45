"""Speculative decoding is lossless: all 81 paths of small models, counted in 200,000 samples against their probabilities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from models.decoding import speculative
from models.decoding.path_model import PathModel
from models.decoding.rules import Verdict, accept, choose
from models.decoding.speculative import Rule, ancestral_paths, speculative_paths
from models.decoding.streams import Streams
from models.decoding.truncation import AS_THEY_ARE, Truncation
from tests.models.decoding.path_models import BACKBONES, BINS, HORIZON, Network, Tabular, path_probabilities

SAMPLES, PIECE = 200_000, 50_000
FALSE_ALARM = 1e-4
"""Probability with which the chi-square test would reject a sampler that is right; the seeds are fixed."""

Sampler = Callable[[Streams], Tensor]
Models = Callable[[int], tuple[PathModel, PathModel]]


def counts(sampler: Sampler, seed: int = 5) -> Tensor:
    """How often each path came, (2, 81), among even and among odd rows."""
    total, powers = torch.zeros(2, BINS**HORIZON, dtype=torch.long), BINS ** torch.arange(HORIZON - 1, -1, -1)
    for first in range(0, SAMPLES, PIECE):
        paths = sampler(Streams(seed, torch.arange(first, first + PIECE), HORIZON))
        assert int(paths.min()) >= 0 and int(paths.max()) < BINS
        for parity in (0, 1):
            total[parity] += torch.bincount((paths[parity::2] * powers).sum(1), minlength=BINS**HORIZON)
    return total


def rejected(found: Tensor, probability: Tensor) -> bool:
    """Pearson's chi-square test of counts (2, 81) against the probabilities (2, 81) of the paths of even and of odd rows."""
    expected = probability * SAMPLES / 2
    possible = expected > 0
    assert int(found[~possible].sum()) == 0
    assert float(expected[possible].min()) > 5, "the test wants 5 expected paths a cell"
    statistic = ((found - expected).square()[possible] / expected[possible]).sum()
    return float(statistic) > chi2.isf(FALSE_ALARM, int(possible.sum()) - 2)


def probabilities(model: PathModel, truncation: Truncation = AS_THEY_ARE) -> Tensor:
    return torch.stack([path_probabilities(model, row, truncation) for row in (0, 1)])


def tabular(rows: int) -> tuple[PathModel, PathModel]:
    return Tabular(1, rows), Tabular(2, rows)


def networks(kind: str) -> Models:
    return lambda rows: (Network(kind, 1, rows), Network(kind, 2, rows))


KINDS: dict[str, Models] = {"tabular": tabular, **{kind: networks(kind) for kind in BACKBONES}}


@pytest.mark.parametrize("rule", ["speculative", "gumbel"])
@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_distributed_as_the_target_says(kind: str, rule: Rule) -> None:
    target, draft = KINDS[kind](PIECE)
    by_token = probabilities(target)
    torch.testing.assert_close(by_token.sum(1), torch.ones(2).double())
    found = counts(lambda streams: speculative_paths(target, draft, 2, streams, rule=rule).tokens)
    assert not rejected(found, by_token)
    assert rejected(found, probabilities(draft)), "a test that tells target and draft apart"


@pytest.mark.parametrize("length", [1, 3, 5])
def test_any_number_of_drafted_tokens_is_lossless(length: int) -> None:
    target, draft = tabular(PIECE)
    assert not rejected(counts(lambda streams: speculative_paths(target, draft, length, streams).tokens), probabilities(target))


@pytest.mark.parametrize("truncation", [Truncation(0.7), Truncation(top_k=2), Truncation(1.3, top_p=0.8)], ids=str)
@pytest.mark.parametrize("rule", ["speculative", "gumbel"])
def test_temperature_and_truncation_are_kept(truncation: Truncation, rule: Rule) -> None:
    target, draft = (model for model in (Tabular(1, PIECE, 0.5), Tabular(2, PIECE, 0.5)))
    found = counts(lambda streams: speculative_paths(target, draft, 2, streams, truncation, rule).tokens)
    assert not rejected(found, probabilities(target, truncation))


@pytest.mark.parametrize("rule", ["speculative", "gumbel"])
def test_ancestral_paths_are_distributed_as_the_model_says(rule: Rule) -> None:
    target, _ = tabular(PIECE)
    assert not rejected(counts(lambda streams: ancestral_paths(target, streams, rule=rule)), probabilities(target))


def without_residual(p: Tensor, q: Tensor, x: Tensor, limit: Tensor, accepting: Tensor, choosing: Tensor) -> Verdict:
    """Refused tokens are drawn from p, not from what the draft has left of it."""
    verdict = accept(p, q, x, limit, accepting, choosing)
    rows = torch.arange(len(x))
    verdict.tokens[rows, verdict.kept] = choose(p[rows, verdict.kept], choosing[rows, verdict.kept])
    return verdict


def with_a_wrong_bonus(p: Tensor, q: Tensor, x: Tensor, limit: Tensor, accepting: Tensor, choosing: Tensor) -> Verdict:
    """The token after a round that was kept whole comes from the step before."""
    verdict = accept(p, q, x, limit, accepting, choosing)
    whole = (verdict.kept == limit.clamp(max=x.shape[1])) & (verdict.kept > 0)
    rows = torch.arange(len(x))[whole]
    kept = verdict.kept[whole]
    verdict.tokens[rows, kept] = choose(p[rows, kept - 1], choosing[rows, kept])
    return verdict


def accepting_greedily(p: Tensor, q: Tensor, x: Tensor, limit: Tensor, accepting: Tensor, choosing: Tensor) -> Verdict:
    """A token is kept exactly where the target holds it at least as likely as the draft does."""
    return accept(p, q, x, limit, torch.ones_like(accepting), choosing)


def redrawing_cut_paths(p: Tensor, q: Tensor, x: Tensor, limit: Tensor, accepting: Tensor, choosing: Tensor) -> Verdict:
    """The batch is cut at its shortest path, and paths that had kept more draw the cut step anew."""
    verdict = accept(p, q, x, limit, accepting, choosing)
    shortest = torch.full_like(verdict.kept, int(verdict.kept.min()))
    rows = torch.arange(len(x))[verdict.kept > shortest]
    verdict.tokens[rows, shortest[rows]] = choose(p[rows, shortest[rows]], choosing[rows, shortest[rows]])
    return Verdict(verdict.tokens, shortest)


@pytest.mark.parametrize("mutant", [without_residual, with_a_wrong_bonus, accepting_greedily, redrawing_cut_paths])
def test_the_same_test_rejects_what_is_not_lossless(mutant: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = tabular(PIECE)
    monkeypatch.setattr(speculative, "accept", mutant)
    assert rejected(counts(lambda streams: speculative_paths(target, draft, 2, streams).tokens), probabilities(target))


class Forgetful(Tabular):
    """A target that is not rolled back: its state has read the tokens that were refused."""

    def verify(self, *arguments):  # type: ignore[no-untyped-def]
        logits, (histories,) = super().verify(*arguments)
        return logits, (type(histories)(histories.values[:, -1:].expand_as(histories.values)),)


def test_the_same_test_rejects_a_target_that_is_not_rolled_back() -> None:
    target, draft = Forgetful(1, PIECE), Tabular(2, PIECE)
    found = counts(lambda streams: speculative_paths(target, draft, 2, streams).tokens)
    assert rejected(found, probabilities(target))
