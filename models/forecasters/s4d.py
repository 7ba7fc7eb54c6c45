"""S4D network: blocks around a diagonal state-space model, trained as a convolution and streamed as a recurrence."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import Recorded, State, StateSpec, Trail
from models.layers.s4d import S4D
from models.layers.state_space import ResidualStack, SequenceMixer, check_sizes

__all__ = ["S4DBackbone", "S4DBlock"]


class S4DBlock(SequenceMixer):
    """S4D layer, then channels mixed, without norm and residual: GLU(out_proj(dropout(GELU(S4D(input))))).

    Parameters
    ----------
    width : int
        Channels in and out.
    state_size : int
        States of a channel.
    initialisation : str
        "legs", "lin", "inv" or "real".
    discretisation : str
        "zoh", "bilinear" or "euler".
    dropout : float
        Probability of dropping an activation, in [0, 1).

    Gu, Gupta, Goel & Re (2022); the block is that of Gu, Goel & Re, "Efficiently Modeling Long Sequences with Structured
    State Spaces" (2022).
    """

    def __init__(self, width: int, state_size: int, initialisation: str, discretisation: str, dropout: float) -> None:
        super().__init__()
        self.ssm = S4D(width, state_size, initialisation, discretisation)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, 2 * width)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The states of the recurrence."""
        return (self.ssm.state_spec,)

    def _mix(self, y: Tensor) -> Tensor:
        return functional.glu(self.out_proj(self.dropout(functional.gelu(y))), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to (batch, time, width); output t sees inputs up to t."""
        return self._mix(self.ssm(x))

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As `forward`, going on from `state`; also the state after the last step."""
        y, hidden = self.ssm.extend(x, state[0])
        return self._mix(y), (hidden,)

    def trail(self, x: Tensor, state: State) -> tuple[Tensor, Trail]:
        """As `extend`, for a short piece, with the state after any of its steps."""
        y, states = self.ssm.trail(x, state[0])
        return self._mix(y), (Recorded(states),)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As `extend` for the one step (batch, width)."""
        y, hidden = self.ssm.step(x_t, state[0])
        return self._mix(y), (hidden,)


class S4DBackbone(ResidualStack):
    """Stack of S4D blocks, each behind an RMSNorm and inside a residual connection, with a norm at the end.

    Runs over a whole sequence, or step by step at a cost that does not depend on the context (`initial_state`, `step`,
    `extend`).

    Parameters
    ----------
    width, state_size, initialisation, discretisation, dropout
        As in `S4DBlock`; the dropout also acts on a block's output.
    layers : int
        Blocks.

    Raises
    ------
    ValueError
        If a size is below 1, `state_size` is odd where conjugate pairs are needed, or a name does not exist.
    """

    def __init__(
        self, width: int, layers: int, state_size: int, initialisation: str, discretisation: str, dropout: float
    ) -> None:
        check_sizes(width=width, layers=layers, state_size=state_size)
        blocks = [S4DBlock(width, state_size, initialisation, discretisation, dropout) for _ in range(layers)]
        super().__init__(blocks, width, dropout)
