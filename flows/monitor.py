"""monitor: the champion's forecasts against the truths that have come, and what an alarm starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.files import held, waiting, write_text

if TYPE_CHECKING:
    from tasks.monitor import Outcome
    from tasks.params import Params

EXIT_CALM, EXIT_ALARM = 0, 4
EVENT = "weatherglass.drift"


def run_monitor(root: Path, as_json: bool = False) -> int:
    """Judge and say so; returns 0 calm, 4 alarm, and 2 or 1 where a retraining that an alarm started ended so."""
    from flows.environment import opened

    root, params = opened(root)
    from flows.server import given_api
    from tasks.monitor import DRIFT, MONITOR, verdict_text

    server = given_api()
    with held(root / MONITOR / "monitor.lock", waiting("monitoring this project")):
        outcome = watch(root, params)
        if as_json:
            print(json.dumps(outcome.summary, indent=2), flush=True)
        else:
            print(f"{verdict_text(outcome)}\n\npage  {root / DRIFT}", flush=True)
        if not outcome.alarms:
            return EXIT_CALM
        return pass_on(root, params, outcome, server, quiet=as_json) or EXIT_ALARM


def watch(root: Path, params: Params) -> Outcome:
    """The outcome, found by a Prefect flow of its own, its page written and its figures logged."""
    from flows.stage import run_as_flow
    from tasks.monitor import DRIFT, RESULTS, metrics_of, monitor
    from tasks.registry import load_version, version_behind
    from tasks.report_drift import render_drift
    from tasks.tracking import initialise, log_alone

    initialise()
    version, digest = version_behind(params.registry.name)
    bundle = load_version(params.registry.name, version, digest)
    outcome = run_as_flow(root, "monitor", "champion against truth", monitor, params, root, bundle, version, digest)
    write_text(root / DRIFT, render_drift(outcome))
    if outcome.found:
        files = [root / RESULTS / "monitor.json", root / RESULTS / "figures.parquet", root / DRIFT]
        log_alone(root, params.registry.experiment, "monitor", outcome.digest, metrics_of(outcome), files)
    return outcome


def pass_on(root: Path, params: Params, outcome: Outcome, server: str | None, quiet: bool) -> int:
    """Tell the webhook of alarms and start what `monitor.retrain` asks for, each once for an outcome.

    Returns 0, or the exit code of a retraining that failed. What did not work is tried again by the next run.
    """
    from tasks.monitor import headline, mark_told, told
    from tasks.webhook import post, webhook_address

    done, rules = told(root, outcome), params.monitor
    address = webhook_address(rules.webhook)
    if address and "webhook" not in done:
        text = "\n".join([headline(outcome), *(figure.sentence for figure in outcome.alarms)])
        problem = post(address, {"text": text, "alarms": outcome.summary["alarms"]})
        if problem is None:
            mark_told(root, outcome, "webhook")
        else:
            print(f"monitor: {problem}", file=sys.stderr)
    if not rules.retrain or "retrain" in done:
        return 0
    if server is not None:
        emit_drift(outcome)
        print(f"monitor: event {EVENT} is sent to {server}", file=sys.stderr)
    else:
        command = [sys.executable, "-m", "flows", "retrain", "--root", str(root)]
        code = subprocess.run(command, cwd=root, stdout=sys.stderr if quiet else None, check=False).returncode
        if code in (1, 2):
            return code
    mark_told(root, outcome, "retrain")
    return 0


def emit_drift(outcome: Outcome) -> None:
    """Send the event `weatherglass.drift`, to which a deployment's trigger or an automation can react, and see it go."""
    import asyncio
    from datetime import UTC, datetime

    from prefect.events import Event
    from prefect.events.clients import get_events_client

    summary = outcome.summary
    resource = {"prefect.resource.id": f"weatherglass.model.{summary['model']}", "weatherglass.version": summary["version"]}
    payload = {"alarms": summary["alarms"]}
    event = Event.model_validate({"event": EVENT, "occurred": datetime.now(UTC), "resource": resource, "payload": payload})

    async def send() -> None:
        async with get_events_client() as client:
            await client.emit(event)

    asyncio.run(send())
