"""A full disk, and files that are not what was written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
LIMITED = """
import resource, sys
from pathlib import Path
from tasks.errors import UserError
from tasks.params import Params
import tasks.{module} as module

params = Params.load()
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    module.{work}(params, Path.cwd())
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
"""
"""A unit of work in a process that may write no file of more than so many bytes: the write that goes beyond fails half-way."""


def full(path: str, argv: str = "") -> dict[str, Any]:
    return {"on": "write", "path": path, "act": "full", "argv": argv}


def flip(path: Path) -> bytes:
    """Change one byte in the middle of a file; returns what was there."""
    before = path.read_bytes()
    middle = len(before) // 2
    path.chmod(0o644)
    path.write_bytes(before[:middle] + bytes([before[middle] ^ 0xFF]) + before[middle + 1 :])
    return before


def one_sentence(ended: subprocess.CompletedProcess[str], stage: str, path: str) -> None:
    """Check that a stage said that the disk is full, in one sentence that names the path."""
    told = [line for line in ended.stderr.splitlines() if line.startswith(f"{stage}: ")]
    assert len(told) == 1 and path in told[0] and "No space left on device" in told[0], ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
    assert ended.returncode != 0


def test_a_full_disk_while_a_stage_writes(disturbed: Any, undisturbed: Any, fault: Call) -> None:
    with fault("disk full while a stage writes", "one sentence names the path, nothing half-written stays, a rerun mends it"):
        ended = disturbed.run("dvc", "repro", "-s", "-f", "prepare", fault=full(r"data/\.prepared\.[^/]*tmp/"))
        one_sentence(ended, "prepare", "data/prepared")
        assert disturbed.leftovers() == []
        assert not (disturbed.root / "data/prepared").exists()
        assert disturbed.run("dvc", "repro", "prepare").returncode == 0
        assert disturbed.recorded() == undisturbed.recorded()


@pytest.mark.parametrize(
    ("module", "work", "limit", "output"),
    [
        ("ingest", "ingest", 5_000, "data/ingested"),
        ("prepare", "prepare", 20_000, "data/prepared"),
        ("bundle", "write_bundle", 3_000, "artifacts/bundle"),
    ],
)
def test_a_write_that_fails_half_way(module: str, work: str, limit: int, output: str, disturbed: Any, fault: Call) -> None:
    before = sorted(path.name for path in (disturbed.root / output).iterdir())
    with fault(f"a write of {output} that fails half-way", "one sentence names it, the old one stays, nothing half-written"):
        ended = disturbed.run("-c", LIMITED.format(module=module, work=work, limit=limit))
        assert ended.returncode == 1, ended.stderr[-3000:]
        assert ended.stdout.count("\n") == 1 and output in ended.stdout and "cannot be written" in ended.stdout, ended.stdout
        assert disturbed.leftovers() == []
        assert sorted(path.name for path in (disturbed.root / output).iterdir()) == before


def test_a_full_disk_while_members_train_and_while_dvc_stores_them(disturbed: Any, edit_params: Call, fault: Call) -> None:
    edit_params(disturbed.root, {"forecasters.tcn.dropout": 0.15})
    with fault("disk full while a member writes its forecasts", "one sentence, what is trained stays"):
        ended = disturbed.run("dvc", "repro", "train@tcn", fault=full(r"member_0/quantiles_ood\.npy$"))
        one_sentence(ended, "train@tcn", "member_0")
        kept = disturbed.members()
        assert len(kept) == 1
    with fault("disk full while DVC stores the members", "DVC names what is not stored, no member is trained again"):
        ended = disturbed.run("dvc", "repro", "train@tcn", fault=full(r"\.dvc/cache/files/", argv="dvc repro"))
        assert "No space left on device" in ended.stderr  # DVC itself may end with 0 all the same
        assert disturbed.members() == kept
        again = disturbed.run("dvc", "repro", "train@tcn")
        assert again.returncode == 0, again.stderr[-3000:]
        assert disturbed.members() == kept
    with fault("what DVC could not store", "dvc commit stores it, from the artefacts that are there"):
        assert disturbed.run("dvc", "commit", "--force", "train@tcn").returncode == 0
        shutil.rmtree(disturbed.root / "artifacts/train/tcn")
        back = disturbed.run("dvc", "checkout", "train@tcn")
        assert back.returncode == 0, back.stderr[-3000:]
        assert (disturbed.root / "artifacts/train/tcn/member_0.safetensors").exists()


@pytest.mark.parametrize("where", ["the artefact", "the artefact and DVC's copy"])
def test_a_corrupt_artefact(where: str, disturbed: Any, undisturbed: Any, fault: Call) -> None:
    with fault(f"bytes flipped in {where}", "dvc repro finds it and makes that stage's output anew, the same"):
        path = disturbed.root / "artifacts/train/tcn/member_0.safetensors"
        good = flip(path)
        if "copy" in where:
            copies = [
                each for each in (disturbed.root / ".dvc/cache").rglob("*") if each.is_file() and each.read_bytes() == good
            ]
            assert len(copies) == 1
            flip(copies[0])
        done = disturbed.run("dvc", "repro")
        assert done.returncode == 0, done.stderr[-3000:]
        assert path.read_bytes() == good
        assert disturbed.recorded() == undisturbed.recorded()
        ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
        assert ran == (["Running stage 'train@tcn':"] if "copy" in where else [])


def test_a_corrupt_bundle_is_not_forecast_from(disturbed: Any, undisturbed: Any, fault: Call) -> None:
    (weights,) = (undisturbed.root / "mlartifacts").rglob("bundle/members/tcn/member_0.safetensors")
    good = flip(weights)
    try:
        with fault("bytes flipped in the registered bundle", "forecast refuses in one sentence, exit code 2"):
            refused = disturbed.run("flows", "forecast", "--output", "forecast.csv")
            assert refused.returncode == 2
            assert len(refused.stderr.splitlines()) == 1, refused.stderr
            assert (
                "members/tcn/member_0.safetensors" in refused.stderr and "weatherglass version 1 is damaged" in refused.stderr
            )
            assert not (disturbed.root / "forecast.csv").exists()
        with fault("register and promote after it", "a whole copy is registered, forecasts answer"):
            again = disturbed.run("dvc", "repro", "-s", "-f", "register")
            assert again.returncode == 0, again.stderr[-3000:]
            assert disturbed.run("flows", "promote").returncode == 0
            answered = disturbed.run("flows", "forecast", "--output", "forecast.csv")
            assert answered.returncode == 0, answered.stderr
    finally:
        weights.write_bytes(good)
