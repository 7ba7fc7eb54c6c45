"""Drawings as inline SVG whose colours are CSS variables, so that the page's light or dark theme decides them."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from tasks.report import NBSP, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ROLES", "Legend", "Picture", "dashed", "finite", "inline_svg", "mean", "pct", "thin"]

WIDTH, HEIGHT = 360, 250  # of a figure, in CSS pixels
# matplotlib draws in these stand-in colours; each becomes var(--name) so that the page's theme decides.
ROLES = {"ink": "#010101", "muted": "#020202", "grid": "#030303", "accent": "#040404", "brass": "#050505",
         "card": "#060606"}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 12, "text.parse_math": False, "axes.facecolor": "none",
    "figure.facecolor": "none", "text.color": ROLES["ink"], "axes.labelcolor": ROLES["muted"],
    "xtick.color": ROLES["muted"], "ytick.color": ROLES["muted"], "axes.edgecolor": ROLES["grid"], "axes.grid": True,
    "grid.color": ROLES["grid"], "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "xtick.major.size": 3, "ytick.major.size": 0,
    "lines.linewidth": 1.8, "axes.unicode_minus": True, "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Legend:
    """A legend entry: ``kind`` is line, dash, dot, bar or fill; ``role`` one of ROLES."""

    kind: str
    role: str
    text: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Picture:
    """A figure: SVG with its accessible name inside, a heading, a sentence on how to read it, its legend."""

    title: str
    svg: Markup
    caption: str
    legend: tuple[Legend, ...] = ()


def inline_svg(name: str, label: str, draw: Callable[[Axes], None]) -> Markup:
    """Return what ``draw`` puts on one axes as an inline SVG called ``label``, its ids distinct for each ``name``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        draw(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates, not tick labels
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>",
                  lambda m: f'<svg {m[1]} role="img" aria-label="{html.escape(label)}">', text, count=1)  # fmt: skip
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r" id=\"([^\"]*)\"", lambda m: m[0] if m[1] in used else "", text)
    for role, colour in ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return Markup(re.sub(r"\s*\n\s*", "\n", text))


def thin(n: int, most: int = 400) -> Any:
    """Return at most ``most`` indices spread evenly over 0..n-1, both ends kept."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).astype(int))


def finite(values: FloatArray) -> FloatArray:
    """Return the finite entries as float64."""
    array: FloatArray = np.asarray(values, dtype=float).ravel()
    known: FloatArray = array[np.isfinite(array)]
    return known


def mean(values: FloatArray) -> float:
    """Return the mean of the finite entries, NaN where there are none."""
    known = finite(values)
    return float(known.mean()) if len(known) else float("nan")


def pct(value: float, digits: int = 1) -> str:
    """Return a percentage, a dash where it was not measured."""
    return f"{100 * value:.{digits}f}{NBSP}%" if np.isfinite(value) else "–"


def dashed(axes: Axes, x: Any, y: Any, **more: Any) -> None:
    """Draw what is compared with: the forecast before calibration, the oracle."""
    axes.plot(x, y, color=ROLES["brass"], linestyle=(0, (4, 2)), linewidth=1.5, **more)
