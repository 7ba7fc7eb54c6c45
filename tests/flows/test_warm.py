"""Stages forked from a process that has imported everything: the caller notices nothing but the time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psutil
import pytest

import flows
from flows.warm import SOCKET, VARIABLE, handed_over, warm_process

PROBE = '''
"""A stage that tells who runs it."""
import json, os, sys, time

def member(number, told):
    told.put(os.getppid())

def main():
    from flows.warm import handed_over

    caller = os.getpid()
    if (code := handed_over()) is not None:
        sys.exit(code)
    print(json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(), "arguments": sys.argv[1:],
        "colour": os.environ.get("COLOUR"), "input": sys.stdin.read(),
    }), flush=True)
    print("told", file=sys.stderr)
    wish = sys.argv[1]
    if wish == "fail":
        raise ValueError("out of paper")
    if wish == "sleep":
        time.sleep(60)
    if wish == "members":
        from tasks.train import member_processes

        context = member_processes()
        told = context.Queue()
        process = context.Process(target=member, args=(0, told))
        process.start()
        print(told.get(), flush=True)
        process.join()
    sys.exit(int(wish) if wish.isdigit() else 0)

if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def root(new_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one flow of its own beside ours."""
    folder = new_project(tmp_path_factory.mktemp("warm") / "project")
    (folder / "flows").mkdir(exist_ok=True)
    (folder / "flows/__init__.py").write_text(f"__path__.append({str(Path(flows.__file__).parent)!r})\n")
    (folder / "flows/probe.py").write_text(PROBE)
    return folder


@pytest.fixture(scope="module")
def warm(root: Path) -> Iterator[psutil.Process]:
    """The warm process of that project."""
    before = {child.pid for child in psutil.Process().children()}
    with warm_process(root):
        wait_for((root / SOCKET).exists)
        (process,) = [child for child in psutil.Process().children() if child.pid not in before and is_warm(child)]
        yield process
    assert not (root / SOCKET).exists()


def is_warm(process: psutil.Process) -> bool:
    return "flows.warm_server" in process.cmdline()


def wait_for(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def start(root: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "flows.probe", *arguments],
        cwd=root,
        env=os.environ | variables,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def told_by(process: subprocess.Popen[str], text: str = "") -> tuple[dict[str, Any], str, str]:
    """What the probe tells of itself, the rest of its output, and its errors."""
    out, errors = process.communicate(text, timeout=60)
    first, _, rest = out.partition("\n")
    return json.loads(first), rest, errors


def test_a_stage_has_its_callers_command_streams_and_exit_code(root: Path, warm: psutil.Process) -> None:
    process = start(root, "7", "--loud", COLOUR="green")
    told, _, errors = told_by(process, "typed")
    assert process.returncode == 7
    assert told["parent"] == warm.pid and told["pid"] != process.pid
    assert (told["arguments"], told["colour"], told["input"]) == (["7", "--loud"], "green", "typed")
    assert Path(told["folder"]) == root and errors == "told\n"
    process = start(root, "0")
    told, _, _ = told_by(process)
    assert process.returncode == 0 and told["colour"] is None, "nothing is left of the stage before"


def test_a_traceback_comes_out_where_it_would(root: Path, warm: psutil.Process) -> None:
    process = start(root, "fail")
    _, _, errors = told_by(process)
    assert process.returncode == 1 and errors.endswith("ValueError: out of paper\n")


def test_a_stage_ends_when_its_caller_is_killed(root: Path, warm: psutil.Process) -> None:
    process = start(root, "sleep")
    assert process.stdin and process.stdout
    process.stdin.close()
    stage = psutil.Process(json.loads(process.stdout.readline())["pid"])
    process.kill()
    assert stage.wait(10) is None or not stage.is_running()
    process.stdin = None
    process.communicate()


def test_a_killed_stage_is_a_failure(root: Path, warm: psutil.Process) -> None:
    process = start(root, "sleep")
    assert process.stdin and process.stdout
    process.stdin.close()
    os.kill(json.loads(process.stdout.readline())["pid"], signal.SIGKILL)
    process.stdin = None
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "its process was killed" in errors


def test_other_settings_of_libraries_are_not_served(root: Path, warm: psutil.Process) -> None:
    process = start(root, "0", MLFLOW_TRACKING_URI="sqlite:///elsewhere.db")
    told, _, _ = told_by(process)
    assert told["pid"] == process.pid and process.returncode == 0


def test_members_of_all_stages_are_forked_by_one_server(root: Path, warm: psutil.Process) -> None:
    wait_for(lambda: any("forkserver" in " ".join(child.cmdline()) for child in warm.children()), seconds=240)
    (server,) = [child for child in warm.children() if "forkserver" in " ".join(child.cmdline())]
    for _ in range(2):
        process = start(root, "members")
        _, rest, errors = told_by(process)
        assert int(rest) == server.pid, errors
        assert process.returncode == 0
    server.kill()
    server.wait(10)
    process = start(root, "members")
    _, rest, errors = told_by(process)
    assert process.returncode == 0 and int(rest) != server.pid, "a stage starts one where it is gone"


def test_changed_code_is_not_served(root: Path, warm: psutil.Process) -> None:
    path = root / "flows/__init__.py"
    path.write_text(path.read_text() + "# changed\n")
    process = start(root, "0")
    told, _, _ = told_by(process)
    assert told["pid"] == process.pid and process.returncode == 0


def test_without_a_warm_process_a_stage_runs_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert handed_over() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.sock"))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("flows.ingest", None))
    assert handed_over() is None


def test_the_run_itself_is_not_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m flows run` trains ahead on a cluster, and would wait for its own end."""
    path = tmp_path / "warm.sock"
    with socket.socket(socket.AF_UNIX) as warm:
        warm.bind(str(path))
        warm.listen()
        warm.settimeout(0.2)
        monkeypatch.setenv(VARIABLE, str(path))
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("flows.__main__", None))
        assert handed_over() is None
        with pytest.raises(TimeoutError):
            warm.accept()
