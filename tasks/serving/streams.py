"""Series whose history the service keeps: new rows come, and the forecast from all of them goes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd

from tasks.encoding import Encoding
from tasks.errors import UserError
from tasks.forecast import ingested_panel
from tasks.params_serving import Serving
from tasks.serving.bodies import Observations, Refusal, check_series, static_columns
from tasks.serving.champion import Champion
from tasks.serving.frames import Rows, rows_of, table_of

PLACE = ("body",)


class Streams:
    """Histories of at most ``limits.streams`` series, those used last, each of its newest ``limits.steps`` rows.

    They live in memory: after a restart a series begins again with the panel's rows, or with those that are sent. A
    series' networks are run anew for each forecast, since a window is scaled by all its values, the newest included; what
    is kept is the history, so that a client sends only what is new.
    """

    def __init__(self, root: Path, limits: Serving) -> None:
        self.root, self.limits = root, limits
        self._kept: OrderedDict[str, pd.DataFrame] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def turn(self, name: str) -> asyncio.Lock:
        """What to hold from `extended` to `keep`, so that rows of one series do not overtake each other."""
        return self._turns.setdefault(name, asyncio.Lock())

    def extended(self, champion: Champion, new: Observations) -> pd.DataFrame:
        """The history of a series with new rows at its end; Refusal where they do not follow it. Nothing is kept yet."""
        encoding = champion.contract.encoding
        before = None if new.restart else self._before(new.unique_id, champion)
        check_series(new, PLACE, encoding, self.limits, continued=before is not None)
        rows = table_of([rows_of(new, PLACE, champion.contract)])
        return (rows if before is None else _joined(before, rows, encoding)).tail(self.limits.steps)

    def keep(self, name: str, history: pd.DataFrame) -> None:
        """Keep a history, and forget that of the series used longest ago where there are too many."""
        self._kept[name] = history
        self._kept.move_to_end(name)
        while len(self._kept) > self.limits.streams:
            self._kept.popitem(last=False)

    def _before(self, name: str, champion: Champion) -> pd.DataFrame | None:
        kept = self._kept.get(name)
        if kept is not None or name not in champion.panel:
            return kept
        try:
            return ingested_panel(self.root, name)
        except UserError:
            return None


def rows_from(history: pd.DataFrame, encoding: Encoding) -> Rows:
    """A history as the rows of a request's series."""
    single = ("unique_id", *static_columns(encoding))
    return {name: history[name].iloc[0] if name in single else history[name].to_numpy() for name in history.columns}


def _joined(before: pd.DataFrame, rows: pd.DataFrame, encoding: Encoding) -> pd.DataFrame:
    """``rows`` after the observed part of ``before``, whose future rows stay where ``rows`` do not tell them anew."""
    end = before["ds"][before["y"].notna()].max()
    known = np.flatnonzero(rows["ds"] <= end)
    if len(known):
        raise Refusal(422, (*PLACE, "ds", int(known[0])), f"the series is known up to {end} already; send what follows")
    columns = set(before.columns) - set(rows.columns)
    rows = rows.assign(**{name: before[name].iloc[-1] for name in columns})[before.columns.tolist()]
    planned = before[(before["ds"] > end) & ~before["ds"].isin(rows["ds"])]
    return pd.concat([before[before["ds"] <= end], rows, planned]).sort_values("ds", kind="stable", ignore_index=True)
