"""Heads: what turns a network's hidden state into a predictive distribution."""

from __future__ import annotations

import inspect
from typing import Any

from models.heads.base import Head
from models.heads.categorical import CategoricalHead
from models.heads.negative_binomial import NegativeBinomialHead
from models.heads.normal import NormalHead, beta_nll, gaussian_nll
from models.heads.quantile import QuantileHead
from models.heads.student_t import StudentTHead

__all__ = [
    "HEADS",
    "CategoricalHead",
    "Head",
    "NegativeBinomialHead",
    "NormalHead",
    "QuantileHead",
    "StudentTHead",
    "beta_nll",
    "build_head",
    "gaussian_nll",
]

HEADS: dict[str, type[Head]] = {
    "quantile": QuantileHead,
    "normal": NormalHead,
    "student_t": StudentTHead,
    "negative_binomial": NegativeBinomialHead,
    "categorical": CategoricalHead,
}


def build_head(name: str, width: int, **options: Any) -> Head:
    """Return an untrained head of `name` for hidden states of `width`.

    Raises ValueError for a name that does not exist, or an option that the head does not have.
    """
    if name not in HEADS:
        raise ValueError(f"'{name}' is not a head; there are {', '.join(HEADS)}")
    known = [option for option in inspect.signature(HEADS[name].__init__).parameters if option not in ("self", "width")]
    for option in options:
        if option not in known:
            raise ValueError(f"the {name} head has no option '{option}'; it has {', '.join(known) or 'none'}")
    return HEADS[name](width, **options)
