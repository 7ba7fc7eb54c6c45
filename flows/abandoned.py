"""Runs that a killed worker has left behind: told to Prefect as crashed, and a retraining among them begun again.

A worker that dies with its machine, or by SIGKILL, cannot tell the server so: the run would count as running for ever, and hold
the one slot that its deployment has until its lease ends. A worker's start is the time to put that right, where the server
serves one project with one worker, as in the stack of containers: flows are told by their names, so that of another project's
runs it would be wrong.

    python -m flows.abandoned        # in the project's folder, before `prefect worker start`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from flows.pipeline import RUN_LOCK
from flows.retrain import alone
from flows.schedule import DEPLOYMENT, FILE
from tasks.errors import UserError
from tasks.files import held, refusing

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

AGAIN = "begun again"
"""Tag of a run that takes an abandoned one's place; such a run is not given a third try."""
MESSAGE = "its worker was killed"


def take_over(root: Path) -> list[str]:
    """End what no process works on any more, and begin an abandoned retraining again; returns what was done, a line each.

    Nothing is done while a process runs or retrains this project.
    """
    from flows.environment import opened

    root, _ = opened(root)
    try:
        with alone(root), held(root / RUN_LOCK, refusing("running this project")):
            return _taken_over(root)
    except UserError as error:
        return [f"left alone: {error}"]


def _taken_over(root: Path) -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    done: list[str] = []
    with get_client(sync_client=True) as client:
        runs = _unended(client, root)
        for run in runs:
            client.set_flow_run_state(run.id, Crashed(message=MESSAGE), force=True)
            done.append(f"{run.name}: {MESSAGE}")
        retrainings = [run for run in runs if run.deployment_id is not None and _deployed(client, run) == DEPLOYMENT]
        for run in retrainings[:1]:
            if AGAIN not in run.tags and run.deployment_id is not None:
                new = client.create_flow_run_from_deployment(run.deployment_id, parameters=run.parameters, tags=[AGAIN])
                done.append(f"{run.name}: {AGAIN} as {new.name}")
    return done


def _unended(client: SyncPrefectClient, root: Path) -> list[FlowRun]:
    """Runs of this project's flows that have begun and not ended, the newest first."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as StateType
    from prefect.client.schemas.objects import StateType as Type
    from prefect.client.schemas.sorting import FlowRunSort

    names = sorted(_flows(root))
    begun = [Type.PENDING, Type.RUNNING, Type.CANCELLING]
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=names)),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=StateType(any_=begun))),
        sort=FlowRunSort.START_TIME_DESC,
    )


def _flows(root: Path) -> set[str]:
    """Names of the flows that a retraining is made of: the deployments', the stages' and those between."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    deployments = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))["deployments"]
    return {"members", "contest", *stages, *(each["name"] for each in deployments)}


def _deployed(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """Name of the deployment that a run is of."""
    return client.read_deployment(run.deployment_id).name if run.deployment_id is not None else None


if __name__ == "__main__":
    for line in take_over(Path.cwd()):
        print(line, flush=True)
