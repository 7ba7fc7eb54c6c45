"""The report page: its numbers, its honesty, and that it stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tasks.calibrate import CALIBRATION
from tasks.files import read_json
from tasks.report import (
    Course,
    Fan,
    Found,
    Kind,
    Ood,
    Pit,
    Reliability,
    ReportData,
    Selective,
    Split,
    Steps,
    format_metric,
    render_report,
)
from tasks.report_card import card_rows
from tasks.report_words import alone, betabinomial_band, leaderboard, verdict

HORIZON = 14
VOID = {"meta", "link", "br", "img", "hr", "input"}
METRICS = {
    "ensemble": (0.0251, 0.8123, 0.7211, 0.0534, 0.803, 0.902, 0.951, 3.21, 0.897, 0.0081, 0.0123, 0.0182),
    "tft": (0.0263, 0.8377, 0.7432, 0.0561, 0.781, 0.884, 0.938, 3.05, 0.741, 0.0214, 0.0333, 0.0191),
    "mamba2": (0.0271, 0.8512, 0.7519, 0.0573, 0.812, 0.913, 0.957, 3.55, 0.762, 0.0198, 0.0309, 0.0207),
    "seasonal_naive": (0.0412, 1.2871, 1.0944, 0.1091, 0.832, 0.921, 0.949, 6.87, 0.655, 0.0402, 0.0551, float("nan")),
    "same_weekday_mean": (0.0387, 1.2012, 1.0211, 0.0942, 0.774, 0.871, 0.921, 5.9, 0.611, 0.0467, 0.0612, None),
}
NAMES = ("wql", "crps", "mase", "wape", "coverage_80", "coverage_90", "coverage_95", "width_90", "joint_coverage_90",
         "ece", "pit_ks", "aurc")  # fmt: skip
PERTURBED = {"level shift x2": 30.0, "variance x3": 9.0, "dropout 30 %": 3.0, "foreign series": 80.0}


def make_fan(label: str, name: str, score: float, rng: np.random.Generator, dates: bool = True) -> Fan:
    n = 84
    t = np.arange(n + HORIZON)
    mean = 15 + 4 * np.sin(2 * np.pi * t / 7) + 0.5 * np.cos(2 * np.pi * t / 3.5)
    y = mean + rng.normal(0, 0.7 + 8 * score, n + HORIZON)
    ds = np.datetime64("2016-05-01") + t if dates else t
    sigma = (0.7 + 5 * score) * np.sqrt(1 + np.arange(HORIZON) / 6)
    z = {80: 1.2816, 90: 1.6449, 95: 1.96}
    median = mean[n:]
    return Fan(
        label=label, unique_id=name, score=score, cutoff=str(ds[n - 1]), history_ds=ds[:n], history_y=y[:n],
        ds=ds[n:], y=y[n:], median=median, lo={k: median - v * sigma for k, v in z.items()},
        hi={k: median + v * sigma for k, v in z.items()}, joint_lo=median - 2.7 * sigma, joint_hi=median + 2.7 * sigma,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ReportData:
    rng = np.random.default_rng(7)
    levels = np.array([0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975])
    steps = np.arange(HORIZON)
    loss = np.sort(rng.gamma(2.0, 0.01, 500))
    noisy = loss[np.argsort(loss * rng.lognormal(0, 0.8, 500))]
    count = np.arange(1, 501)
    calibration = rng.chisquare(12, 400)
    threshold = float(np.sort(calibration)[-20])
    test = rng.chisquare(12, 300)
    return ReportData(
        title="Weatherglass: Chicago L boardings",
        created="2026-11-20 08:30 UTC",
        identity={"git commit": "3f2a9c1e77b04d0d9a1b6c55b1e0f7a2c4d8e9f0", "data md5": "9b74c9897bac770ffc029102",
                  "MLflow run": "http://localhost:5000/#/experiments/1/runs/7b1d"},
        data_span={"series": "20", "first": "2001-01-22", "last": "2016-08-28",
                   "test cutoffs": "2016-02-01 to 2016-08-14"},
        metrics={"ensemble/ood_auroc": 0.9312} | {
            f"{model}/{name}": value for model, row in METRICS.items()
            for name, value in zip(NAMES, row, strict=True) if value is not None
        },
        families=("tft", "mamba2"),
        baselines=("seasonal_naive", "same_weekday_mean"),
        coverage_band=(0.885, 0.915),
        joint_band=(0.86, 0.935),
        fans=(make_fan("best", "Clark/Lake", 0.012, rng), make_fan("median", "<b>bold</b> & $x^2$", 0.025, rng),
              make_fan("worst", "O'Hare \"Airport\"", 0.083, rng)),
        reliability=Reliability(levels, 0.5 + (levels - 0.5) * 0.86, levels + rng.normal(0, 0.006, len(levels))),
        pit=Pit(rng.beta(0.7, 0.7, 4000), rng.uniform(size=4000)),
        steps=Steps(0.86 - 0.004 * steps, 0.902 + rng.normal(0, 0.008, HORIZON), 2.4 + 0.06 * steps,
                    2.8 + 0.09 * steps, 0.9),
        ood=Ood(calibration, test, {name: shift + rng.chisquare(12, 150) for name, shift in PERTURBED.items()},
                threshold, 0.05, float((test > threshold).mean())),
        selective=Selective(count / 500, np.cumsum(noisy) / count, np.cumsum(loss) / count),
        card={"assumption": "exchangeable windows", "unit": "one value of one series", "alpha": 0.1, "n": 5600,
              "k": 5041, "n_eff": 400, "coverage": 0.902, "coverage_band": [0.885, 0.915],
              "coverage_by_step": [round(0.9 + 0.001 * i, 3) for i in range(HORIZON)],
              "coverage_by_group": {"weekday": 0.903, "weekend": 0.897}, "not_certified": None},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


class Outline(HTMLParser):
    """Collects a page's elements and text, and fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.text.append(data)


def test_models_are_compared_in_pairs_and_what_uncertainty_is_made_of_is_shown(data: ReportData) -> None:
    split = Split(np.linspace(1.0, 3.0, HORIZON), np.linspace(1.0, 1.0, HORIZON))
    course = Course(np.array(["2016-02-01", "2016-02-15", "2016-02-29"]), np.array([0.9, 0.8, 0.92]), np.array([1.0, 2.0, 2.5]))
    against = {"tft": (0.041, 0.02, 0.063), "mamba2": (0.01, -0.02, 0.04)}
    page = render_report(replace(data, against=against, split=split, course=course))
    text = "".join(outline(page).text)
    assert "+4.1\u00a0% (+2.0 to +6.3)" in text and "+1.0\u00a0% (-2.0 to +4.0)" in text
    assert page.count("<b>+") == 1  # only the interval that leaves out zero
    assert "is 50.0\u00a0% of the predictive variance at the first step and 25.0\u00a0% at the last" in text
    assert "lowest after 2016-02-15 (80.0\u00a0%) and CRPS highest after 2016-02-29 (2.5)" in text
    assert "In the second half CRPS is 125.0\u00a0% higher" in text
    assert "CRPS against" not in "".join(outline(render_report(data)).text)


def test_a_report_may_load_nothing(page: str) -> None:
    assert "default-src 'none'" in page and "<script" not in page


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert not parser.stack
    return parser


def test_every_leaderboard_number_is_on_the_page_as_rounded(data: ReportData, page: str) -> None:
    text = "".join(outline(page).text)
    for key, value in data.metrics.items():
        assert format_metric(key.rpartition("/")[2], value) in text, key


def test_leaderboard_is_sorted_by_wql_and_marks_the_best(data: ReportData) -> None:
    columns, rows = leaderboard(data)
    assert [row.model for row in rows] == ["ensemble", "tft", "mamba2", "same_weekday_mean", "seasonal_naive"]
    assert [row.kind for row in rows] == ["ensemble", "family", "family", "baseline", "baseline"]
    best = {column.metric: [row.model for row in rows if row.cells[i][1]] for i, column in enumerate(columns)}
    assert best["wql"] == ["ensemble"]
    assert best["coverage_80"] == ["ensemble"]
    assert best["width_90"] == []  # the narrowest interval is not the best one
    assert "ood_auroc" not in best and alone(data) == "The ensemble alone has OOD AUROC 0.9312."


def test_best_coverage_is_the_closest_to_its_level_from_either_side(data: ReportData) -> None:
    metrics = {"tft/coverage_90": 0.97, "mamba2/coverage_90": 0.89, "ensemble/coverage_90": 0.85}
    _, rows = leaderboard(replace(data, metrics=metrics))
    assert [row.model for row in rows if row.cells[0][1]] == ["mamba2"]


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("wql", 0.02514, "0.0251"),
        ("coverage_90", 0.9016, "90.2\u00a0%"),
        ("wape", 0.109, "10.9\u00a0%"),
        ("width_90", 16.234, "16.23"),
        ("width_90", float("inf"), "∞"),
        ("crps", float("nan"), "–"),
        ("crps", 123456.7, "123,457"),
        ("aurc", None, "–"),
    ],
)
def test_metric_rounding(metric: str, value: float | None, shown: str) -> None:
    assert format_metric(metric, value) == shown


def test_verdict_holds_when_every_number_is_in_its_band(data: ReportData, page: str) -> None:
    result = verdict(data)
    assert result.headline == "Every check holds"
    assert len(result.sentences) == 3
    assert "lowest WQL of 5 models" in result.sentences[0] and "every baseline (2)" in result.sentences[0]
    assert result.headline in page


@pytest.mark.parametrize(("coverage", "word"), [(0.84, "too narrow"), (0.96, "wider than need be")])
def test_verdict_changes_when_coverage_leaves_its_band(data: ReportData, coverage: float, word: str) -> None:
    changed = replace(data, metrics={**data.metrics, "ensemble/coverage_90": coverage})
    result = verdict(changed)
    assert "90 % intervals" in result.headline and "1 of 4 checks missed" in result.headline
    assert word in result.sentences[1]
    assert result.headline in render_report(changed)


def test_verdict_says_when_joint_coverage_or_the_gate_misses(data: ReportData) -> None:
    metrics = {**data.metrics, "ensemble/joint_coverage_90": 0.6}
    result = verdict(replace(data, metrics=metrics, ood=replace(data.ood, test_rate=0.2)))
    assert [check.state for check in result.checks] == ["holds", "holds", "misses", "misses"]
    assert "more false alarms" in result.sentences[2]


def test_verdict_says_who_beats_the_ensemble(data: ReportData) -> None:
    family = verdict(replace(data, metrics={**data.metrics, "tft/wql": 0.02}))
    assert "tft has the lowest WQL, 0.0200; the ensemble is at 0.0251 (25.5\u00a0% higher)" in family.sentences[0]
    assert family.checks[0].state == "holds"
    baseline = verdict(replace(data, metrics={**data.metrics, "seasonal_naive/wql": 0.0251}))
    assert "does not beat seasonal_naive" in baseline.sentences[0]  # a tie is not a win
    assert baseline.checks[0].state == "misses"


def test_verdict_does_not_claim_what_was_not_measured(data: ReportData) -> None:
    result = verdict(replace(data, metrics={"tft/wql": 0.1}, baselines=()))
    assert [check.state for check in result.checks[:3]] == ["unknown"] * 3
    assert "not measured" in result.headline and "Every check holds" not in result.headline


def test_a_band_of_everything_judges_nothing(data: ReportData) -> None:
    result = verdict(replace(data, coverage_band=(0.0, 1.0)))
    check = result.checks[1]
    assert (check.value, check.target, check.state) == ("90.2\u00a0%", "too few blocks of time to judge by", "unknown")
    assert result.headline.endswith("not judged: 90 % intervals") and "Every check holds" not in result.headline
    assert "cover 90.2\u00a0% of test values, on too few blocks of time to be judged" in result.sentences[1]


def test_rounding_never_puts_a_miss_on_the_edge_of_its_band(data: ReportData) -> None:
    result = verdict(replace(data, metrics={**data.metrics, "ensemble/coverage_90": 0.88496}))
    assert result.checks[1].state == "misses"
    assert result.checks[1].value != "88.5\u00a0%" and "88.50" not in result.checks[1].value


def test_false_alarm_band_holds_its_mass_under_simulated_conformal_gates() -> None:
    n, m, rate, runs = 199, 300, 0.05, 4000
    low, high = betabinomial_band(n, m, rate) or (1.0, 0.0)
    rng = np.random.default_rng(3)
    scores = rng.random((runs, n + m))
    threshold = np.sort(scores[:, :n], axis=1)[:, -10]  # p <= 0.05 iff above the 10th largest of 199
    share = (scores[:, n:] > threshold[:, None]).mean(axis=1)
    inside = ((share >= low) & (share <= high)).mean()
    # nominal 95 %, discrete so at least that; five binomial standard errors of slack on either side of [0.95, 0.965]
    assert 0.95 - 5 * 0.0035 < inside < 0.965 + 5 * 0.0035


def test_page_loads_nothing_from_elsewhere(page: str) -> None:
    for tag, attributes in outline(page).elements:
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or target == "data:,", (tag, name, target)
    assert "@import" not in page and "<script" not in page
    assert all(target.strip("'\"").startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert len(page.encode()) < 3_000_000


def test_page_is_well_formed_and_every_reference_has_its_one_target(page: str) -> None:
    elements = outline(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]*)\)", page) + [
        str(attributes["href"])[1:] for _, attributes in elements if str(attributes.get("href")).startswith("#")
    ]
    assert set(references) <= set(ids)


def test_every_figure_has_an_accessible_name_and_a_reading_hint(page: str) -> None:
    elements = outline(page).elements
    drawings = [attributes for tag, attributes in elements if tag in ("svg", "img")]
    assert len(drawings) == 3 + 6
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in drawings)
    assert sum(tag == "figcaption" for tag, _ in elements) == len(drawings)


def test_text_from_the_data_is_escaped_and_shown_as_written(page: str) -> None:
    parsed = outline(page)
    assert "<b>bold" not in page
    assert any("<b>bold</b> & $x^2$" in text for text in parsed.text)
    labels = [str(attributes.get("aria-label")) for tag, attributes in parsed.elements if tag == "svg"]
    assert any('O\'Hare "Airport"' in label for label in labels)


def test_tick_labels_keep_their_digits(data: ReportData) -> None:
    small = replace(data.selective, risk=data.selective.risk / 10, oracle_risk=data.selective.oracle_risk / 10)
    page = render_report(replace(data, selective=small))
    drawing = page[page.index('aria-label="Risk-coverage curve') :].partition("</svg>")[0]
    labels = [float(text) for text in re.findall(r"<text[^>]*>([\d.]+)</text>", drawing)]
    assert len(labels) > 3 and len(set(labels)) == len(labels)


def test_colours_follow_the_theme(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #", drawings)
    roles = set(re.findall(r"var\(--(\w+)\)", drawings))
    assert all(page.count(f"--{role}:") == 3 for role in roles)  # light, dark and print


def test_the_same_data_give_the_same_page(data: ReportData, page: str) -> None:
    assert render_report(data) == page


def test_unusual_numbers_still_give_a_page(data: ReportData) -> None:
    rng = np.random.default_rng(1)
    fan = make_fan("best", "s", 0.02, rng, dates=False)
    one = {level: edge[:1] for level, edge in fan.lo.items()}
    top = {level: np.array([np.inf]) for level in fan.hi}
    single = replace(fan, ds=fan.ds[:1], y=np.array([np.nan]), median=fan.median[:1], lo=one, hi=top,
                     joint_lo=fan.joint_lo[:1], joint_hi=fan.joint_hi[:1])  # fmt: skip
    endless = replace(fan, hi={level: np.full(HORIZON, np.inf) for level in fan.hi})
    ones = np.ones(1)
    odd = replace(
        data, fans=(single, endless), metrics={}, card={},
        steps=Steps(ones * 0.8, ones * 0.9, ones, ones * np.inf, 0.9),
        ood=Ood(np.zeros(0), np.zeros(0), {}, np.inf, 0.05, float("nan")),
        selective=Selective(np.zeros(0), np.zeros(0), np.zeros(0)), pit=Pit(np.zeros(0), np.full(3, 0.5)),
    )  # fmt: skip
    outline(render_report(odd))


def test_guarantee_card_speaks_in_words(data: ReportData, page: str) -> None:
    rows = {row.label: row for row in card_rows(data.card)}
    assert rows["Assumption"].lines == ("exchangeable windows",)
    assert rows["Rank (k)"].lines == ("5,041",)
    assert rows["Coverage by step"].lines == ("14 values from 0.9 to 0.913, mean 0.9065",)
    assert rows["Sampling band"].lines == ("0.885 to 0.915",)
    assert rows["Coverage by group"].lines == ("weekday: 0.903", "weekend: 0.897")
    assert "Effective n" in page


def test_guarantee_card_says_what_is_promised_and_what_is_not(evaluated_project: Path) -> None:
    card = read_json(evaluated_project / CALIBRATION / "card.json")
    rows = {row.label: row for row in card_rows(card)}
    assert next(iter(rows)) == "Assumption" and all(row.meaning for row in rows.values())
    promise = card["levels"]["step 90 %"]
    line = next(line for line in rows["Levels"].lines if line.startswith("step 90 %"))
    assert f"promised, by rank {promise['rank']:,} of {promise['n']:,} scores" in line
    few = {**card, "levels": {"step 95 %": {**promise, "certified": False, "n": 12}}, "gate": "of another version"}
    rows = {row.label: row for row in card_rows(few)}
    assert rows["Levels"].lines == ("step 95 %: not promised, 12 scores are too few",)
    assert rows["Alarm"].lines == ("of another version",)


def test_detection_and_kept_shares_are_tables(data: ReportData) -> None:
    found = Found((0.97, 0.95, 0.98), (0.96, 0.94, 0.98), (0.08, 0.05, 0.12))
    sizes = {0.5: (0.81, 0.42), 1.0: (0.97, 0.08), 2.0: (0.99, float("nan"))}
    kinds = (Kind("level", True, sizes, found), Kind("variance", False, sizes, None))
    kept = ((1.0, 500, 0.02, 1.0), (0.8, 400, 0.0142, 0.71))
    page = render_report(
        replace(
            data,
            ood=replace(data.ood, kinds=kinds, mean=found),
            selective=replace(data.selective, kept=kept),
            metrics=data.metrics | {"ensemble/aurc_ratio": 1.18, "ensemble/ood_aupr": 0.123},
        )
    )
    text = " ".join(outline(page).text)
    assert "Over the 1 kinds of change" not in text
    assert "0.970 (0.950 to 0.980)" in text
    assert "variance (tuned on)" in text
    for cell in ("0.420", "400", "71.0\u00a0%", "1.180 times"):
        assert cell in text
    assert "0.1230" not in text, "what only the ensemble has is no column of the leaderboard"
    assert "Detection by size" not in render_report(data)
