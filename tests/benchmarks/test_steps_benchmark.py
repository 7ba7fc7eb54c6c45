"""Other ways to take a training step, and what commands import, at tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import device, startup, steps, tables


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SERIES": 3, "LENGTH": 500, "CONTEXT": 48, "HORIZON": 12}.items():
        monkeypatch.setattr(device, name, value)


@pytest.mark.parametrize("family", ["tide", "tcn"])
def test_members_as_one_network_take_the_step_that_each_takes_alone(family: str) -> None:
    panel = device.build_panel()
    batch = next(iter(device.loader(panel, 4, 1)))
    networks = [device.build(family, panel.schema).train() for _ in range(2)]
    for module in (each for network in networks for each in network.modules()):
        if hasattr(module, "p"):
            module.p = 0.0
    take, weights = steps.batched_step(family, networks[:1], batch)
    take()
    steps.step_of(networks[1], batch, networks[1].loss)()
    for name, value in networks[1].named_parameters():
        torch.testing.assert_close(weights[name][0], value, rtol=0, atol=2e-5, msg=name)


def test_every_way_is_measured_and_what_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    path = tmp_path / "steps.json"
    sizes = ["--batch", "4", "--steps", "1", "--rounds", "1", "--members", "2"]
    steps.main(["--families", "tide", "deepar", *sizes, "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    tide, deepar = result["families"]["tide"], result["families"]["deepar"]
    assert tide["failed"] == {"compiled": "RuntimeError: no compiler"}
    assert tide["batched_2_ratio"] == pytest.approx(2 * tide["step_s"]["plain"] / tide["step_s"]["batched_2"])
    assert set(deepar["failed"]) == {"compiled", "batched_2"} and deepar["bf16_ratio"] > 0
    assert len(tables.steps(result)) == 6


def test_what_commands_import_is_read_off_the_flows() -> None:
    found = startup.commands()
    assert {"run", "forecast", "serve-schedule", "report"} <= set(found)
    assert "tasks.forecast" in found["forecast"], "which flows.forecast imports, not flows.cli"
    assert "tasks.summary" in found["report"] and "torch" not in found["report"]
    assert not any(name.startswith(("ray", "dask")) for modules in found.values() for name in modules)


def test_a_command_costs_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "commands", lambda: {"report": ["tasks.summary"]})
    found = startup.measure(1)
    assert 0 < found["report"]["imports_s"] < 2 and 0 < found["report"]["help_s"] < 2
