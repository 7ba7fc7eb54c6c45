"""A matrix of embeddings that a user brings, such as BERT's or ResNet's, with labels: read, checked and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.errors import UserError
from tasks.files import atomic_dir, write_json, write_text
from tasks.projection.maps import LEAST, METHODS, make_atlas
from tasks.projection.page import MOST_NAMES, View, render_map
from tasks.projection.points import Colour, Points
from tasks.projection.run import GUARDS, guards_of, with_coordinates
from tasks.summary import MAP

MOST_POINTS = 100_000
MOST_CLASSES = 20  # distinct numbers in a column of labels that still count as names


@dataclass(frozen=True)
class MatrixMaps:
    """A matrix and the maps that are wanted of it.

    ``embeddings`` is a ``.npy`` matrix, a row a point, ``labels`` a CSV whose columns colour the points. ``new`` is a second
    matrix whose rows are placed on the map of the first; where it is given, labels have rows for both. ``metric`` auto is
    cosine where all rows have length 1 and euclidean elsewhere. ``output`` is the folder that is written.
    """

    embeddings: Path
    labels: Path | None
    new: Path | None
    output: Path
    neighbors: Sequence[int]
    methods: Sequence[str]
    metric: str
    seed: int


def project_matrix(wanted: MatrixMaps) -> dict[str, Any]:
    """Draw the rows of a matrix and write ``map.html``, ``coordinates.parquet`` and ``guards.json``; returns the guards.

    A column of many different texts, such as the sentences themselves, names the points and colours nothing. Raises UserError
    for what cannot be drawn.
    """
    _check(wanted.neighbors, wanted.methods)
    embeddings, new, metric = wanted.embeddings, wanted.new, wanted.metric
    values = read_matrix(embeddings)
    later = read_matrix(new, least=1) if new is not None else values[:0]
    if values.shape[1] != later.shape[1]:
        raise UserError(f"{new} has {later.shape[1]} columns and {embeddings} {values.shape[1]}; they must have as many.")
    rows = len(values) + len(later)
    table = read_labels(wanted.labels, rows) if wanted.labels is not None else pd.DataFrame(index=range(rows))
    is_new = np.arange(rows) >= len(values)
    if metric == "auto":
        metric = "cosine" if np.allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-3) else "euclidean"
    atlas = make_atlas(values, later, neighbors=wanted.neighbors, methods=wanted.methods, metric=metric, seed=wanted.seed)
    texts = [name for name in table.columns if table[name].dtype.kind not in "iufb" and table[name].nunique() > MOST_NAMES]
    colours = tuple(_colour(name, table[name]) for name in table.columns if name not in texts)
    if len(later) or not colours:
        colours = (*colours, Colour("Matrix", np.where(is_new, "new", "first").astype(object)))
    names = np.array([f"row {index}" for index in range(rows)], dtype=object)
    if texts:
        names = table[texts[0]].astype(str).to_numpy(dtype=object)
    points = Points(values[:, :0], names, colours, is_new, np.zeros(rows, dtype=bool), None, "new row")
    about = f"{rows:,} rows of {values.shape[1]:,} numbers from {embeddings.name}"
    with atomic_dir(wanted.output) as folder:
        write_text(folder / MAP, render_map(f"{embeddings.stem}: maps of embeddings", about, [View("Rows", points, atlas)]))
        guards = guards_of(atlas)
        write_json(folder / GUARDS, guards)
        with_coordinates(table, atlas).to_parquet(folder / "coordinates.parquet", index=False)
    return guards


def _check(neighbors: Sequence[int], methods: Sequence[str]) -> None:
    for size in neighbors:
        if size < 2:
            raise UserError(f"--neighbors is {size}; it must be at least 2.")
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--method is {method}; it must be one of {', '.join(METHODS)}.")


def read_matrix(path: Path, least: int = LEAST) -> np.ndarray:
    """A finite float matrix ``(n, D)`` from a ``.npy`` file, read without pickle; UserError that names the place otherwise."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else "is no .npy file of numbers"
        raise UserError(f"{path} {reason}; write it by numpy.save.") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise UserError(f"{path} holds no array of numbers; write a matrix by numpy.save.")
    if values.ndim != 2 or values.shape[1] < 2:
        shape = " x ".join(map(str, values.shape)) or "a single number"
        raise UserError(f"{path} is {shape}; it must be a matrix with a row a point and at least 2 columns.")
    if not least <= len(values) <= MOST_POINTS:
        rows = f"{len(values):,} row{'s' * (len(values) != 1)}"
        raise UserError(f"{path} has {rows}; a map takes {least} to {MOST_POINTS:,}.")
    values = values.astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        word = "NaN" if np.isnan(values[row, column]) else "infinite"
        more = f", as are {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(f"row {row}, column {column} of {path} is {word}{more}; all must be finite.")
    return values


def read_labels(path: Path, rows: int) -> pd.DataFrame:
    """Labels from a CSV with a header and ``rows`` rows; UserError otherwise."""
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is not there; it must be a CSV with a header and a row for each point.") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a CSV: {reason}.") from None
    if len(table) != rows:
        raise UserError(
            f"{path} has {len(table):,} labels below its header and there are {rows:,} points; they must be as many."
        )
    return table


def _colour(name: str, values: pd.Series) -> Colour:
    if pd.api.types.is_float_dtype(values) or (pd.api.types.is_integer_dtype(values) and values.nunique() > MOST_CLASSES):
        return Colour(str(name), values.to_numpy(dtype=np.float64))
    return Colour(str(name), values.astype(str).to_numpy(dtype=object))
