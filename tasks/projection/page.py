"""The map page: maps, colours and sparklines packed into one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tasks.projection.maps import Atlas, Map
from tasks.projection.points import Colour, Points
from tasks.report import NBSP, page_environment

NONE = 65535  # how a value that is not known is packed
MOST_NAMES = 60  # categories in a legend; the rarer ones are put together
GUARDS = {
    "trustworthiness": "Trustworthiness",
    "continuity": "Continuity",
    "preservation": "Neighbours kept",
    "chance": "Kept by luck",
    "distance_correlation": "Distances",
    "stability": "Stability",
}
MEANING = (
    "Trustworthiness falls from 1 when points are neighbours on the map and not in truth, continuity when true neighbours are "
    "torn apart; both are near 0.5 for a random map. Neighbours kept is the share of each point's {k} true neighbours that are "
    "among its {k} on the map, beside what luck would keep. Distances is the rank correlation of all distances with the true "
    "ones: near 0 the space between groups says nothing. Stability compares maps that saw other four fifths of the points and "
    "another seed, aligned: 1 is the same map each time."
)


@dataclass(frozen=True)
class View:
    """A set of points and its maps, shown together."""

    title: str
    points: Points
    atlas: Atlas


def render_map(title: str, about: str, views: Sequence[View]) -> str:
    """The page as HTML; the same views give the same bytes."""
    packed = json.dumps({"views": [pack(view) for view in views]}, separators=(",", ":"), allow_nan=False)
    environment = page_environment()
    return environment.get_template("map.html.j2").render(
        title=title,
        about=about,
        views=[
            {
                "columns": list(GUARDS.values()),
                "rows": [(each.title, guard_cells(each)) for each in view.atlas.maps if each.guards],
                "sentences": sentences(view),
            }
            for view in views
        ],
        data=Markup(packed.replace("<", "\\u003c").replace("&", "\\u0026")),
        script=Markup((Path(__file__).parents[1] / "templates" / "map.js").read_text(encoding="utf-8")),
    )


def guard_cells(each: Map) -> list[str]:
    """Guards of a map as the table shows them."""
    return [f"{each.guards[name]:.3f}" if np.isfinite(each.guards[name]) else "–" for name in GUARDS]


def sentences(view: View) -> list[str]:
    """What the guards mean, and what was done before the maps were drawn."""
    told = [MEANING.format(k=view.atlas.neighborhood)] if any(each.guards for each in view.atlas.maps) else []
    weak = [each.title for each in view.atlas.maps if each.guards.get("trustworthiness", 1.0) < 0.85]
    if weak:
        told.append(f"Do not read neighbours off {'; '.join(weak)}: trustworthiness is below 0.85.")
    if view.atlas.metric == "cosine":
        told.append("Rows are compared by the angle between them (cosine).")
    placed = int(view.points.new.sum())
    if placed:
        told.append(
            f"{placed:,} points, each a {view.points.new_title}, were placed by PCA and UMAP on the map of the others, which "
            "they did not shape; t-SNE drew all at once."
        )
    return [*told, *view.atlas.notes, *view.points.notes]


def pack(view: View) -> dict[str, Any]:
    """A view as JSON holds it: numbers as base64 of little-endian integers."""
    points = view.points
    return {
        "title": view.title,
        "n": len(points.labels),
        "labels": [str(label) for label in points.labels],
        "newTitle": points.new_title,
        "flags": _base64((points.new + 2 * points.flagged).astype("u1")),
        "maps": [
            {"title": each.title, "key": each.key, "words": words(each), "xy": _base64(unit_square(each.coordinates))}
            for each in view.atlas.maps
        ],
        "colours": [pack_colour(colour) for colour in points.colours],
        "sparks": None if points.sparks is None else pack_sparks(points.sparks),
    }


def words(each: Map) -> str:
    """A map's guards in a line."""
    if not each.guards:
        return "guards were not measured"
    trust, kept, far = (each.guards[name] for name in ("trustworthiness", "preservation", "distance_correlation"))
    shares = [f"{100 * share:.0f}{NBSP}%" for share in (kept, each.guards["chance"])]
    return f"trustworthiness {trust:.2f}, keeps {shares[0]} of neighbours (luck {shares[1]}), distances {far:.2f}"


def unit_square(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates ``(n, 2)`` in the middle of a square of 65,535 steps, their proportions kept, y downwards, uint16."""
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    side = float((high - low).max()) or 1.0
    scaled = (coordinates - (low + high) / 2) / side + 0.5
    scaled[:, 1] = 1 - scaled[:, 1]
    return np.rint(scaled.clip(0, 1) * NONE).astype("<u2")


def pack_colour(colour: Colour) -> dict[str, Any]:
    """Categories as codes with their names, the commonest first; numbers as steps between their ends."""
    about = {"title": colour.title, "note": colour.note, "absent": colour.absent}
    if colour.is_number:
        values = np.asarray(colour.values, dtype=np.float64)
        known = np.isfinite(values)
        low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 1.0)
        steps = np.full(len(values), NONE, dtype="<u2")
        steps[known] = np.rint((values[known] - low) / ((high - low) or 1.0) * (NONE - 1))
        return about | {"kind": "number", "min": low, "max": high, "values": _base64(steps)}
    names, codes, counts = np.unique([str(value) for value in colour.values], return_inverse=True, return_counts=True)
    keep = np.sort(np.argsort(-counts, kind="stable")[: MOST_NAMES if len(names) <= MOST_NAMES else MOST_NAMES - 1])
    place = np.full(len(names), len(keep))
    place[keep] = np.arange(len(keep))
    shown = names[keep].tolist() + ([f"{len(names) - len(keep)} others"] if len(keep) < len(names) else [])
    order = sorted(range(len(shown)), key=lambda i: _natural(shown[i])) if len(keep) == len(names) else list(range(len(shown)))
    rank = np.argsort(order)
    return about | {
        "kind": "category",
        "names": [shown[i] for i in order],
        "values": _base64(rank[place[codes.ravel()]].astype("<u2")),
    }


def _natural(name: str) -> tuple[float, str]:
    """Numbers by size, then names by letter."""
    try:
        return float(name), ""
    except ValueError:
        return float("inf"), name


def pack_sparks(sparks: np.ndarray) -> dict[str, Any]:
    """Lines ``(n, S)`` as bytes between each one's own ends, 255 where a value is not known."""
    low, high = (np.nan_to_num(each) for each in _ends(sparks))
    span = np.where(high > low, high - low, 1.0)[:, None]
    steps = np.rint((sparks - low[:, None]) / span * 254)
    values = np.where(np.isfinite(steps), steps, 255).astype("u1")
    ends = np.stack([low, high], axis=1).astype("<f4")
    return {"steps": sparks.shape[1], "values": _base64(values), "range": _base64(ends)}


def _ends(sparks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(sparks)
    low = np.where(known, sparks, np.inf).min(axis=1)
    high = np.where(known, sparks, -np.inf).max(axis=1)
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
