"""What happened, told to MLflow: one parent run a pipeline, a child run a stage, with retries where the store is busy.

Every call goes through ``MlflowClient`` and names its run, so nothing depends on an active run of the process and
threads may log at once. The processes of one pipeline find their parent run in ``WEATHERGLASS_PARENT_RUN`` or in
``<root>/.weatherglass/parent_run.json``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.experiment import experiment_name, home
from tasks.files import digest_of, locked, read_json, write_json
from tasks.params_file import dotted
from tasks.tracking_store import TrackingError, current_client, first_line, initialise, retry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "StageRun",
    "TrackingError",
    "finish_parent",
    "initialise",
    "log_alone",
    "log_dataset",
    "log_stage",
    "parent_run",
    "resumed_run",
    "stage_run",
]

PARENT_VARIABLE = "WEATHERGLASS_PARENT_RUN"
PARENT_TAG = "mlflow.parentRunId"
STAGE_TAG = "weatherglass.stage"
PARAM_LENGTH = 500
NAME_LENGTH = 150


def parent_run(root: Path | str, experiment: str, identity: Mapping[str, str], params: Mapping[str, Any] | None = None) -> str:
    """Return the run id of the pipeline's parent run, creating the run if this is the pipeline's first process.

    It is the run that ``WEATHERGLASS_PARENT_RUN`` names; else the one in ``parent_run.json``, if it was made for the
    same ``identity["params"]`` in the same DVC experiment and is still running (in an experiment, also if it has ended); else
    a new one. A running parent that was made for another was abandoned, and is marked KILLED.

    A new run is named after the DVC experiment, or ``pipeline`` and the time, and after what it changes.

    Parameters
    ----------
    root
        Project folder.
    experiment
        MLflow experiment name, created where it is new.
    identity
        ``params`` (any text that identifies the parameters) and whatever else says what ran, such as ``git_commit``,
        ``data_md5``, ``dvc_lock``, ``prefect_flow_run_id``, ``dvc_exp`` (the experiment's name) and ``changed`` (what differs
        from the committed params.yaml, in words). Each becomes the tag ``weatherglass.<key>``; the first process to give a
        tag decides it.
    params
        Logged on a new run, so that runs can be compared by them.

    Raises
    ------
    TrackingError
        If the store cannot be reached, or the run that the variable names does not exist.
    """
    client = current_client()
    tags = {f"weatherglass.{key}": str(value) for key, value in identity.items()}
    if identity.get("git_commit"):
        tags["mlflow.source.git.commit"] = str(identity["git_commit"])
    given = os.environ.get(PARENT_VARIABLE)
    if given:
        run = _find_run(client, given)
        if run is None:
            raise TrackingError(f"{PARENT_VARIABLE} is {given}, which is no run of the MLflow store; unset it.")
        _add_tags(client, run, tags)
        return given
    record_path = _record_path(root)
    key = digest_of([identity.get("params", ""), identity.get("dvc_exp", "")])
    with locked(record_path.with_suffix(".lock")):
        record = _read_record(record_path)
        run = _find_run(client, record["run_id"]) if record else None
        if run is not None and record.get("params") == key and (run.info.status == "RUNNING" or experiment_name()):
            if run.info.status != "RUNNING":
                retry(client.update_run, record["run_id"], status="RUNNING")
            _add_tags(client, run, tags)
            return str(run.info.run_id)
        if run is not None and run.info.status == "RUNNING":
            retry(client.set_terminated, record["run_id"], "KILLED")
        name = identity.get("dvc_exp") or f"pipeline {datetime.now():%Y-%m-%d %H:%M}"
        tags["weatherglass.kind"] = "experiment" if identity.get("dvc_exp") else "pipeline"
        if identity.get("changed"):
            name = _cut(f"{name}: {identity['changed']}", NAME_LENGTH)
        experiment_id = _experiment(client, root, experiment)
        run_id = str(retry(client.create_run, experiment_id, run_name=name, tags=tags).info.run_id)
        write_json(record_path, {"run_id": run_id, "params": key})
        _log(client, run_id, params)
        return run_id


def finish_parent(
    root: Path | str,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    status: str = "FINISHED",
) -> str | None:
    """Log final metrics and tags on the pipeline's parent run and end it; return its id, None where there is none.

    Running it again changes nothing. ``tags`` here replace those that :func:`parent_run` set, since ``dvc.lock``, for
    one, is final only now; keys are prefixed ``weatherglass.`` in the same way.
    """
    client = current_client()
    record_path = _record_path(root)
    with locked(record_path.with_suffix(".lock")):
        record = _read_record(record_path)
        run_id = os.environ.get(PARENT_VARIABLE) or record.get("run_id")
        if not run_id or _find_run(client, run_id) is None:
            return None
        _log(client, run_id, metrics=metrics, tags={f"weatherglass.{k}": str(v) for k, v in (tags or {}).items()})
        retry(client.set_terminated, run_id, status)
        if record.get("run_id") == run_id and experiment_name() is None:
            record_path.unlink(missing_ok=True)
        return str(run_id)


@dataclass(frozen=True)
class StageRun:
    """An open child run; each method may be called from any thread, any number of times."""

    run_id: str

    def log(
        self,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        histories: Mapping[str, Sequence[float]] | None = None,
        artifacts: Sequence[Path | str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to the run.

        Parameters
        ----------
        params
            Nested mappings become ``outer.inner``; values are cut at 500 characters.
        metrics
            ``<model>/<metric>`` to value; None is left out.
        histories
            A metric's value at steps 0, 1, 2, ...
        artifacts
            Files, or folders with all they hold.
        tags
            Set as they are.
        """
        client = current_client()
        _log(client, self.run_id, params, metrics, histories, tags)
        for path in map(Path, artifacts):
            if path.is_dir():
                retry(client.log_artifacts, self.run_id, str(path), path.name)
            else:
                retry(client.log_artifact, self.run_id, str(path))


@contextmanager
def stage_run(parent_run_id: str, name: str, tags: Mapping[str, str] | None = None) -> Iterator[StageRun]:
    """Open a child run ``name`` under a parent (a pipeline, or a stage for a member) for the length of the block.

    A child of the same name that a killed process left running is marked KILLED first. The run ends FINISHED, FAILED
    when the block raises, KILLED when it is interrupted; where MLflow itself was lost, the next run marks it.
    """
    client = current_client()
    parent = _find_run(client, parent_run_id)
    if parent is None:
        raise TrackingError(f"Run {parent_run_id}, the parent of stage {name}, is not in the MLflow store.")
    experiment_id = parent.info.experiment_id
    for left in _children(client, experiment_id, parent_run_id, name):
        if left.info.status == "RUNNING":
            retry(client.set_terminated, left.info.run_id, "KILLED")
    all_tags = {**(tags or {}), PARENT_TAG: parent_run_id, STAGE_TAG: name}
    run_id = str(retry(client.create_run, experiment_id, run_name=name, tags=all_tags).info.run_id)
    with _ended_as_the_block_ends(run_id):
        yield StageRun(run_id)


@contextmanager
def resumed_run(
    root: Path | str, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None
) -> Iterator[StageRun]:
    """Go on with the run ``run_id``, or open one with no parent where it is None or gone, for the length of the block.

    It ends as :func:`stage_run`'s does.
    """
    client = current_client()
    if run_id is not None and _find_run(client, run_id) is not None:
        retry(client.update_run, run_id, status="RUNNING")
    else:
        experiment_id = _experiment(client, root, experiment)
        run_id = str(retry(client.create_run, experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    with _ended_as_the_block_ends(run_id):
        yield StageRun(run_id)


@contextmanager
def _ended_as_the_block_ends(run_id: str) -> Iterator[None]:
    """End a run FINISHED, FAILED when the block raises, KILLED when it is interrupted; not where MLflow itself was lost."""
    status: str | None = "KILLED"
    try:
        yield
        status = "FINISHED"
    except TrackingError:
        status = None
        raise
    except Exception:
        status = "FAILED"
        raise
    finally:
        if status is not None:
            retry(current_client().set_terminated, run_id, status)


def log_stage(
    parent_run_id: str,
    name: str,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    artifacts: Sequence[Path | str] = (),
    histories: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log a stage that has already run as one child run (arguments as in :meth:`StageRun.log`); return its run id."""
    with stage_run(parent_run_id, name, tags) as run:
        run.log(params, metrics, histories, artifacts)
    return run.run_id


def log_alone(
    root: Path | str, experiment: str, name: str, digest: str, metrics: Mapping[str, float], artifacts: Sequence[Path | str]
) -> str:
    """Log a run of its own, outside of any pipeline; return its id.

    ``digest`` identifies what is logged: a run of that name and digest that is finished is returned as it is, and one that
    is not was left by a killed process, and is marked KILLED.
    """
    client, experiment_id = current_client(), _experiment(current_client(), root, experiment)
    tags = {STAGE_TAG: name, "weatherglass.kind": name, "weatherglass.digest": digest}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    for found in retry(client.search_runs, [experiment_id], query):
        if found.info.status == "FINISHED":
            return str(found.info.run_id)
        retry(client.set_terminated, found.info.run_id, "KILLED")
    run_id = str(retry(client.create_run, experiment_id, run_name=name, tags=tags).info.run_id)
    StageRun(run_id).log(metrics=metrics, artifacts=artifacts)
    retry(client.set_terminated, run_id)
    return run_id


def log_dataset(run_id: str, name: str, path: Path | str, digest: str, context: str = "training") -> None:
    """Record which version of the data a run read, as an MLflow dataset input; no row of it is copied.

    Parameters
    ----------
    run_id
        The parent run, as a rule.
    name
        Name of the panel.
    path
        Where it lies; shown as the source.
    digest
        Its version, for example the first 32 characters of its DVC MD5; MLflow keeps at most 36.
    context
        MLflow's word for the use: ``training``, ``evaluation``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": str(path)}))
    entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
    retry(current_client().log_inputs, run_id, datasets=[entry])


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run, None where it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = retry(client.get_run, run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _children(client: MlflowClient, experiment_id: str, parent_run_id: str, name: str) -> list[Run]:
    query = f"tags.`{PARENT_TAG}` = '{parent_run_id}' and tags.`{STAGE_TAG}` = '{name}'"
    return list(retry(client.search_runs, [experiment_id], query, max_results=1000))


def _experiment(client: MlflowClient, root: Path | str, name: str) -> str:
    """Return the experiment's id; a new one keeps its artefacts under the project unless a server keeps them."""
    from mlflow.exceptions import MlflowException

    found = retry(client.get_experiment_by_name, name)
    if found is not None:
        return str(found.experiment_id)
    remote = client.tracking_uri.startswith("http")
    location = None if remote else (home(root) / "mlartifacts" / _legal(name)).as_uri()
    try:
        return str(retry(client.create_experiment, name, artifact_location=location))
    except MlflowException as error:
        found = retry(client.get_experiment_by_name, name)  # another process was first
        if found is None:
            raise TrackingError(f"MLflow experiment {name} cannot be created: {first_line(error)}") from error
        return str(found.experiment_id)


def _add_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Set those tags that the run does not have yet."""
    _log(client, run.info.run_id, tags={key: value for key, value in tags.items() if key not in run.data.tags})


def _log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    histories: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log in batches that MLflow's limits allow: 100 params, 1000 metrics and 100 tags a call."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    points = [Metric(_legal(k), float(v), now, 0) for k, v in (metrics or {}).items() if v is not None]
    for key, values in (histories or {}).items():
        points += [Metric(_legal(key), float(value), now, step) for step, value in enumerate(values)]
    pairs = [Param(_legal(key), _cut(value)) for key, value in dotted(params or {})]
    labels = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
    for first in range(0, len(points), 1000):
        retry(client.log_batch, run_id, metrics=points[first : first + 1000])
    for first in range(0, max(len(pairs), len(labels)), 100):
        retry(client.log_batch, run_id, params=pairs[first : first + 100], tags=labels[first : first + 100])


def _cut(value: Any, length: int = PARAM_LENGTH) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _legal(key: str) -> str:
    """Replace what MLflow refuses in a key; ``tcn/wql`` is legal."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _record_path(root: Path | str) -> Path:
    folder = Path(root).resolve() / ".weatherglass"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "parent_run.json"


def _read_record(path: Path) -> dict[str, str]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError):
        return {}
