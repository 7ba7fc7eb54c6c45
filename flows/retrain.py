"""retrain: run what is stale, let the challenger meet the champion on fresh cutoffs, promote it or keep the champion."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.pipeline import run_pipeline
from tasks.files import held, refusing
from tasks.raw_data import pull

if TYPE_CHECKING:
    from tasks.bundle import Bundle
    from tasks.contest import Verdict
    from tasks.params import Params

EXIT_PROMOTED, EXIT_KEPT = 0, 3


def run_retrain(root: Path, force: bool = False) -> int:
    """Retrain and decide; returns 0 promoted, 3 champion kept, 2 a user's mistake, 1 a failure."""
    from flows.environment import opened

    root, params = opened(root)
    with alone(root):
        if (done := pull(root, params)) is not None:
            print(done, flush=True)
        before = _champion(params)
        code = run_pipeline(root, force=force)
        return code or decide(root, params, before)


def alone(root: Path) -> AbstractContextManager[int]:
    """Hold the project's retraining lock; a second run refuses and names the process that holds it."""
    return held(root / ".weatherglass/retrain.lock", refusing("retraining this project"))


def decide(root: Path, params: Params, before: str | None) -> int:
    """Promote the challenger of the last run, or keep the champion; says why and returns the exit code."""
    from tasks.files import read_json
    from tasks.promotion import ROLLED_BACK, judged, keep_out, promote, promoted_at
    from tasks.registry import load_challenger, load_champion
    from tasks.versions import RECEIPT

    name, receipt = params.registry.name, read_json(root / RECEIPT)
    champion, version = _champion(params), str(receipt["version"])
    assert champion is not None  # registering has made the first version champion
    if version == champion:
        if before is None:
            print(f"{name}: version {version} is the first and @champion")
            return EXIT_PROMOTED
        promote(root, name, version)  # changes nothing, but for an alias that a killed promotion has left
        print(f"{name}: nothing new; version {champion} stays @champion")
        return EXIT_KEPT
    if (earlier := judged(name, version, champion)) is not None:
        what = "rolled back" if earlier.action == ROLLED_BACK else "kept out"
        print(f"{name}: version {version} was {what} {earlier.at}: {earlier.reason}; version {champion} stays @champion")
        return EXIT_KEPT
    old, new = load_champion(name), load_challenger(name, version, receipt["bundle"])
    verdict = meet(root, params, old, new, promoted_at(name, champion))
    if verdict.passed:
        promote(root, name, version, verdict.text, verdict.figures)
        print(f"{name}: version {version} is @champion now: {verdict.text}; version {champion} is @previous_champion")
        return EXIT_PROMOTED
    keep_out(root, name, version, verdict.text, verdict.figures)
    print(f"{name}: version {version} is kept out: {verdict.text}; version {champion} stays @champion")
    return EXIT_KEPT


def meet(root: Path, params: Params, champion: Bundle, challenger: Bundle, since: str | None) -> Verdict:
    """The gate's verdict, found by a Prefect flow of its own on the project's server."""
    from flows.stage import run_as_flow
    from tasks.contest import judge

    return run_as_flow(root, "contest", "champion against challenger", judge, params, root, champion, challenger, since)


def _champion(params: Params) -> str | None:
    from tasks.tracking_store import initialise
    from tasks.versions import aliases_of

    initialise()
    return aliases_of(params.registry.name).get("champion")
