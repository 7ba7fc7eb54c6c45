"""What the service must know of a champion to read requests for it, without its networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.bundle import Bundle
from tasks.encoding import Encoding
from tasks.params import Params


@dataclass(frozen=True)
class Contract:
    """A bundle's columns and promises: what it was trained with, how it reads a table, and its guarantee card.

    ``batch_invariant`` is whether a series' forecast is the same, but for rounding, whatever is forecast with it.
    """

    params: Params
    encoding: Encoding
    card: Mapping[str, Any]
    families: tuple[str, ...]
    members: int
    batch_invariant: bool

    @classmethod
    def of(cls, bundle: Bundle) -> Contract:
        families = tuple(sorted(set(bundle.families)))
        return cls(bundle.params, bundle.encoding, bundle.card, families, len(bundle.members), bundle.batch_invariant)
