"""Batches read ahead by a thread are those of the loader, in order, and the thread ends with whoever reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from models.loading import AHEAD, Background, ahead, in_background
from models.panel import Batch, Panel, WindowLoader, Windows


def loader(panel: Panel) -> WindowLoader:
    return WindowLoader(panel, Windows(torch.tensor([0, 0, 1]), torch.tensor([30, 31, 20])), 4, 7, seed=1)


def reading() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_they_are_those_of_the_loader_in_order(panel: Panel) -> None:
    plain = list(loader(panel))
    for found in (list(in_background(loader(panel), pin=False)), list(ahead(loader(panel), torch.device("cpu")))):
        assert len(found) == len(plain) == len(Background(loader(panel)))
        for one, other in zip(found, plain, strict=True):
            assert all(torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in other)
    assert reading() == 0


def test_no_more_than_a_few_wait_and_the_thread_ends_when_nobody_reads_on() -> None:
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(100):
            taken.append(number)
            yield {"number": torch.tensor(number)}

    found = in_background(batches(), pin=False)
    assert int(next(found)["number"]) == 0 and reading() == 1
    found.close()  # type: ignore[attr-defined]
    assert reading() == 0 and len(taken) <= 1 + AHEAD + 1


def test_an_error_comes_where_its_batch_would_have() -> None:
    def batches() -> Iterator[Batch]:
        yield {"number": torch.tensor(1)}
        raise ValueError("a window that does not lie within its series")

    found = in_background(batches(), pin=False)
    next(found)
    with pytest.raises(ValueError, match="does not lie within"):
        next(found)
    assert reading() == 0
