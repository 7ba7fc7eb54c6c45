"""What every stage shares: a Prefect flow on the pipeline's one server, a nested MLflow run, one-sentence errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from flows.pipeline import USER_ERROR
from flows.recovery import keep_lock
from flows.warm import handed_over
from tasks.errors import Unavailable, UserError
from tasks.experiment import changed_params, commit, described, experiment_name, home, revision
from tasks.files import digest_of, file_md5, write_text
from tasks.params import Params
from tasks.params_file import dotted
from tasks.tracking import StageRun

Result = TypeVar("Result")

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2
TOLD_ANYWAY = re.compile(r"encountered an exception:? (UserError|Unavailable|TrackingError)\b|^Still processing items")


@dataclass(frozen=True)
class Stage:
    """A stage at work: where, with which params, and the MLflow run that records it."""

    name: str
    root: Path
    params: Params
    run: StageRun
    parent_run_id: str
    identity: Mapping[str, str]

    def do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run ``work(*arguments)`` as a Prefect task named after it."""
        return as_task(work, *arguments)


def as_task(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run ``work(*arguments)`` as a task, named after it, of the flow at work."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    return task(name=work.__name__, cache_policy=NO_CACHE, persist_result=False)(work)(*arguments)


def run_as_flow(root: Path, name: str, run_name: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Run ``work(*arguments)`` as the one task of a flow on the project's Prefect server, outside of the stages."""
    from flows.server import prefect_server

    with prefect_server(root):
        from prefect import flow

        quiet_mistakes()

        @flow(name=name, flow_run_name=run_name, persist_result=False)
        def alone() -> Result:
            return as_task(work, *arguments)

        return alone()


def run_stage(name: str, body: Callable[[Stage], None], root: Path | None = None) -> int:
    """Run ``body`` as the stage ``name``; returns the exit code: 0, 2 for a user's mistake, 1 for a failure.

    A user's mistake, and a disk or service that is not available, is told in one sentence on stderr, without a traceback.
    """
    root = (root or Path.cwd()).resolve()
    end_with_dvc()
    if (code := handed_over()) is not None:
        return code
    try:
        params = Params.load(root=root)
        from flows.environment import configure

        configure(home(root), params.services.mlflow_uri, params.services.prefect_api_url)
        from flows.server import prefect_server

        keep_lock(root)
        with prefect_server(home(root)) as api_url, _told_when_lost(api_url):
            _run_flow(name, body, root, params)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        if error.exit_code == EXIT_USER_ERROR:
            write_text(root / USER_ERROR, f"{name}: {error}\n")
        return error.exit_code
    return 0


@contextmanager
def _told_when_lost(api_url: str) -> Iterator[None]:
    """Turn the loss of the Prefect server, once Prefect's client has retried for long enough, into one sentence."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the Prefect server at {api_url} was lost ({type(error).__name__}); run the same command again, which goes on "
            "from what is done, with that server up where services.prefect_api_url in params.yaml names one."
        ) from error


def _run_flow(name: str, body: Callable[[Stage], None], root: Path, params: Params) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    from tasks.tracking import initialise, parent_run, stage_run

    logging.raiseExceptions = False  # a log line that Prefect's server does not take is no error of the stage's
    quiet_mistakes()

    @flow(name=name.split("@")[0], flow_run_name=name, persist_result=False)
    def stage_flow() -> None:
        initialise()
        changed = changed_params(root)
        known = identity(root, changed) | {"prefect_flow_run_id": str(flow_run.id)}
        parent = parent_run(root, params.registry.experiment, known, run_params(params, changed))
        with ending_experiment(root), stage_run(parent, name, {"weatherglass.prefect_flow_run_id": str(flow_run.id)}) as run:
            body(Stage(name, root, params, run, parent, known))

    with _no_heartbeat():
        stage_flow()


@contextmanager
def _no_heartbeat() -> Iterator[None]:
    """Send no signs of life to the embedded server, where nobody listens: ending them takes Prefect half a second a flow."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.server import given_api

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if given_api() is None else {}):
        yield


@contextmanager
def ending_experiment(root: Path) -> Iterator[None]:
    """In a DVC experiment end its parent run with the block, FAILED when the block raises; its next stage opens it again.

    No stage can tell whether it is the experiment's last, and nobody comes back for one that was left open.
    """
    if experiment_name() is None:
        yield
        return
    from tasks.tracking import finish_parent

    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        finish_parent(root, status=status)


def quiet_mistakes() -> None:
    """Keep a user's mistake, which is told in one sentence, off Prefect's console; its server is told all the same.

    So is that its events are still on their way, of which a slow machine is told at the end of each flow.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_told_anyway)


def _not_told_anyway(record: logging.LogRecord) -> bool:
    """Whether a line of Prefect's is about anything but what :func:`run_stage` tells by itself in one sentence."""
    import httpx

    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, UserError | httpx.HTTPError) and TOLD_ANYWAY.search(record.getMessage()) is None


def identity(root: Path, changed: Mapping[str, Any]) -> dict[str, str]:
    """What a run is a run of: digests of params.yaml, of the data and of dvc.lock, the git commit, the DVC experiment.

    ``changed`` holds what params.yaml changes against the committed one.
    """
    found = {"params": digest_of((root / "params.yaml").read_text(encoding="utf-8"))}
    for key, path in (("data_md5", root / "data/ingested/panel.parquet"), ("dvc_lock", root / "dvc.lock")):
        if path.exists():
            found[key] = file_md5(path)
    told = {
        "git_commit": commit(root),
        "git_revision": revision(root),
        "dvc_exp": experiment_name(),
        "changed": described(changed),
    }
    return found | {key: value for key, value in told.items() if value}


def run_params(params: Params, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Params by which runs are compared: all that are in use, and any other that is ``changed`` from what is committed."""
    tree = params.model_dump(mode="json")
    tree["forecasters"] = {family: tree["forecasters"][family] for family in params.families}
    return dict(dotted(tree)) | dict(changed)


def end_with_dvc() -> None:
    """End this process when the ``dvc repro`` that started it is killed, so that a rerun finds no one still at work."""
    if "DVC_STAGE" not in os.environ:
        return
    dvc = _dvc()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while dvc is not None and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
        os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, daemon=True).start()


def _dvc() -> psutil.Process | None:
    """DVC's process: the nearest one above this without the variable that DVC gives its stages; None if it is gone.

    It is the parent where the shell of a stage's command replaces itself by the command, as bash does, and the parent's
    parent where the shell stays, as dash does.
    """
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if "DVC_STAGE" not in process.environ():
                return process
    return None
