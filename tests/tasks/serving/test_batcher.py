"""What is put together and what is not."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tasks.serving import batcher
from tasks.serving.batcher import Batcher
from tasks.serving.bodies import Refusal
from tasks.serving.gauges import Gauges


def champion(invariant: bool = True) -> Any:
    return SimpleNamespace(bundle=SimpleNamespace(batch_invariant=invariant))


def batches(monkeypatch: pytest.MonkeyPatch, most: int, asked: list[tuple[Any, int]]) -> list[list[int]]:
    """Sizes of the requests of each batch, all asked for while the first is computed; answers are the bundles' own."""
    seen: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def forecast(bundle: Any, requests: list[Any]) -> list[Any]:
        begun.set()
        assert go_on.wait(10)
        seen.append([len(request) for request in requests])
        return [[{"bundle": bundle}] for _ in requests]

    async def run() -> None:
        work = Batcher(most, 100, Gauges(print))
        work.start()
        calls = [asyncio.ensure_future(work.forecast(who, [((), pd.DataFrame())] * size)) for who, size in asked[:1]]
        await asyncio.to_thread(begun.wait)
        calls += [asyncio.ensure_future(work.forecast(who, [((), pd.DataFrame())] * size)) for who, size in asked[1:]]
        await asyncio.sleep(0)
        go_on.set()
        for (who, _), (answer,) in zip(asked, await asyncio.gather(*calls), strict=True):
            assert answer["bundle"] is who.bundle
        await work.stop()

    monkeypatch.setattr(batcher, "forecast_together", forecast)
    asyncio.run(run())
    return seen


def test_what_waits_is_forecast_together_up_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    one = champion()
    assert batches(monkeypatch, 6, [(one, 1), (one, 2), (one, 3), (one, 2), (one, 9), (one, 1)]) == [[1], [2, 3], [2], [9], [1]]


def test_champions_are_kept_apart_and_so_is_what_company_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, sampling = champion(), champion(), champion(invariant=False)
    asked = [(one, 1), (one, 1), (one, 1), (other, 1), (sampling, 1), (sampling, 1)]
    assert batches(monkeypatch, 6, asked) == [[1], [1, 1], [1], [1], [1]]


def test_what_waits_at_the_end_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[Any]:
        work = Batcher(8, 100, Gauges(print))  # never started: nothing is computed
        calls = [asyncio.ensure_future(work.forecast(champion(), [((), pd.DataFrame())])) for _ in range(2)]
        await asyncio.sleep(0)
        await work.stop()
        return await asyncio.gather(*calls, return_exceptions=True)

    for told in asyncio.run(run()):
        assert isinstance(told, Refusal) and told.status == 503
