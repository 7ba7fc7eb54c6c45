"""A runner that cannot be used is told in one sentence before anything is trained."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prefect.states import Failed

from flows.runners import check_prefect, check_runner, members_runner, worth_another_try
from tasks.errors import UserError
from tasks.member import DivergedError
from tasks.params import Params
from tasks.train import run_members


def params(runner: str, address: str | None = None) -> Params:
    return Params.model_validate({"runner": runner, "runner_address": address})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that is taken and does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_local_needs_nothing_and_trains_in_processes() -> None:
    check_runner(params("local", "nowhere"))
    assert members_runner(params("local")) is run_members


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_missing_package_is_told_with_its_extra_before_the_first_stage(
    runner: str,
    monkeypatch: pytest.MonkeyPatch,
    weatherglass: Callable[..., NamedTuple],
    new_project: Callable[[Path], Path],
    edit_params: Callable[..., None],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    root = new_project(tmp_path / "project")
    edit_params(root, {"runner": runner})
    told = f"runner is {runner}, whose packages are not installed: pip install -e '.[{runner}]', or set runner: local."
    assert weatherglass(root, "run") == (2, "", f"weatherglass: {told}\n")
    assert not (root / ".weatherglass").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("runner", "address"), [("dask", "10.0.0.5"), ("ray", "ray://head"), ("dask", "tcp://head:port")])
def test_an_address_without_host_and_port_is_told_with_an_example(runner: str, address: str) -> None:
    with pytest.raises(
        UserError, match=rf"^runner_address is {address}; it must be null or name a host and a port, such as .*10"
    ):
        check_runner(params(runner, address))


@pytest.mark.usefixtures("installed")
def test_a_cluster_that_does_not_answer_is_told(closed_port: int) -> None:
    address = f"tcp://127.0.0.1:{closed_port}"
    told = (
        rf"^runner_address is {address}, where no dask cluster answers \(Connection refused\): start it, or set runner_address:"
    )
    with pytest.raises(UserError, match=told):
        check_runner(params("dask", address))


@pytest.mark.parametrize(
    ("address", "api_url", "fits"),
    [
        ("10.0.0.5:8786", "http://127.0.0.1:4200/api", False),
        ("tcp://head:8786", "http://localhost:4200/api", False),
        ("tcp://head:8786", "http://10.0.0.4:4200/api", True),
        ("tcp://127.0.0.1:8786", "http://127.0.0.1:4200/api", True),
        (None, "http://127.0.0.1:4200/api", True),
    ],
)
def test_workers_elsewhere_need_a_prefect_server_that_they_reach(
    address: str | None, api_url: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api_url)
    if fits:
        check_prefect(params("dask", address))
        return
    with pytest.raises(UserError, match=rf"cannot reach the Prefect server at {api_url}: set services\.prefect_api_url"):
        check_prefect(params("dask", address))


@pytest.mark.parametrize(
    ("error", "again"), [(OSError(116, "stale"), True), (UserError("x"), False), (DivergedError("x"), False)]
)
def test_what_may_pass_is_tried_again_and_a_mistake_is_not(error: Exception, again: bool) -> None:
    assert worth_another_try(None, None, Failed(data=error)) is again  # type: ignore[arg-type]
