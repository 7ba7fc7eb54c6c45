"""The benchmark of devices, tried on the CPU; and every family's step in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import device


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SERIES": 3, "LENGTH": 500, "CONTEXT": 48, "HORIZON": 12, "COMPARED": 4}.items():
        monkeypatch.setattr(device, name, value)


def test_every_family_trains_in_bfloat16_to_about_the_same_loss(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    device.main(["--device", "cpu", "--batch", "4", "--steps", "2", "--compile", "--json", str(path)])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(found["families"]) == sorted(device.NETWORKS)
    for family, each in found["families"].items():
        assert "failed" not in each, family
        assert each["difference"] == 0.0 and each["float32"]["waits"] == 0 and each["forecasts_per_s"] > 0
        assert each["bf16"]["loss"] == pytest.approx(each["float32"]["loss"], rel=0.05), family


def test_a_family_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(family: str, *_: object) -> float:
        if family == "tide":
            raise RuntimeError("no kernel")
        return 0.0

    monkeypatch.setattr(device, "difference", broken)
    device.main(["--device", "cpu", "--batch", "4", "--steps", "1", "--compile", "--families", "tide", "tcn"])
    printed = capsys.readouterr()
    assert "tide difference failed: RuntimeError: no kernel" in printed.err and "0.0e+00" in printed.out


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        device.main([])
