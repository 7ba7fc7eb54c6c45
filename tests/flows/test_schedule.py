"""The schedule of retraining: where it is read, what is refused, and how a scheduled run of the flow ends."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from flows import deployment
from flows.schedule import next_time, schedule_of
from tasks.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
SCHEDULED = """
import asyncio, time
from pathlib import Path
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from flows.deployment import retrain
from flows.schedule import schedule_of

made = retrain.to_deployment(name="of a test", schedules=[schedule_of(Path.cwd(), "30 5 * * *", "America/Chicago")]).apply()

async def first_run():
    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[made]))
    async with get_client() as client:
        deadline = time.monotonic() + 60
        while not (runs := await client.read_flow_runs(deployment_filter=chosen)) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        await client.delete_deployment(made)
        return min(run.expected_start_time for run in runs)

print(asyncio.run(first_run()).isoformat())
"""


def test_the_schedule_is_the_one_of_the_retrain_deployment() -> None:
    schedule = schedule_of(PROJECT)
    assert (schedule.cron, schedule.timezone) == ("0 3 * * *", "UTC")
    assert next_time(schedule).endswith("T03:00+00:00")


def test_what_is_given_takes_the_place_of_the_file(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path, "30 5 * * MON", "America/Chicago")
    assert (schedule.cron, schedule.timezone) == ("30 5 * * MON", "America/Chicago")
    assert "T05:30-0" in next_time(schedule)  # local time, whichever of the two offsets holds that day
    assert schedule_of(PROJECT, timezone="America/Chicago").cron == "0 3 * * *"


@pytest.mark.parametrize(
    ("cron", "timezone", "told"),
    [
        ("61 3 * * *", None, "'61 3 * * *' is not a cron schedule; five fields are needed"),
        ("0 3 * *", None, "'0 3 \\* \\*' is not a cron schedule"),
        (None, "Mars/Base", "time zone 'Mars/Base' does not exist; use an IANA name"),
    ],
)
def test_a_wrong_schedule_is_one_sentence(cron: str | None, timezone: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("'61 3 * * *'", r"'61 3 \* \* \*'")):
        schedule_of(PROJECT, cron, timezone)


def test_without_a_schedule_in_the_file_one_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no cron schedule for the deployment 'retrain'; give --cron"):
        schedule_of(tmp_path)


def test_a_server_plans_runs_at_the_scheduled_times(prefect_api: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", SCHEDULED]
    variables = environment | {"PREFECT_API_URL": prefect_api}
    planned = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    local = datetime.fromisoformat(planned.stdout.strip()).astimezone(ZoneInfo("America/Chicago"))
    assert (local.hour, local.minute) == (5, 30)


@pytest.mark.parametrize(("code", "name"), [(0, "Promoted"), (3, "Kept")])
def test_a_scheduled_run_ends_in_a_state_that_says_what_was_decided(
    code: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "run_retrain", lambda root, force: code)
    state = deployment.retrain.fn()
    assert state.is_completed() and state.name == name


def test_a_failed_retraining_fails_the_scheduled_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "run_retrain", lambda root, force: 1)
    with pytest.raises(RuntimeError, match="exit code 1"):
        deployment.retrain.fn()
