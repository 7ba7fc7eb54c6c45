"""The report in a browser: it loads alone, fits a phone, prints, can be read in both schemes, and shows the run's numbers."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.evidence import evaluate_and_report
from tasks.files import read_json
from tasks.params import Params
from tasks.report import format_metric
from tasks.summary import REPORT

CONTRAST = """(() => {
  const light = (c) => { const v = c.map((x) => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => { for (let e = element; e; e = e.parentElement) {
    const text = getComputedStyle(e).backgroundColor;
    if (text.startsWith('rgb(')) return parse(text); }
    return null; };
  const poor = [];
  for (const element of document.querySelectorAll('h1, h2, h3, p, th, td, li, a, figcaption')) {
    const under = ground(element), colour = getComputedStyle(element).color;
    if (!element.textContent.trim() || !under || !colour.startsWith('rgb')) continue;
    const [a, b] = [light(parse(colour).slice(0, 3)), light(under.slice(0, 3))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.tagName + ': ' + element.textContent.slice(0, 40));
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def reported(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its report."""
    root = tmp_path_factory.mktemp("reported") / "project"
    shutil.copytree(evaluated_project, root)
    evaluate_and_report(Params.load(root=root), root, {"git_commit": "3f2a9c1e"})
    return root


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_loads_alone_fits_and_can_be_read(page: Any, reported: Path, width: int, scheme: str) -> None:
    path = reported / REPORT
    page.open(path, width, scheme=scheme)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(CONTRAST) == []  # WCAG 2.1, 1.4.3
    assert path.stat().st_size < 5e6


def test_numbers_on_the_page_are_those_of_the_metrics(page: Any, reported: Path) -> None:
    page.open(reported / REPORT)
    table = page.ask(
        "[...document.querySelector('table.board').rows].map(row => [...row.cells].map(cell => cell.firstChild.textContent))"
    )
    metrics = read_json(reported / "metrics/test.json")
    header, rows = table[0], {row[0].strip(): row[1:] for row in table[1:]}
    assert "WQL" in header and "CRPS" in header
    for model, row in rows.items():
        for heading, metric in (("WQL", "wql"), ("CRPS", "crps"), ("MASE", "mase"), ("WAPE", "wape")):
            assert row[header.index(heading) - 1] == format_metric(metric, metrics[f"{model}/{metric}"]), (model, metric)
    assert set(rows) == {key.split("/")[0] for key in metrics if key.endswith("/wql")}


def test_pictures_have_names_tables_headings_and_keys_reach_what_scrolls(page: Any, reported: Path) -> None:
    page.open(reported / REPORT)
    assert page.ask(
        "[...document.querySelectorAll('svg')].every(s => s.getAttribute('role') === 'img' && s.ariaLabel.length > 20)"
    )
    assert page.ask(
        "[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.getAttribute('role') === 'region')"
    )
    assert page.ask("[...document.querySelectorAll('th')].every(th => ['row', 'col'].includes(th.getAttribute('scope')))")
    levels = page.ask("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_it_prints_light_and_without_its_navigation(page: Any, reported: Path) -> None:
    page.open(reported / REPORT, scheme="dark", media="print")
    assert page.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.open(reported / REPORT, width=688, media="print")  # A4 less its margins
    assert page.ask("document.documentElement.scrollWidth") <= 688
    pages = page.call("Page.printToPDF", printBackground=True)["data"]
    assert len(pages) > 10_000
