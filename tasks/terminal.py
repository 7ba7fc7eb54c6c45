"""Tables on a terminal, plain aligned lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them headings, as columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def show_table(rows: Sequence[Sequence[str]], title: str = "", strong: Sequence[str] = ()) -> None:
    """Print rows, the first of them headings; on a terminal as a table, those whose first cell is ``strong`` in bold.

    NO_COLOR is obeyed, and a pipe gets nothing but the lines.
    """
    if not sys.stdout.isatty():
        print(aligned(rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if place == 0 or not _is_number(rows[1:], place) else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row), style="bold" if row[0] in strong else None)
    Console().print(table)


def _is_number(rows: Sequence[Sequence[str]], place: int) -> bool:
    """Whether a column holds numbers and dashes alone."""
    return all(
        row[place].removesuffix("%").strip().replace(".", "", 1).lstrip("-").isdigit() or row[place] == "-" for row in rows
    )
