"""Arrays larger than memory: `.npy` files written and read a part at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor


class ArrayFile:
    """Writes an array of ``rows`` rows as np.save does, a part after the other; type and columns are the first part's."""

    def __init__(self, path: Path, rows: int) -> None:
        self._stream, self._rows, self._left, self._begun = path.open("wb"), rows, rows, False

    def __enter__(self) -> ArrayFile:
        return self

    def add(self, part: np.ndarray) -> None:
        if not self._begun:
            kind = np.lib.format.dtype_to_descr(part.dtype)
            described = {"descr": kind, "fortran_order": False, "shape": (self._rows, *part.shape[1:])}
            np.lib.format.write_array_header_1_0(self._stream, described)
            self._begun = True
        part.tofile(self._stream)
        self._left -= len(part)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        if kind is None and (self._left or not self._begun):
            raise ValueError(f"{self._stream.name} lacks {self._left} of its {self._rows} rows")


class ArrayRows:
    """Rows of a `.npy` file as tensors, read when asked for: what was read before does not stay in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, len(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: slice) -> Tensor:
        return torch.from_numpy(np.array(np.load(self._path, mmap_mode="r")[index]))
