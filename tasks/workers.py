"""A member on a worker of a cluster that sees the project's folder, and what the one who waits for it can see."""

from __future__ import annotations

from pathlib import Path

from tasks.files import write_text
from tasks.member import MemberSpec
from tasks.on_worker import IN_TURN, must_see
from tasks.prepare import PREPARED
from tasks.train import complete_member

EPOCH = "epoch.txt"


def complete_on_worker(spec: MemberSpec) -> None:
    """Train a member and let it predict, in a worker's process; its files are those of a local run.

    Raises UserError where the worker does not see the project's data.
    """
    must_see(spec.root / PREPARED)

    def report(epoch: int, loss: float) -> None:
        write_text(spec.folder / EPOCH, f"{epoch} {loss}")

    with IN_TURN:
        complete_member(spec, report)


def last_report(folder: Path) -> tuple[int, float]:
    """The epochs that a member has done and its last early-stopping loss, as it wrote them; 0 before the first."""
    try:
        epoch, loss = (folder / EPOCH).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return 0, float("nan")
    return int(epoch), float(loss)
