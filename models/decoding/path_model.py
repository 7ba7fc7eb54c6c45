"""What decoding asks of a model: tokens of sampled paths in, logits of the next token out, and a way back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from models.decoding.streaming import State, Trail

__all__ = ["PathModel"]


class PathModel(Protocol):
    """An autoregressive distribution over the tokens of R paths of `horizon` steps.

    A path's step n is distributed by its earlier tokens, and by what is known of the path and of step n. The input of step n
    is the token of step n - 1; that of step 0 is the start token, `bins`. Paths need not stand at the same step, and
    `rows` (r,) int64 says which of the R paths a call is about. Steps beyond the horizon may be asked for and are not used.

    A model may have `draw` besides, `step` and the choice of a token in one, for `models.decoding.speculative.next_token`.

    Attributes
    ----------
    rows, horizon, bins : int
        R, the steps of a path, and V; tokens are 0 to V - 1.
    resizable : bool
        Whether calls may be about some of the rows; a model compiled for R rows wants all of them each time.
    """

    rows: int
    horizon: int
    bins: int
    resizable: bool

    def begin(self) -> State:
        """State of all R paths before step 0."""
        ...

    def step(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (r, V) of step ``position`` (r,) after the token ``previous`` (r,), and the state that has read it."""
        ...

    def verify(self, previous: Tensor, position: Tensor, rows: Tensor, state: State) -> tuple[Tensor, Trail]:
        """Logits (r, T, V) of T steps from ``position`` (r,) on, after tokens ``previous`` (r, T), in one pass.

        And the trail that `models.decoding.streaming.roll_back` takes to the state after any of these tokens.
        """
        ...
