"""Where members and parts of a panel are worked on: this machine, or a Dask or Ray cluster through Prefect's task runners."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from tasks.errors import UserError
from tasks.params import Params

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

    from tasks.member import MemberSpec
    from tasks.train import RunMembers

PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
EXAMPLES = {"dask": "tcp://10.0.0.5:8786", "ray": "ray://10.0.0.5:10001 or, on a node of the cluster, 10.0.0.5:6379"}
RETRY_SECONDS = [2.0, 10.0]  # before a member that failed is tried again; a worker that died is the cluster's to replace
CONNECT_SECONDS = 10.0
POLL_SECONDS = 1.0
RAY_BEYOND_THIS_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where it is 0, Ray's servers listen on 127.0.0.1 alone, on Linux as well; else on all addresses."""
RAY_AUTH_MODE = "RAY_AUTH_MODE"
RAY_TOKEN = Path(".ray/auth_token")  # at home
OBJECT_STORE_BYTES = 100 * 2**20  # of a local Ray cluster: members pass paths, never arrays


def members_runner(params: Params) -> RunMembers:
    """How members are trained under ``runner``."""
    from tasks.train import run_members

    return run_members if params.runner == "local" else run_on_cluster


def check_runner(params: Params) -> None:
    """Refuse a runner whose packages are not installed or whose cluster does not answer.

    Raises
    ------
    UserError
        One sentence that names the extra, or ``runner_address``.
    """
    if params.runner == "local":
        return
    if importlib.util.find_spec(PACKAGES[params.runner]) is None:
        raise UserError(
            f"runner is {params.runner}, whose packages are not installed: pip install -e '.[{params.runner}]', "
            "or set runner: local."
        )
    address = params.runner_address
    if address is None or address == "auto":
        return
    host, port = _host_and_port(params.runner, address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"runner_address is {address}, where no {params.runner} cluster answers ({error.strerror or error}): start it, "
            "or set runner_address: null for one on this machine."
        ) from None


def run_on_cluster(specs: Sequence[MemberSpec]) -> None:
    """Train and predict members on the workers of a Dask or Ray cluster, as tasks of a Prefect flow, with a progress bar.

    Needs a Prefect server (``PREFECT_API_URL``). All members are tried, whatever becomes of one; those that are done are
    kept for the next run.

    Raises
    ------
    UserError
        The cluster cannot be used as it is.
    RuntimeError
        A member failed, or the workers that tried it died too often.
    """
    from prefect import flow

    from tasks.workers import complete_on_worker

    params = specs[0].params
    check_runner(params)
    check_prefect(params)

    @flow(name="members", task_runner=task_runner(params, len(specs)), validate_parameters=False, persist_result=False)
    def members() -> None:
        work = tried(complete_on_worker)
        with _options(params):
            failures = _failures({work.with_options(name=spec.name).submit(spec): spec for spec in specs})
        for name, error in failures:
            raise_failure(name, error)

    members()


def tried(work: Callable[..., None]) -> Any:
    """``work`` as a Prefect task, which is tried again where its error may pass."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    return task(
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(work)


def raise_failure(name: str, error: BaseException) -> NoReturn:
    """Raise what a task named ``name`` ended with: a mistake as it is, anything else as RuntimeError."""
    if isinstance(error, UserError):
        raise error
    raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error


def _failures(running: dict[PrefectFuture[None], MemberSpec]) -> list[tuple[str, BaseException]]:
    """Wait for members, showing their epochs; returns the name and error of each that failed."""
    from tasks.progress import EpochBar
    from tasks.workers import last_report

    ended: SimpleQueue[PrefectFuture[None]] = SimpleQueue()
    failures = []
    epochs = {spec.name: spec.config.max_epochs for spec in running.values()}
    with EpochBar("train", epochs) as bar:
        for future in running:
            future.add_done_callback(ended.put)
        while running:
            try:
                future = ended.get(timeout=POLL_SECONDS)
            except Empty:
                for spec in running.values():
                    bar.at(spec.name, *last_report(spec.folder))
                continue
            spec = running.pop(future)
            bar.ended(spec.name)
            error = error_of(future)
            if error is not None:
                failures.append((spec.name, error))
    return failures


def error_of(future: PrefectFuture[None]) -> BaseException | None:
    """What a task ended with: its own error, or the cluster's where its workers died too often; None for success."""
    try:
        outcome: object = future.result(raise_on_failure=False)
    except Exception as error:
        return error
    return outcome if isinstance(outcome, BaseException) else None


def worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether an error may pass: of files, memory or a device, but not a mistake or a loss that diverges each time."""
    from tasks.member import DivergedError

    error: object = state.result(raise_on_failure=False)
    return not isinstance(error, (UserError, DivergedError))


def task_runner(params: Params, members: int) -> TaskRunner[Any]:
    """Prefect's runner for ``runner`` and ``runner_address``; a local cluster has a process a worker, one member each."""
    from tasks.train import KEEP_MEMORY, workers_for

    workers, address = workers_for(params, members), params.runner_address
    os.environ.update(KEEP_MEMORY)  # the workers of a local cluster inherit it
    if params.runner == "dask":
        from prefect_dask import DaskTaskRunner

        if address:
            return DaskTaskRunner(address=address)
        size = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0}
        return DaskTaskRunner(cluster_kwargs=size | {"host": "127.0.0.1", "dashboard_address": None})
    _prepare_ray(address)
    from prefect_ray import RayTaskRunner

    variables = KEEP_MEMORY | {"PREFECT_API_URL": os.environ["PREFECT_API_URL"]}
    settings: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "log_to_driver": False, "logging_level": "WARNING"}
    if not address:
        settings |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        settings |= {"_node_ip_address": "127.0.0.1"}
    return RayTaskRunner(address=address or "local", init_kwargs=settings)


def _prepare_ray(address: str | None) -> None:
    """Set what ray reads as it is imported: a cluster of its own stays on loopback, and another one gets its token.

    `ray start` asks for a token as soon as its user has one, but a client sends it only where the mode is set.
    """
    if not address:
        os.environ[RAY_BEYOND_THIS_MACHINE] = "0"
    elif os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or (Path.home() / RAY_TOKEN).is_file():
        os.environ.setdefault(RAY_AUTH_MODE, "token")


def _options(params: Params) -> AbstractContextManager[Any]:
    """What a member asks of its worker: with Ray the GPUs that it may use, as Ray hides all others from it."""
    if params.runner != "ray" or params.train.accelerator == "cpu":
        return nullcontext()
    import ray
    from prefect_ray.context import remote_options

    there = params.train.accelerator == "gpu" or ray.cluster_resources().get("GPU", 0) >= params.train.devices
    return remote_options(num_gpus=params.train.devices if there else 0)


def check_prefect(params: Params) -> None:
    """Refuse workers elsewhere together with a Prefect server that only this machine reaches."""
    if params.runner_address is None or params.runner_address == "auto":
        return
    host, _ = _host_and_port(params.runner, params.runner_address)
    api_url = os.environ["PREFECT_API_URL"]
    if _is_loopback(urlsplit(api_url).hostname or "") and not _is_here(host):
        raise UserError(
            f"runner_address is {params.runner_address}, whose workers cannot reach the Prefect server at {api_url}: set "
            "services.prefect_api_url to one that they reach, or runner_address: null."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine's; Ray gives its head such a one where it was told 127.0.0.1."""
    import psutil

    return _is_loopback(host) or any(each.address == host for each in chain.from_iterable(psutil.net_if_addrs().values()))


def _host_and_port(runner: str, address: str) -> tuple[str, int]:
    """Host and port of ``runner_address``; UserError where it names none."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise UserError(f"runner_address is {address}; it must be null or name a host and a port, such as {EXAMPLES[runner]}.")
    return host, port
