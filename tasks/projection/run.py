"""The maps of a project and of a matrix that a user brings: drawn, measured and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.files import atomic_dir, read_json, write_json, write_text
from tasks.gate import encoder_family
from tasks.params import Params
from tasks.prepare import load_prepared
from tasks.projection.maps import Atlas, make_atlas
from tasks.projection.page import View, render_map
from tasks.projection.points import Points, series_points, window_points
from tasks.summary import MAP, PROJECTION

GUARDS = "guards.json"


def project(params: Params, root: Path) -> Path:
    """Draw the embeddings of windows and series; writes and returns ``artifacts/projection``.

    ``map.html`` shows the maps, ``coordinates.parquet`` has a row a window and ``series.parquet`` one a series, with two
    coordinates a map, and ``guards.json`` says how far each map may be believed.
    """
    prepared, options = load_prepared(root), params.projection
    points, told = window_points(params, root, prepared)
    views = [View("Windows", points, _atlas(points, params))]
    series = series_points(points, told, prepared)
    if series is not None:
        views.append(View("Series", series, _atlas(series, params)))
    family = options.family or encoder_family(params)
    about = f"Embeddings of the {family} encoder, {len(points.labels):,} windows of {prepared.panel.n_series:,} series"
    with atomic_dir(root / PROJECTION) as folder:
        write_text(folder / MAP, render_map(f"{params.registry.name}: maps of embeddings", about, views))
        write_json(folder / GUARDS, {view.title.lower(): guards_of(view.atlas) for view in views})
        with_coordinates(told, views[0].atlas).to_parquet(folder / "coordinates.parquet", index=False)
        if series is not None:
            table = pd.DataFrame({"unique_id": series.labels})
            with_coordinates(table, views[1].atlas).to_parquet(folder / "series.parquet", index=False)
    return root / PROJECTION


def _atlas(points: Points, params: Params) -> Atlas:
    options = params.projection
    old, new = points.features[~points.new], points.features[points.new]
    return make_atlas(old, new, neighbors=options.neighbors, standardise=True, seed=options.seed)


def with_coordinates(table: pd.DataFrame, atlas: Atlas) -> pd.DataFrame:
    """``table`` with two columns a map, such as umap_15_x and umap_15_y."""
    added = {f"{each.key}_{axis}": each.coordinates[:, i] for each in atlas.maps for i, axis in enumerate("xy")}
    return table.assign(**added)


def guards_of(atlas: Atlas) -> dict[str, Any]:
    """An atlas without its coordinates, for JSON."""
    about = {key: value for key, value in asdict(atlas).items() if key != "maps"}
    return about | {"maps": {each.key: each.guards for each in atlas.maps}}


def guard_metrics(root: Path) -> dict[str, float]:
    """Guards of the windows' maps as flat keys, such as projection/umap_15/trustworthiness."""
    found: Mapping[str, Mapping[str, float]] = read_json(root / PROJECTION / GUARDS)["windows"]["maps"]
    return {f"projection/{key}/{name}": value for key, guards in found.items() for name, value in guards.items()}
