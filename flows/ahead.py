"""ahead: on a cluster, the members of all stale families at once, before DVC's stages gather one family after another."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from flows.stage import Stage, run_stage
from tasks.params import Params


def train_ahead(root: Path, params: Params, force: bool = False) -> int:
    """Train the members of all families that DVC is going to train, where there is more than one; returns the exit code.

    Their checkpoints lie where the stages look for them, so that each stage finds its members done.
    """
    families: list[str] = list(params.families) if force else stale_families(root, params)
    if len(families) < 2:
        return 0
    return run_stage("train", lambda stage: ahead_flow(stage, families), root)


def stale_families(root: Path, params: Params) -> list[str]:
    """Those of ``families`` whose stage DVC calls stale."""
    command = [sys.executable, "-m", "dvc", "status", "--json", "train"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise RuntimeError(f"dvc status failed: {told.stderr.strip()}")
    stale = json.loads(told.stdout)
    return [family for family in params.families if f"train@{family}" in stale]


def ahead_flow(stage: Stage, families: list[str]) -> None:
    stage.run.log(params={"families": ", ".join(families), "runner": stage.params.runner})
    stage.do(train_members, stage.params, stage.root, families)


def train_members(params: Params, root: Path, families: list[str]) -> None:
    """Train all members of several families side by side."""
    from flows.runners import members_runner
    from tasks.train import checkpoints_of, members_left

    with ExitStack() as held:
        kept = {family: held.enter_context(checkpoints_of(params, root, family)) for family in families}
        specs = [spec for family, keep in kept.items() for spec in members_left(params, root, family, keep)]
        if specs:
            members_runner(params)(specs)
