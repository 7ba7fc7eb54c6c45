"""What a killed worker has left is ended, a retraining is begun again once, and nothing is done beside a live one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from flows.abandoned import AGAIN, take_over
from flows.retrain import alone

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as connected:
        yield connected


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml", "prefect.yaml"):
        shutil.copyfile(PROJECT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def deployment(client: SyncPrefectClient) -> UUID:
    """A deployment `retrain` that holds one run at a time, as in prefect.yaml."""
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    return client.create_deployment(
        flow_id=client.create_flow_from_name("retrain"),
        name="retrain",
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        enforce_parameter_schema=False,
    )


def begun(client: SyncPrefectClient, deployment: UUID, *tags: str) -> UUID:
    """A run of the deployment that its worker has begun to work on."""
    from prefect.states import Pending, Running

    run = client.create_flow_run_from_deployment(deployment, parameters={"force": True}, tags=list(tags)).id
    for state in (Pending(), Running()):
        assert client.set_flow_run_state(run, state).status.value == "ACCEPT"
    return run


def runs_of(client: SyncPrefectClient, deployment: UUID) -> dict[UUID, str]:
    """State by id of all runs of the deployment."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return {run.id: str(run.state_name) for run in client.read_flow_runs(deployment_filter=chosen)}


def test_an_abandoned_retraining_is_ended_and_begun_again_once(client: SyncPrefectClient, deployment: UUID, root: Path) -> None:
    take_over(root)  # what other tests have killed on this server
    killed = begun(client, deployment)
    with alone(root):
        (told,) = take_over(root)
        assert told.startswith("left alone: process ")
    assert runs_of(client, deployment) == {killed: "Running"}

    assert len(take_over(root)) == 2
    states = runs_of(client, deployment)
    assert states.pop(killed) == "Crashed"
    ((again, state),) = states.items()
    assert state == "Scheduled"
    second = client.read_flow_run(again)
    assert (AGAIN in second.tags, second.parameters) == (True, {"force": True})
    assert take_over(root) == []  # what waits for its worker is not abandoned

    from prefect.states import Pending, Running

    for begins in (Pending(), Running()):  # the slot of the one that was killed is free again
        assert client.set_flow_run_state(again, begins).status.value == "ACCEPT"
    assert len(take_over(root)) == 1
    assert runs_of(client, deployment) == {killed: "Crashed", again: "Crashed"}
