"""The map page in a browser: it loads alone, hover and filters work, and it holds at one point and at fifty thousand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.projection.maps import Atlas, Map
from tasks.projection.page import View, render_map
from tasks.projection.points import Colour, Points

GUARDS = dict.fromkeys(
    ("trustworthiness", "continuity", "preservation", "chance", "distance_correlation", "stability"), 0.5
)  # fmt: skip
PLACE = "(() => { const c = document.querySelector('canvas').getBoundingClientRect(); return [c.left, c.top, c.width]; })()"
INK = """(() => { const c = document.querySelector('canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"""
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


def write_map(path: Path, n: int, maps: int = 2) -> Path:
    """Points on a line from the lower left to the upper right, in three groups, the last tenth new, the last one flagged."""
    rng = np.random.default_rng(4)
    line = np.linspace(0, 1, n)[:, None] * [1, 1] + (rng.normal(0, 0.05, (n, 2)) if n > 100 else 0)
    drawn = tuple(Map("umap", size, line.astype(np.float32), dict(GUARDS)) for size in (5, 15, 50, 99, 200)[:maps])
    points = Points(
        features=line,
        labels=np.array([f"point {i}" for i in range(n)], dtype=object),
        colours=(
            Colour("Group", np.array([f"g{i % 3}" for i in range(n)], dtype=object)),
            Colour("Error", np.where(np.arange(n) % 2, np.nan, line[:, 0]), "Half of it is known."),
        ),
        new=np.arange(n) >= n - n // 10,
        flagged=np.arange(n) == n - 1,
        sparks=rng.normal(size=(n, 24)).astype(np.float32),
    )
    path.write_text(render_map("Maps", "of a test", [View("Windows", points, Atlas(drawn, 5, 2, None, "euclidean"))]), "utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_map(tmp_path_factory.mktemp("map") / "map.html", 11)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("n", [1, 11])
def test_it_loads_alone_and_fits(page: Any, tmp_path: Path, n: int, width: int, scheme: str) -> None:
    path = write_map(tmp_path / "map.html", n)
    page.open(path, width, scheme=scheme)
    page.ask(FRAME)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(INK) > 0
    assert page.ask("document.getElementById('count').textContent") == f"{n} of {n} points shown"


def test_hover_tells_of_the_point_under_the_pointer(page: Any, small: Path) -> None:
    page.open(small)
    page.ask(FRAME)
    left, top, side = page.ask(PLACE)
    edge = side * 0.03 / 1.06
    page.mouse("mouseMoved", left + edge, top + side - edge)  # the first point lies lower left
    page.until("!document.getElementById('tip').hidden")
    told = page.ask("document.getElementById('tip').innerText")
    assert "point 0" in told and "Group: g0" in told and "Error: 0" in told and "last 24 steps" in told
    page.mouse("mouseMoved", left + side - edge, top + edge)
    page.until("document.getElementById('tip').innerText.includes('point 10')")
    told = page.ask("document.getElementById('tip').innerText")
    assert "new" in told and "flagged as out of distribution" in told
    assert page.ask("(() => { const c = document.querySelector('#tip canvas'); return c.width; })()") > 0
    page.mouse("mouseMoved", left + edge, top + edge)
    page.until("document.getElementById('tip').hidden")
    assert page.errors == []


def test_filters_hide_points_by_name_and_by_number(page: Any, small: Path) -> None:
    page.open(small)
    page.ask("document.querySelector('#legend input').click()")
    assert page.ask("document.getElementById('count').textContent") == "7 of 11 points shown"  # g0 has 4 of 11
    page.ask("document.getElementById('nothing').click()")
    page.ask("document.getElementById('mark-new').click()")
    page.ask(FRAME)
    assert page.ask(INK) == 0
    page.ask("document.getElementById('all').click()")
    page.ask("(() => { const s = document.getElementById('colour'); s.value = '1'; s.dispatchEvent(new Event('change')); })()")
    assert page.ask("document.getElementById('note').textContent") == "Half of it is known."
    page.ask(
        "(() => { const s = document.querySelector('#legend input[type=range]'); s.value = '0.5'; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert page.ask("document.getElementById('count').textContent") == "8 of 11 points shown"  # of six known, 0, 0.2 and 0.4 go
    assert page.errors == []


def test_wheel_and_keys_zoom_and_reset(page: Any, small: Path) -> None:
    page.open(small)
    page.ask(FRAME)
    before = page.ask(INK)
    left, top, side = page.ask(PLACE)
    page.mouse("mouseWheel", left + side / 2, top + side / 2, deltaX=0, deltaY=-1500)
    page.ask(FRAME)
    assert page.ask(INK) < before  # fewer points are left in view
    page.ask("document.querySelector('canvas').focus()")
    page.key("0")
    page.ask(FRAME)
    assert page.ask(INK) == before
    page.key("n")
    page.until("document.getElementById('tip').innerText.includes('point 0')")


def test_fifty_thousand_points_stay_fluid(page: Any, tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.html", 50_000, maps=5)
    page.open(path)
    page.ask(FRAME)
    assert page.errors == []
    left, top, side = page.ask(PLACE)
    times = []
    for _ in range(9):
        page.mouse("mouseWheel", left + side / 2, top + side / 2, deltaX=0, deltaY=-30)
        page.ask(FRAME)
        times.append(float(page.ask("document.querySelector('canvas').dataset.milliseconds")))
    # drawn without a graphics card, on a machine that may be busy; a fifth of a second still follows the hand
    assert np.median(times) < 200, times
    page.mouse("mouseMoved", left + side / 2, top + side / 2)
    page.until("!document.getElementById('tip').hidden")
