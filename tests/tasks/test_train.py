"""Members are trained once, go on where a killed run left them, and end with the same bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tasks.errors import UserError
from tasks.files import read_json
from tasks.member import load_member
from tasks.params import Params
from tasks.predict import predict_windows
from tasks.prepare import load_prepared
from tasks.settings import FOLDS
from tasks.train import CHECKPOINTS, TRAINED, forget_members, sole_run, train_family, training_digest

EPOCHS = 25
TRAIN = """
from pathlib import Path
from tasks.params import Params
from tasks.train import train_family
train_family(Params.load(), Path.cwd(), "tcn")
"""


def quantiles(root: Path, family: str, fold: str) -> np.ndarray:
    return np.load(root / TRAINED / family / f"quantiles_{fold}.npy")


def test_every_member_predicts_every_fold_and_its_weights_say_the_same(trained_project: Path) -> None:
    prepared, params = load_prepared(trained_project), Params.load(root=trained_project)
    for family in ("tcn", "mamba"):
        for fold in FOLDS:
            values = quantiles(trained_project, family, fold)
            assert values.shape == (2, len(prepared.windows[fold]), 6, 23)
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert (np.diff(values, axis=-1) >= 0).all(), "quantiles do not cross"
            assert len(np.load(trained_project / TRAINED / family / f"features_{fold}.npy")) == values.shape[1]
        for index in range(2):
            weights = trained_project / TRAINED / family / f"member_{index}.safetensors"
            member = load_member(family, getattr(params.forecasters, family), prepared.panel.schema, weights)
            again = predict_windows(member, prepared.panel, prepared.windows["test"], params.train.seed + index)[0]
            np.testing.assert_allclose(again, quantiles(trained_project, family, "test")[index], rtol=1e-5)


def test_members_differ_by_their_seeds_and_are_kept_until_they_are_forgotten(trained_project: Path) -> None:
    values = quantiles(trained_project, "tcn", "test")
    assert not np.allclose(values[0], values[1])
    histories = read_json(trained_project / TRAINED / "tcn" / "history.json")
    assert [[row["epoch"] for row in history] for history in histories] == [[1, 2], [1, 2]]
    kept = [path for path in (trained_project / CHECKPOINTS / "tcn").rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in kept if path.name == "predicted.json") == ["member_0", "member_1"]
    assert not [path for path in kept if path.suffix == ".ckpt"], "checkpoints are of no use once members are trained"
    forget_members(trained_project)
    assert [path.name for path in (trained_project / CHECKPOINTS / "tcn").iterdir()] == ["lock"]


def test_the_digest_follows_what_training_depends_on_and_nothing_else(trained_project: Path, tmp_path: Path) -> None:
    params = Params.load(root=trained_project)

    def digest(changes: Mapping[str, Mapping[str, object]]) -> str:
        tree = params.model_dump(mode="json")
        for block, values in changes.items():
            branch = tree
            for name in block.split("."):
                branch = branch[name]
            branch |= values
        return training_digest(Params.model_validate(tree), "tcn", trained_project)

    same = digest({})
    for changed in ({"forecasters.mamba": {"width": 16}}, {"train": {"workers": 1}}, {"calibration": {"ood_alpha": 0.1}}):
        assert digest(changed) == same
    for changed in ({"forecasters.tcn": {"width": 16}}, {"train": {"seed": 2}}, {"train": {"batches_per_epoch": 9}}):
        assert digest(changed) != same
    shutil.copytree(trained_project / "data/prepared", tmp_path / "data/prepared")
    assert training_digest(params, "tcn", tmp_path) == same
    rows = np.load(tmp_path / "data/prepared/rows.npy")
    rows[0, 0] += 1
    np.save(tmp_path / "data/prepared/rows.npy", rows)
    assert training_digest(params, "tcn", tmp_path) != same


def test_a_family_that_params_does_not_list_is_one_sentence(trained_project: Path) -> None:
    with pytest.raises(UserError, match=r"family 'tft' is not in params\.yaml: families, which holds tcn, mamba\.$"):
        train_family(Params.load(root=trained_project), trained_project, "tft")


def test_a_second_run_of_a_family_waits_for_the_first_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with sole_run(tmp_path / "lock"):
            order.append("second")

    with sole_run(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert "waiting for process" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"train.precision": "bf16"}, {"train.accumulate": 3}])
def test_sixteen_bits_and_added_gradients_train_to_about_the_same_loss(
    prepared_project: Path, trained_project: Path, tmp_path: Path, edit_params: Callable[..., None], change: dict[str, object]
) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_project, root)
    edit_params(root, {"families": ["tcn"], "train.members": 1} | change)
    train_family(Params.load(root=root), root, "tcn")
    values, plain = quantiles(root, "tcn", "test"), quantiles(trained_project, "tcn", "test")
    assert np.isfinite(values).all() and not np.array_equal(values[0], plain[0])
    target = load_prepared(root)
    truth = target.panel.targets(target.windows["test"]).numpy()
    errors = [float(np.abs(each[0, :, :, 11] - truth).mean()) for each in (values, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=0.25)


def test_a_diverged_member_is_told_in_one_sentence_that_names_the_key(
    prepared_project: Path, tmp_path: Path, edit_params: Callable[..., None]
) -> None:
    root = tmp_path / "project"
    shutil.copytree(prepared_project, root)
    edit_params(root, {"families": ["tcn"], "train.members": 1})
    reals = np.load(root / "data/prepared/reals.npy")
    reals[:, 0] = np.inf
    np.save(root / "data/prepared/reals.npy", reals)
    with pytest.raises(RuntimeError, match=r"tcn member 0 diverged in epoch 1.*forecasters\.tcn\.learning_rate"):
        train_family(Params.load(root=root), root, "tcn")
    assert not (root / TRAINED / "tcn").exists()


def start(root: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-c", TRAIN], cwd=root, env=environment, stdout=stream, stderr=stream)


def unfinished(root: Path) -> list[Path]:
    """Checkpoints of members that have one and are not done."""
    found = (root / CHECKPOINTS / "tcn").glob("*/member_*/last.ckpt")
    return [path for path in found if not (path.parent / "weights.safetensors").exists()]


def test_a_killed_training_leaves_no_process_and_goes_on_to_the_same_bits(
    prepared_project: Path, tmp_path: Path, edit_params: Callable[..., None], environment: dict[str, str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(prepared_project, whole)
    edit_params(whole, {"families": ["tcn"], "forecasters.tcn.max_epochs": EPOCHS})
    shutil.copytree(whole, killed)

    run = start(killed, environment, tmp_path / "killed.log")
    deadline = time.monotonic() + 90
    while not unfinished(killed) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == [], "a killed run must leave nothing computing"
    checkpoints = unfinished(killed)
    assert checkpoints, (tmp_path / "killed.log").read_text()
    assert not (killed / TRAINED / "tcn").exists()
    for path in checkpoints:  # a mark in the past of the run, which only a run that goes on from here still has
        state = torch.load(path, weights_only=False)
        assert state["epoch"] + 1 < EPOCHS
        state["history"][0]["train_loss"] = 12345.0
        torch.save(state, path)

    both = [
        (start(root, environment, tmp_path / f"{root.name}.log"), tmp_path / f"{root.name}.log") for root in (killed, whole)
    ]
    for run, log in both:
        assert run.wait(120) == 0, log.read_text()
    histories = read_json(killed / TRAINED / "tcn" / "history.json")
    for path in checkpoints:
        history = histories[int(path.parent.name.removeprefix("member_"))]
        assert history[0]["train_loss"] == 12345.0
        assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    for path in sorted((whole / TRAINED / "tcn").iterdir()):
        if path.name != "history.json":
            assert (killed / TRAINED / "tcn" / path.name).read_bytes() == path.read_bytes(), path.name
