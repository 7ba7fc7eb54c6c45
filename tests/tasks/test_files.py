"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import Unavailable
from tasks.files import atomic_dir, atomic_path, digest_of, file_md5, read_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert (temporary.parent, temporary.suffix) == (path.parent, ".csv")
        assert path.read_text() == "old"
        _ = 1 / 0
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_a_finished_write_replaces_the_file_and_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_text(path, "Grüße")
    write_text(path, "Größe")
    assert path.read_bytes() == "Größe".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(path.parent) == ["note.txt"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    with atomic_dir(folder) as temporary:
        (temporary / "first").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_dir(folder) as temporary:
        (temporary / "second").write_text("2")
        _ = 1 / 0
    assert (names(tmp_path), names(folder)) == (["train"], ["first"])
    with atomic_dir(folder) as temporary:
        (temporary / "third").write_text("3")
    assert (names(tmp_path), names(folder)) == (["train"], ["third"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        OSError("2400 requested and 320 written"),
    ],
)
def test_a_full_disk_is_one_sentence_that_names_what_was_to_be_written(tmp_path: Path, error: Exception) -> None:
    told = r"cannot be written \(.*\); free some space and run the same command again\.$"
    with pytest.raises(Unavailable, match=rf"^{tmp_path}/table\.csv {told}"), atomic_path(tmp_path / "table.csv") as temporary:
        temporary.write_text("half")
        raise error
    inside = pytest.raises(Unavailable, match=rf"^{tmp_path}/train {told}")
    with inside, atomic_dir(tmp_path / "train") as folder, atomic_path(folder / "inner.json"):
        raise error
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="Permission"), atomic_path(tmp_path / "table.csv"):
        raise OSError(errno.EACCES, "Permission denied")


def test_a_killed_writers_temporary_file_is_cleared_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    for name in (".other.abcd1234.tmp.json", ".a.abcd1234.tmp", ".mine.tmp.json", "note.tmp"):
        (tmp_path / name).write_text("{")
    with atomic_path(tmp_path / "living.csv") as temporary:
        write_json(tmp_path / "a.json", {})
        assert names(tmp_path) == sorted([temporary.name, ".mine.tmp.json", "a.json", "note.tmp"])
    assert names(tmp_path) == [".mine.tmp.json", "a.json", "living.csv", "note.tmp"]


def test_what_a_killed_writer_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / ".train.abc123.tmp"
    left.mkdir()
    (left / "half").write_text("")
    with atomic_dir(tmp_path / "train"):
        pass
    assert names(tmp_path) == ["train"]


def test_json_holds_numpy_values_in_sorted_order_and_ends_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    write_json(path, {"n": np.int64(3), "a": np.array([1.5, 2.0]), "at": Path("data/raw")})
    assert read_json(path) == {"a": [1.5, 2.0], "at": "data/raw", "n": 3}
    text = path.read_text()
    assert list(json.loads(text)) == ["a", "at", "n"]
    assert text.endswith("}\n")


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (float("inf"), ValueError), (object(), TypeError)])
def test_json_refuses_what_it_cannot_hold_and_keeps_the_old_file(tmp_path: Path, value: object, error: type) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"wql": 1.0})
    with pytest.raises(error):
        write_json(path, {"wql": value})
    assert read_json(path) == {"wql": 1.0}


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1, "b": [1, 2]}) != digest_of({"a": 1, "b": [2, 1]})
    assert len(digest_of([])) == 16


def test_md5_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"hello")
    assert file_md5(tmp_path / "data") == "5d41402abc4b2a76b9719d911017c592"
