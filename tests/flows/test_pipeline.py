"""What a run does besides `dvc repro`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline, server
from tasks.files import write_json
from tasks.versions import RECEIPT, note_registered

Call = Callable[..., Any]


def test_what_dvc_brought_is_registered(
    new_project: Callable[[Path], Path], tmp_path: Path, weatherglass: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an experiment, or from DVC's cache of runs: the receipt is not that of the last registration."""
    root, ran = new_project(tmp_path / "project"), list[Any]()
    monkeypatch.setattr(server, "prefect_server", lambda root: nullcontext("http://127.0.0.1/api"))
    monkeypatch.setattr(pipeline, "reproduce", lambda root, lock, targets, force: ran.append((list(targets), force)) or 0)

    def run(*targets: str) -> list[Any]:
        ran.clear()
        assert weatherglass(root, "run", *targets).code == 0
        return list(ran)

    again = (["--single-item", "register"], True)
    write_json(root / RECEIPT, {"version": None, "experiment": "wide"})
    assert run() == [([], False), again]
    assert run("train@tcn") == [(["train@tcn"], False)], "stages that were asked for, and no others"
    write_json(root / RECEIPT, {"version": "2", "alias": "challenger"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    note_registered(root, {"version": "2", "alias": "challenger"})
    assert run() == [([], False)]
    write_json(root / RECEIPT, {"version": "1", "alias": "champion"})
    assert run() == [([], False), again]
    write_json(root / RECEIPT, {"version": "2", "alias": "challenger"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert run() == [([], False), again]
