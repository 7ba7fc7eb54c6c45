"""Progress of members through their epochs: a bar on stderr, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType


class EpochBar:
    """A bar over the epochs of all members; where stderr is a pipe, a line a member that ends.

    Parameters
    ----------
    title
        What is at work, such as ``train tcn``.
    epochs
        A member's name to the epochs that it may take.
    """

    def __init__(self, title: str, epochs: Mapping[str, int]) -> None:
        from tqdm import tqdm

        self._title, self._epochs = title, epochs
        self._done = dict.fromkeys(epochs, 0)
        self._bar = tqdm(total=sum(epochs.values()), desc=title, unit="epoch", disable=None, mininterval=1.0)

    def __enter__(self) -> EpochBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def at(self, member: str, epoch: int, loss: float) -> None:
        """Show that a member has done ``epoch`` epochs and its last early-stopping loss; late news of an ended one is none."""
        if member not in self._done:
            return
        self._bar.update(epoch - self._done[member])
        self._done[member] = epoch
        self._bar.set_postfix_str(f"{member} loss {loss:.4f}")

    def ended(self, member: str) -> None:
        """Count a member as done, whether or not it took all of its epochs."""
        self._bar.update(self._epochs[member] - self._done.pop(member))
        if self._bar.disable:
            print(f"{self._title}: {member} ended, {len(self._done)} to go", flush=True)
