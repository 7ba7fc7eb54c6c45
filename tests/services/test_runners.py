"""Members on Dask and Ray clusters: the files and metrics of a local run, also where a worker is killed half-way."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tasks.params import Params
from tasks.summary import load_metrics
from tasks.train import CHECKPOINTS, TRAINED, train_family
from tasks.workers import last_report

EPOCHS = 25
FAR_ENOUGH = 5  # epochs after which a worker is killed
FAMILIES = ("tcn", "mamba")
BIN = Path(sys.executable).parent
CHANGES = {"families": list(FAMILIES), "forecasters.tcn.max_epochs": EPOCHS, "baselines.models": ["seasonal_naive"]}

Service = Callable[..., psutil.Process]


class Cluster(NamedTuple):
    """A cluster with two workers of one member each."""

    runner: str
    address: str
    workers: tuple[psutil.Process, psutil.Process]


def wait_for(what: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{seconds} s are over"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def untrained(prepared_project: Path, edit_params: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("untrained") / "project"
    shutil.copytree(prepared_project, root)
    edit_params(root, CHANGES)
    return root


@pytest.fixture(scope="module")
def local(untrained: Path, evaluate_project: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project trained by processes of this machine, and evaluated."""
    root = tmp_path_factory.mktemp("local") / "project"
    shutil.copytree(untrained, root)
    params = Params.load(root=root)
    for family in FAMILIES:
        train_family(params, root, family)
    evaluate_project(root)
    return root


@pytest.fixture(scope="module")
def dask_cluster(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A scheduler and two workers of one thread, which nobody restarts."""
    told = tmp_path_factory.mktemp("dask") / "scheduler.json"
    here = ("--host", "127.0.0.1", "--no-dashboard")
    service(str(BIN / "dask"), "scheduler", *here, "--port", "0", "--scheduler-file", str(told))
    wait_for(told.exists)
    worker = (str(BIN / "dask"), "worker", *here, "--scheduler-file", str(told), "--nthreads", "1", "--no-nanny")
    workers = service(*worker), service(*worker)
    return Cluster("dask", json.loads(told.read_text())["address"], workers)


@pytest.fixture(scope="module")
def ray_cluster(
    service: Service, free_port: Callable[[], int], environment: dict[str, str], module_patch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A head without processors, to which the driver belongs, and two nodes with one each; it asks for a token."""
    from ray.util import get_node_ip_address

    key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    module_patch.setenv("RAY_AUTH_TOKEN", key["RAY_AUTH_TOKEN"])
    module_patch.setitem(environment, "RAY_AUTH_TOKEN", key["RAY_AUTH_TOKEN"])
    here = get_node_ip_address()  # a client takes 127.0.0.1 for this address, so the head must have it
    address = f"{here}:{free_port()}"
    small = ("--object-store-memory", str(100 * 2**20), "--disable-usage-stats", "--block")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # a socket's path must be short
        head = ("--head", "--node-ip-address", here, "--port", address.split(":")[1], "--num-cpus", "0")
        service(str(BIN / "ray"), "start", *head, "--include-dashboard", "false", "--temp-dir", folder, *small, **key)
        wait_for(lambda: ray_cpus(address) == 0)
        node = (str(BIN / "ray"), "start", "--address", address, "--node-ip-address", here, "--num-cpus", "1", *small)
        random = ("--min-worker-port", "0", "--max-worker-port", "0")  # by default each node takes the same
        first, second = (("--dashboard-agent-listen-port", str(free_port()), *random) for _ in range(2))
        one = service(*node, *first, **key)
        wait_for(lambda: ray_cpus(address) == 1)  # nodes that start at once on one machine get in each other's way
        other = service(*node, *second, **key)
        wait_for(lambda: ray_cpus(address) == 2)
        yield Cluster("ray", address, (one, other))


def ray_cpus(address: str) -> float | None:
    """Processors of a Ray cluster, None before it answers; asked in a process of its own."""
    ask = f"import ray; ray.init('{address}', log_to_driver=False); print(ray.cluster_resources().get('CPU', 0))"
    variables = os.environ | {"RAY_AUTH_MODE": "token"}
    told = subprocess.run([sys.executable, "-c", ask], env=variables, capture_output=True, text=True, check=False)
    return float(told.stdout.split()[-1]) if told.returncode == 0 else None


def start_training(root: Path, environment: dict[str, str], api_url: str, family: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.train", "--family", family],
        cwd=root,
        env=environment | {"PREFECT_API_URL": api_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def at_work(root: Path) -> list[Path]:
    """Folders of the TCN's members that are far enough and not done."""
    members = (root / CHECKPOINTS / "tcn").glob("*/member_*")
    return [member for member in members if FAR_ENOUGH <= last_report(member)[0] < EPOCHS and (member / "last.ckpt").exists()]


def process_at(member: Path) -> int | None:
    """Id of the process that holds a member; None while it changes hands or once the family is done."""
    try:
        return int((member / "lock").read_text())
    except (FileNotFoundError, ValueError):
        return None


def listened_at(process: psutil.Process) -> set[str]:
    """Addresses at which a process and its children listen."""
    found = set[str]()
    with suppress(psutil.NoSuchProcess):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found |= {socket.laddr.ip for socket in member.net_connections("inet") if socket.status == psutil.CONN_LISTEN}
    return found


def pids(process: psutil.Process) -> set[int]:
    return {process.pid, *(child.pid for child in process.children(recursive=True))}


def same_files(one: Path, other: Path, families: tuple[str, ...] = FAMILIES) -> None:
    for family in families:
        for path in sorted((one / TRAINED / family).iterdir()):
            assert (other / TRAINED / family / path.name).read_bytes() == path.read_bytes(), f"{family}/{path.name}"


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_worker_killed_half_way_costs_nothing_that_was_learnt(
    runner: str,
    request: pytest.FixtureRequest,
    kill_tree: Callable[[psutil.Process], None],
    local: Path,
    untrained: Path,
    prefect_api: str,
    environment: dict[str, str],
    edit_params: Callable[..., None],
    evaluate_project: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    cluster: Cluster = request.getfixturevalue(f"{runner}_cluster")
    root = tmp_path / "project"
    shutil.copytree(untrained, root)
    edit_params(root, {"runner": runner, "runner_address": cluster.address})
    run = start_training(root, environment, prefect_api, "tcn")
    wait_for(lambda: at_work(root) or run.poll() is not None, 180)
    assert run.stdout is not None and run.poll() is None, run.stdout and run.stdout.read()
    member = at_work(root)[0]
    first = process_at(member)
    lost, kept = sorted(cluster.workers, key=lambda worker: first not in pids(worker))
    kill_tree(lost)
    learnt = last_report(member)[0]

    reports, holders = set[int](), set[int]()
    while run.poll() is None:
        holder = process_at(member)
        if holder not in (None, first, *holders):
            assert holder in pids(kept), "the other worker took the member over"
            holders.add(holder)
        reports.add(last_report(member)[0])
        time.sleep(0.01)
    assert run.wait() == 0, run.stdout.read()
    assert len(holders) == 1
    assert min(reports - {0}) >= learnt, "the member went on from its checkpoint"
    same_files(local, root, ("tcn",))

    rest = start_training(root, environment, prefect_api, "mamba")  # on what is left of the cluster
    output, _ = rest.communicate(timeout=180)
    assert rest.returncode == 0, output
    same_files(local, root)
    evaluate_project(root)
    assert load_metrics(root) == load_metrics(local)


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_without_an_address_a_run_starts_a_cluster_for_all_families_at_once(
    runner: str,
    local: Path,
    new_project: Callable[[Path], Path],
    prefect_api: str,
    environment: dict[str, str],
    edit_params: Callable[..., None],
    tmp_path: Path,
) -> None:
    root = new_project(tmp_path / "project")
    edit_params(root, CHANGES | {"runner": runner})
    command = [sys.executable, "-m", "flows", "run"]
    with open(tmp_path / "log", "w") as log:
        run = psutil.Popen(command, cwd=root, env=environment | {"PREFECT_API_URL": prefect_api}, stdout=log, stderr=log)
        addresses = set[str]()
        while run.poll() is None:
            addresses |= listened_at(run)
            time.sleep(0.2)
    told = (tmp_path / "log").read_text()
    assert run.returncode == 0, told
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    ended = [line for line in told.splitlines() if " ended, " in line]
    assert len(ended) == 4, "each member is trained once"
    assert all(line.startswith("train: ") for line in ended), "and before the stages of the families"
    same_files(local, root)
    assert load_metrics(root) == load_metrics(local)
    assert [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(root)] == []
