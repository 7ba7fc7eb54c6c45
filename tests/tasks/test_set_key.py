"""Changing one key of params.yaml in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.params import Params
from tasks.params_file import set_key, set_keys

PROJECT = Path(__file__).resolve().parents[2]


def test_one_value_changes_and_comments_stay_in_their_column(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    set_key(path, "data", "until", '"2016-07-01"')
    changed = [
        (old, new)
        for old, new in zip(text.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == 1
    old, new = changed[0]
    assert (
        new.startswith('  until: "2016-07-01" ') and old.split("#")[1] == new.split("#")[1] and old.index("#") == new.index("#")
    )
    assert str(Params.load(root=tmp_path).data.until) == "2016-07-01"
    set_key(path, "data", "until", "null")
    assert path.read_text(encoding="utf-8") == text


def test_a_key_of_another_block_is_left_alone_and_a_missing_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  seed: 1\n\nprojection:\n  # the maps\n  points: 5\n  seed: 2\n", encoding="utf-8")
    set_key(path, "projection", "seed", "33")
    assert path.read_text(encoding="utf-8") == "train:\n  seed: 1\n\nprojection:\n  # the maps\n  points: 5\n  seed: 33\n"
    with pytest.raises(UserError, match=r"params.yaml has no line for data.until; add `until: 5` to its block data"):
        set_key(path, "data", "until", "5")
    with pytest.raises(UserError, match=r"no line for train\.points"):
        set_key(path, "train", "points", "5")


def test_keys_of_a_block_within_a_block_change_together_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    set_keys(path, "forecasters.tcn", {"width": "96", "dropout": "0.25"})
    params, before = Params.load(root=tmp_path), Params.load(root=PROJECT)
    assert (params.forecasters.tcn.width, params.forecasters.tcn.dropout) == (96, 0.25)
    assert params.forecasters.model_copy(update={"tcn": before.forecasters.tcn}) == before.forecasters
    with pytest.raises(UserError, match=r"no line for forecasters\.tcn\.hidden_size; add `hidden_size: 8`"):
        set_keys(path, "forecasters.tcn", {"width": "48", "hidden_size": "8"})
    assert Params.load(root=tmp_path) == params
