"""Requests that are wrong, one of each kind; a service answers each with a 4xx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from benchmarks.serving_bodies import Ask, Windows

PATH = "/v1/forecast"


def faults(windows: Windows, ids: Sequence[str], megabytes: float) -> Mapping[str, Ask]:
    """Faulty requests by their fault; the enormous one has one megabyte more than ``megabytes``."""
    good = windows.series(windows.table(0, "faulty"))
    text = orjson.dumps({"series": [good]}, option=orjson.OPT_SERIALIZE_NUMPY)
    first = orjson.dumps(good["y"][0])

    def changed(change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Ask:
        return _asked({"series": [{**good, **change(good)}]})

    return {
        "empty": Ask(PATH, b""),
        "cut off": Ask(PATH, text[: len(text) // 2]),
        "not UTF-8": Ask(PATH, text.replace(b"faulty", b"\xff\xfe")),
        "NaN": Ask(PATH, text.replace(b'"y":[' + first, b'"y":[NaN', 1)),
        "infinite": Ask(PATH, text.replace(b'"y":[' + first, b'"y":[1e999', 1)),
        "nested too deep": Ask(PATH, b"[" * 100_000),
        "enormous": Ask(PATH, b" " * int((megabytes + 1.0) * 1e6)),
        "not JSON by its type": Ask(PATH, text, "text/plain"),
        "no such page": Ask("/v1/forecasts", text),
        "nothing asked": _asked({}),
        "ids and series": _asked({"ids": [ids[0]], "series": [good]}),
        "unknown id": _asked({"ids": [ids[0], "nobody"]}),
        "one id twice": _asked({"ids": [ids[0], ids[0]]}),
        "one series twice": _asked({"series": [good, good]}),
        "no such column": _asked({"ids": [ids[0]], "columns": ["lo-12"]}),
        "unknown field": changed(lambda series: {"horizon": 3}),
        "too few values": changed(lambda series: {"y": series["y"][:-1]}),
        "text for a number": changed(lambda series: {"y": ["1.5", *series["y"][1:]]}),
        "no such time": changed(lambda series: {"ds": ["2016-13-45", *series["ds"][1:]]}),
        "one time twice": changed(lambda series: {"ds": [series["ds"][1], *series["ds"][1:]]}),
        "one value": changed(lambda series: {"y": [1.0, *[None] * (len(series["y"]) - 1)]}),
        "unknown covariate": changed(lambda series: {"covariates": {**series["covariates"], "moon": series["y"]}}),
    }


def _asked(body: Mapping[str, Any]) -> Ask:
    return Ask(PATH, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
