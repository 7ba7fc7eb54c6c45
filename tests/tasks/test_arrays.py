"""Arrays written and read in parts are those that numpy writes and reads whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.arrays import ArrayFile, ArrayRows

WHOLE = [
    np.arange(35.0, dtype=np.float32).reshape(7, 5),
    np.arange(7).astype("datetime64[ns]"),
    np.arange(42).reshape(7, 3, 2),
    np.zeros((7, 0), dtype=np.int64),
]


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("step", [1, 3, 7])
def test_parts_give_the_bytes_of_the_whole(tmp_path: Path, whole: np.ndarray, step: int) -> None:
    np.save(tmp_path / "whole.npy", whole)
    with ArrayFile(tmp_path / "parts.npy", len(whole)) as written:
        for start in range(0, len(whole), step):
            written.add(whole[start : start + step])
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_file_that_lacks_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts\.npy lacks 2 of its 7 rows"), ArrayFile(tmp_path / "parts.npy", 7) as written:
        written.add(WHOLE[0][:5])
    with pytest.raises(ZeroDivisionError), ArrayFile(tmp_path / "parts.npy", 7):
        raise ZeroDivisionError


def test_rows_are_read_when_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", WHOLE[0])
    rows = ArrayRows(tmp_path / "whole.npy")
    assert len(rows) == 7
    for part in (slice(2, 4), slice(5, 90), slice(None)):
        assert torch.equal(rows[part], torch.from_numpy(WHOLE[0][part]))
    rows[0:1].zero_()
    assert torch.equal(rows[:], torch.from_numpy(WHOLE[0])), "a reader's own copy"
