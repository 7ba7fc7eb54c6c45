"""distill: drafts for the champion's members that sample paths of bins."""

from __future__ import annotations

import sys
from pathlib import Path


def run_distill(root: Path, alias: str, kind: str, steps: int, as_json: bool) -> int:
    """Train the drafts and say what they are; returns the exit code."""
    from flows.environment import opened

    root, params = opened(root)
    from tqdm import tqdm

    from flows.outcome import tell
    from tasks.prepare import load_prepared
    from tasks.registry import load_version, version_behind
    from tasks.sampling import FOLDER, binned_members, distil
    from tasks.tracking import initialise

    initialise()
    version, digest = version_behind(params.registry.name, alias)
    bundle = load_version(params.registry.name, version, digest)
    label = f"{params.registry.name}-{version}"
    total = steps * len(binned_members(bundle))
    with tqdm(total=total, desc=f"distill {kind}", unit="step", disable=None, mininterval=1.0) as bar:

        def report(name: str, step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix_str(f"{name} loss {loss:.4f}")

        done = distil(root, label, digest, bundle, load_prepared(root), kind, steps, report)
    if as_json:
        tell(done)
        return 0
    for name, found in done.items():
        share = found["draft_parameters"] / found["target_parameters"]
        print(f"{name}: loss {found['loss']:.4f}, {share:.1%} of its target's parameters")
    print(f"drafts in {root / FOLDER / label}", file=sys.stderr)
    return 0
