"""serve-schedule: retrain on this machine at the times that prefect.yaml names, until interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.errors import UserError

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule

FILE, DEPLOYMENT = "prefect.yaml", "retrain"


def serve_schedule(root: Path, cron: str | None = None, timezone: str | None = None) -> int:
    """Wait for each scheduled time and retrain, one run at a time; returns 0 when interrupted.

    ``cron`` and ``timezone`` (IANA) take the place of those in prefect.yaml where they are given.
    """
    from flows.environment import opened
    from flows.server import prefect_server

    root, _ = opened(root)
    (root / ".weatherglass").mkdir(exist_ok=True)  # Prefect makes its home in it
    schedule = schedule_of(root, cron, timezone)
    with prefect_server(root) as api_url:
        from prefect import serve

        from flows.deployment import retrain

        deployment = retrain.to_deployment(name="on this machine", schedules=[schedule], parameters={"root": str(root)})
        print(
            f"retraining at '{schedule.cron}', time zone {schedule.timezone}; next at {next_time(schedule)}\n"
            f"Prefect {api_url.removesuffix('/api')}; Ctrl-C ends both",
            flush=True,
        )
        serve(deployment, limit=1, print_starting_message=False)  # type: ignore[arg-type]  # a coroutine only in a loop
    return 0


def schedule_of(root: Path, cron: str | None = None, timezone: str | None = None) -> CronSchedule:
    """The schedule of the deployment ``retrain`` in prefect.yaml, or what is given in its place.

    Raises UserError where there is none, or cron or time zone are not valid.
    """
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    found = {} if cron and timezone else _in_file(root)
    cron, timezone = cron or found.get("cron"), timezone or found.get("timezone") or "UTC"
    if cron is None:
        raise UserError(f"{FILE} names no cron schedule for the deployment '{DEPLOYMENT}'; give --cron, such as '0 3 * * *'.")
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("timezone",):
            raise UserError(f"time zone '{timezone}' does not exist; use an IANA name such as America/Chicago.") from None
        raise UserError(
            f"'{cron}' is not a cron schedule; five fields are needed, minute hour day month weekday, such as '0 3 * * *'."
        ) from None


def next_time(schedule: CronSchedule) -> str:
    """The first time of a schedule from now, as ISO 8601 with the offset from UTC."""
    from prefect.server.schemas.schedules import CronSchedule as Clock

    times = asyncio.run(Clock(cron=schedule.cron, timezone=schedule.timezone).get_dates(1))
    return times[0].isoformat(timespec="minutes")


def _in_file(root: Path) -> dict[str, Any]:
    """Cron and time zone of the first schedule of the deployment, empty where there is none."""
    path = root / FILE
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    for deployment in (tree or {}).get("deployments", []):
        if deployment.get("name") == DEPLOYMENT:
            return next((each for each in deployment.get("schedules") or [] if "cron" in each), {})
    return {}
