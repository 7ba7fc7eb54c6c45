"""A search looks at the train and early-stopping folds alone, prunes, and goes on where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.forecasters.factory import FAMILIES
from tasks import search_space, tune
from tasks.errors import UserError
from tasks.files import read_json
from tasks.params import Params
from tasks.search_space import Among, Between, space_of, with_values
from tasks.tune import Search, Trialled, completed, ended, opened_study, run_search

Call = Callable[..., Any]


@pytest.fixture
def root(prepared_project: Path, tmp_path: Path) -> Path:
    """The prepared project's params and data, for writing."""
    shutil.copytree(prepared_project / "data/prepared", tmp_path / "data/prepared")
    shutil.copyfile(prepared_project / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def searched(root: Path, trials: int, metric: tune.Metric = "wql") -> tuple[list[Trialled], list[Trialled]]:
    """Trials that a call ran, and all that have ended in the study, as the study has them."""
    search, ran = Search(Params.load(root=root), root, "tcn", metric), list[Trialled]()
    with opened_study(search) as study:
        run_search(search, study, trials, told=ran.append)
        known = [Trialled(t.number, "complete", t.user_attrs["values"], [], {"value": t.value or 0}, "") for t in ended(study)]
    return ran, known


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_a_space_is_valid_and_params_yaml_is_in_it(family: str) -> None:
    config = getattr(Params().forecasters, family)
    for name, choice in space_of(family, config).items():
        corners = choice.values if isinstance(choice, Among) else (choice.low, choice.high)
        for value in corners:
            assert getattr(with_values(config, {name: value}), name) == value
        held = (
            getattr(config, name) in corners
            if isinstance(choice, Among)
            else choice.low <= getattr(config, name) <= choice.high
        )
        assert held, name


def test_a_space_reaches_to_params_yaml_and_leaves_out_what_cannot_be() -> None:
    config = with_values(Params().forecasters.mamba2, {"width": 20, "heads": 5, "learning_rate": 0.1})
    space = space_of("mamba2", config)
    assert space["width"] == Among((20,)), "no other width is shared by five heads"
    assert isinstance(space["learning_rate"], Between) and space["learning_rate"].high == 0.1


def test_the_first_trial_is_params_yaml_and_a_search_goes_on(root: Path) -> None:
    ran, known = searched(root, 2)
    config = Params.load(root=root).forecasters.tcn
    assert [trial.number for trial in ran] == [0, 1]
    assert ran[0].values == {name: getattr(config, name) for name in search_space.SPACES["tcn"]}
    assert ran[1].values != ran[0].values
    assert len(ran[0].losses) == config.max_epochs
    assert known[0].metrics["value"] == ran[0].metrics["early_stopping_wql"] > 0
    assert searched(root, 2) == ([], known), "the same call again trains nothing"
    more, _ = searched(root, 3)
    assert [trial.number for trial in more] == [2]
    assert not list((root / tune.TUNED).glob("*/*")), "no checkpoint of an ended trial is left"


def test_values_after_the_early_stopping_fold_change_nothing(root: Path) -> None:
    first, _ = searched(root, 1)
    meta = read_json(root / "data/prepared/meta.json")
    end = next(fold["end"] for fold in meta["folds"] if fold["name"] == "early_stopping")
    offsets = np.load(root / "data/prepared/offsets.npy")
    rows = np.load(root / "data/prepared/rows.npy")
    changed = rows.copy()
    for number, start in enumerate(meta["first_step"]):
        changed[offsets[number] + max(end - start, 0) : offsets[number + 1]] = 1e6
    assert (changed != rows).any()
    np.save(root / "data/prepared/rows.npy", changed)
    again, known = searched(root, 1)
    assert len(known) == 1, "other data is another search"
    assert again == first


def test_a_trial_that_was_killed_goes_on(root: Path) -> None:
    search = Search(Params.load(root=root), root, "tcn", "loss")
    with opened_study(search) as study:
        left = study.ask()  # what a kill leaves: a trial that is running for ever
        values = {name: choice.suggest(left, name) for name, choice in search.space.items()}
        left.report(9.0, 1)
    ran, known = searched(root, 2, "loss")
    assert [trial.number for trial in ran] == [1, 2]
    assert (ran[0].values, ran[0].losses[0]) == (values, 9.0)
    assert len(known) == 2
    with opened_study(search) as study:
        assert completed(study)[0].value == min(trial.metrics["early_stopping_loss"] for trial in ran)


def test_a_trial_that_falls_behind_is_pruned(root: Path, edit_params: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_params(root, {"forecasters.tcn.max_epochs": 4})
    monkeypatch.setattr(tune, "STARTUP_TRIALS", 1)
    monkeypatch.setitem(search_space.SPACES, "tcn", {"learning_rate": Between(1e-30, 1e-20, log=True)})
    ran, _ = searched(root, 3, "loss")
    assert [trial.state for trial in ran] == ["complete", "pruned", "pruned"], "the first has the rate of params.yaml"
    assert all(len(trial.losses) < 4 for trial in ran[1:])


def test_a_search_in_which_nothing_ends_well_stops_and_says_why(root: Path, edit_params: Call) -> None:
    edit_params(root, {"train.accelerator": "gpu", "train.devices": 99})
    with pytest.raises(RuntimeError, match="no trial of tcn ends well: MisconfigurationException"):
        searched(root, 10)


def test_a_second_search_of_the_family_is_refused(root: Path) -> None:
    search = Search(Params.load(root=root), root, "tcn")
    with (
        opened_study(search),
        pytest.raises(UserError, match=r"^process \d+ is tuning tcn in this project"),
        opened_study(search),
    ):
        pass


def test_optuna_is_asked_for_by_the_name_of_its_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r"needs Optuna, which the extra 'tune' brings"),
        opened_study(Search(Params.load(root=root), root, "tcn")),
    ):
        pass
