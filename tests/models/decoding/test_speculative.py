"""Speculative decoding path by path: greedy and coupled tokens are the target's own, and a path depends on itself alone."""

from __future__ import annotations

import pytest
import torch

from models.decoding.speculative import Tally, ancestral_paths, speculative_paths
from models.decoding.streams import ACCEPT, CHOOSE, DRAFT, WITHIN, Streams
from models.decoding.truncation import Truncation
from tests.models.decoding.path_models import BACKBONES, BINS, HORIZON, Network, Tabular

ROWS = 64
GREEDY = Truncation(temperature=0.0)


def streams(seed: int = 0, rows: int = ROWS) -> Streams:
    return Streams(seed, torch.arange(rows), HORIZON)


def networks(kind: str) -> tuple[Network, Network]:
    return tuple(Network(kind, seed, ROWS, dtype=torch.float64) for seed in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("kind", BACKBONES)
def test_greedy_paths_are_equal_token_for_token(kind: str, length: int) -> None:
    target, draft = networks(kind)
    expected = ancestral_paths(target, streams(), GREEDY)
    assert torch.equal(speculative_paths(target, draft, length, streams(), GREEDY).tokens, expected)
    assert torch.equal(speculative_paths(target, draft, length, streams(), GREEDY, "gumbel").tokens, expected)


@pytest.mark.parametrize("kind", BACKBONES)
def test_coupled_paths_are_the_same_for_every_draft(kind: str) -> None:
    target, _ = networks(kind)
    for seed in range(5):
        expected = ancestral_paths(target, streams(seed), rule="gumbel")
        for draft in (Network("recurrent", 7, ROWS), Tabular(seed, ROWS), target):
            for length in (1, 3):
                decoded = speculative_paths(target, draft, length, streams(seed), rule="gumbel")
                assert torch.equal(decoded.tokens, expected)
    assert decoded.tally.acceptance_rate == 1.0  # of the target, drafting for itself


def test_a_path_does_not_depend_on_those_beside_it() -> None:
    together = speculative_paths(Tabular(1, ROWS), Tabular(2, ROWS), 2, streams()).tokens
    for row in (0, 17, ROWS - 1):
        alone = speculative_paths(Tabular(1, 1), Tabular(2, 1), 2, Streams(0, torch.tensor([row]), HORIZON))
        assert torch.equal(alone.tokens[0], together[row])


def test_a_model_of_one_size_gives_the_same_paths() -> None:
    """Rows that have ended stay in the batch of a model that cannot be made smaller."""
    target, draft = networks("hybrid")
    expected = speculative_paths(target, draft, 3, streams()).tokens
    target.resizable = False
    assert torch.equal(speculative_paths(target, draft, 3, streams()).tokens, expected)


def test_a_target_that_drafts_for_itself_is_always_accepted() -> None:
    decoded = speculative_paths(Tabular(1, ROWS), Tabular(1, ROWS), 3, streams())
    assert decoded.tally.acceptance == [1.0, 1.0, 1.0]
    assert (decoded.tally.calls, decoded.tally.tokens_per_call) == (1, 4.0)


def test_the_tally_counts_what_was_judged() -> None:
    tally = Tally()
    tally.add(torch.tensor([0, 1, 2, 0]), torch.tensor([3, 1, 3, -1]), 2)  # the last row had ended
    assert (tally.tried, tally.accepted) == ([3, 1], [2, 1])
    assert (tally.calls, tally.turns, tally.tokens) == (1, 3, 6)


def test_acceptance_is_the_overlap_of_target_and_draft() -> None:
    """The first drafted token is kept with probability sum min(p, q): a share of 20,000 within 4 standard errors."""
    rows = 20_000
    target, draft = Tabular(1, rows), Tabular(2, rows)
    overlap = float(torch.minimum(*(model.table[0, 0].softmax(0) for model in (target, draft))).sum())
    target.horizon = draft.horizon = 2
    tally = speculative_paths(target, draft, 1, Streams(3, torch.arange(rows), 2)).tally
    assert tally.tried == [rows]
    assert abs(tally.acceptance[0] - overlap) < 4 * (overlap * (1 - overlap) / rows) ** 0.5


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="drafts at least 1 token, got 0"):
        speculative_paths(Tabular(1, 2), Tabular(2, 2), 0, streams(rows=2))
    draft = Tabular(2, 2)
    draft.bins = 4
    with pytest.raises(ValueError, match=r"must agree in rows, horizon and bins, got \(2, 4, 3\) and \(2, 4, 4\)"):
        speculative_paths(Tabular(1, 2), draft, 1, streams(rows=2))


def test_streams_are_uniform_and_belong_to_their_path() -> None:
    """Means and correlations of 40,000 numbers lie within 4.5 standard errors; the seeds are fixed."""
    many = Streams(11, torch.arange(10_000), HORIZON)
    every = torch.stack([many.all(purpose) for purpose in (DRAFT, ACCEPT, CHOOSE, WITHIN)], dim=-1)  # (R, H, purposes)
    assert float(every.min()) > 0.0 and float(every.max()) < 1.0
    for values in every.unbind(-1):
        assert abs(float(values.mean()) - 0.5) < 4.5 * (1 / 12 / values.numel()) ** 0.5
        count = torch.histc(values, 100, 0.0, 1.0)
        assert float((count - 400.0).square().sum() / 400.0) < 99 + 4.5 * (2 * 99) ** 0.5
    columns = every.flatten(1).T
    correlation = torch.corrcoef(torch.cat([columns, columns.roll(1, dims=1)])) - torch.eye(2 * len(columns))
    assert float(correlation.abs().max()) < 4.5 / 100.0
    part = Streams(11, torch.tensor([42, 7]), HORIZON)
    assert torch.equal(part.all(DRAFT), many.all(DRAFT)[[42, 7]])
    assert not torch.equal(Streams(12, torch.tensor([42, 7]), HORIZON).all(DRAFT), part.all(DRAFT))


def test_gumbel_numbers_choose_by_probability() -> None:
    mass = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    noise = Streams(2, torch.arange(50_000), 1).gumbel(BINS, torch.arange(50_000), torch.zeros(50_000, dtype=torch.long))
    share = torch.bincount((mass.log() + noise).argmax(-1), minlength=BINS) / 50_000
    assert bool(((share - mass).abs() < 4 * (mass * (1 - mass) / 50_000).sqrt()).all())


def test_truncation_keeps_the_likely_tokens() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    torch.testing.assert_close(Truncation().probabilities(logits), logits.double().exp())
    torch.testing.assert_close(Truncation(top_k=2).probabilities(logits), torch.tensor([4.0, 3.0, 0.0, 0.0]).double() / 7)
    torch.testing.assert_close(Truncation(top_p=0.75).probabilities(logits), torch.tensor([4.0, 3.0, 2.0, 0.0]).double() / 9)
    torch.testing.assert_close(Truncation(0.5).probabilities(logits), torch.tensor([16.0, 9.0, 4.0, 1.0]).double() / 30)
    assert Truncation(0.0).probabilities(logits).tolist() == [1.0, 0.0, 0.0, 0.0]
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .* got"):
            Truncation(**wrong)
