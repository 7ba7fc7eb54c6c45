"""What a run does besides `dvc repro`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline, server
from tasks.files import write_json

Call = Callable[..., Any]


def test_what_an_experiment_brought_is_registered(
    new_project: Callable[[Path], Path], tmp_path: Path, weatherglass: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ran = new_project(tmp_path / "project"), list[Any]()
    monkeypatch.setattr(server, "prefect_server", lambda root: nullcontext("http://127.0.0.1/api"))
    monkeypatch.setattr(pipeline, "reproduce", lambda root, targets, force: ran.append((list(targets), force)) or 0)
    write_json(root / pipeline.RECEIPT, {"version": None, "experiment": "wide"})
    assert weatherglass(root, "run").code == 0
    assert ran == [([], False), (["--single-item", "register"], True)]
    ran.clear()
    assert weatherglass(root, "run", "train@tcn").code == 0
    assert ran == [(["train@tcn"], False)], "stages that were asked for, and no others"
    ran.clear()
    write_json(root / pipeline.RECEIPT, {"version": "2", "alias": "challenger"})
    assert weatherglass(root, "run").code == 0
    assert ran == [([], False)]
