"""Presets fill what params.yaml leaves null, and every one of them runs from the data to a forecast."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from flows.pipeline import preset_line
from models.forecasters.factory import FAMILIES, build_forecaster
from models.panel import PanelSchema
from models.uncertainty.guarantee import coverage_band
from models.uncertainty.mc_dropout import stochastic_layers
from tasks.bundle import Bundle, write_bundle
from tasks.calibrate import calibrate, load_calibration
from tasks.energy import alarm_record, energy_family
from tasks.ensemble import POOLED, make_ensemble
from tasks.evaluate import run_baselines
from tasks.evidence import evaluate_and_report
from tasks.files import read_json
from tasks.future import with_future_rows
from tasks.params import Params
from tasks.presets import PRESETS, RELIABLE, combination, keeps_dropout
from tasks.train import LEFT_OUT, TRAINED, train_family

PROJECT = Path(__file__).parents[2]
LISTED = ["tcn", "gradient_boosting"]
NULLS: dict[str, Any] = dict.fromkeys(RELIABLE)


def of(uncertainty: str, **blocks: Any) -> Params:
    return Params.model_validate({"uncertainty": uncertainty, **blocks})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_nulls_and_missing_keys_alike(name: str) -> None:
    nulls: dict[str, dict[str, None]] = {}
    for key in RELIABLE:
        block, _, leaf = key.partition(".")
        nulls.setdefault(block, {})[leaf] = None
    params = of(name)
    assert of(name, **nulls) == params
    assert combination(params) == {"uncertainty": name, **PRESETS[name].fills}
    assert Params.model_validate(params.model_dump(mode="json")) == params


def test_the_defaults_of_the_blocks_are_the_reliable_preset() -> None:
    assert combination(Params()) == {"uncertainty": "reliable", **RELIABLE}


def test_the_table_in_the_docs_is_what_presets_fill() -> None:
    lines = (PROJECT / "docs/uncertainty.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    names = next(row[1:] for row in rows if row[0] == "key" and len(row) == len(PRESETS) + 1)
    found = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows if row[0] in RELIABLE and len(row) > 2}
    shown = lambda value: str(value).lower() if isinstance(value, bool) else str(value)  # noqa: E731
    assert found == {key: {name: shown(PRESETS[name].fills[key]) for name in PRESETS} for key in RELIABLE}


def test_a_key_that_is_set_wins_and_the_run_says_so() -> None:
    params = of("quick", train={"members": 3})
    assert params.train.members == 3
    assert params.ensemble.dropout_passes == 20
    assert preset_line(params).startswith("uncertainty quick: train.members 3, ensemble.families all, ")


def test_constrained_keeps_the_smallest_family_that_can_drop() -> None:
    assert of("constrained").families == ("tcn",)
    small = of("constrained", families=["deepar", "mamba", "tcn"], forecasters={"tcn": {"dropout": 0.0}})
    assert small.families == ("mamba",)
    assert of("constrained", families=["mamba", "tft"], ensemble={"families": "all"}).families == ("mamba", "tft")
    assert of("reliable", families=["tft", "tcn"], ensemble={"families": "smallest"}).families == ("tcn",)


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in FAMILIES), ("tft", {"dropout": 0.0}), ("mamba", {"dropout": 0.0}), ("deepar", {"layers": 1})],
)
def test_a_family_is_held_able_to_drop_if_its_network_has_stochastic_layers(family: str, changes: dict[str, Any]) -> None:
    schema = PanelSchema((), (), (), (), lags=(7,), context=14, horizon=2, season_length=7)
    config = getattr(Params().forecasters, family).model_copy(update=changes)
    assert keeps_dropout(family, config) == bool(stochastic_layers(build_forecaster(family, schema, config)))


class Run:
    """A preset's run over the tiny project, from training to the bundle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = params = Params.load(root=root)
        for family in LISTED:
            train_family(params, root, family)
        for work in (make_ensemble, calibrate, run_baselines):
            work(params, root)
        evaluate_and_report(params, root, {})
        self.metrics: dict[str, float] = read_json(root / "metrics/test.json")
        self.card = load_calibration(root)[2]
        self.report = html.unescape((root / "reports/report.html").read_text(encoding="utf-8"))
        self.bundle = Bundle.load(write_bundle(params, root))
        history = pd.read_parquet(root / "data/ingested/panel.parquet")
        self.forecast = self.bundle.forecast(with_future_rows(history, self.bundle.encoding))


@pytest.fixture(scope="module", params=list(PRESETS))
def run(
    request: pytest.FixtureRequest,
    prepared_project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    edit_params: Callable[..., None],
) -> Run:
    root = tmp_path_factory.mktemp("preset") / "project"
    shutil.copytree(prepared_project, root)
    small = {"families": LISTED, "baselines.models": ["seasonal_naive"], "forecasters.gradient_boosting.trees": 20}
    edit_params(root, NULLS | small | {"uncertainty": request.param, "forecasters.tcn.max_epochs": 1})
    return Run(root)


def test_every_preset_runs_to_a_forecast_and_says_what_it_promises(run: Run) -> None:
    name = run.params.uncertainty
    assert run.metrics["ensemble/coverage_90"] > 0.7
    assert run.card["uncertainty"]["name"] == name
    assert run.card["uncertainty"]["promise"] in run.report
    assert len(run.forecast) == 7 * 6
    assert not run.forecast.isna().any().any()
    assert (run.forecast["lo-90"] <= run.forecast["hi-90"]).all()
    assert (run.forecast["aleatoric"] > 0).all()
    assert (run.forecast["epistemic"] > 0).all(), "members or passes differ"


def test_members_and_families_are_those_of_the_preset(run: Run) -> None:
    fills = PRESETS[run.params.uncertainty].fills
    rows = [(row["family"], row["index"]) for row in read_json(run.root / POOLED / "weights.json")["members"]]
    families = LISTED if fills["ensemble.families"] == "all" else ["tcn"]
    assert rows == [(family, index) for family in families for index in range(fills["train.members"])]
    assert (run.root / TRAINED / "gradient_boosting" / LEFT_OUT).exists() == (families == ["tcn"])


def test_passes_show_in_the_split_and_who_has_none_on_the_card(run: Run) -> None:
    passes = run.params.ensemble.dropout_passes
    split = run.root / TRAINED / "tcn" / "split_test.npy"
    assert split.exists() == (passes > 0)
    assert not (run.root / TRAINED / "gradient_boosting" / "split_test.npy").exists()
    if passes:
        aleatoric, epistemic = np.load(split)[0]
        assert (aleatoric > 0).all()
        assert (epistemic > 0).all()
        whole = np.load(run.root / POOLED / "epistemic_test.npy")
        weight = next(row["weight"] for row in read_json(run.root / POOLED / "weights.json")["members"])
        assert (whole >= weight * epistemic * (1 - 1e-4)).all(), "what passes disagree about is part of the whole"
    said = run.card["uncertainty"].get("without MC dropout", "")
    if run.params.uncertainty == "quick":
        assert said == ("gradient_boosting, with one forecast a member (gradient_boosting has no stochastic layer)")
    else:
        assert said == ""


def test_sets_are_runs_of_bins_that_hold_their_share(run: Run) -> None:
    columns = ["set-first-90", "set-last-90", "set-lo-90", "set-hi-90"]
    if run.params.calibration.sets == "none":
        assert not set(columns) & set(run.forecast.columns)
        assert "ensemble/set_size_90" not in run.metrics
        return
    first, last, lower, upper = (run.forecast[name] for name in columns)
    assert first.between(1, 10).all()
    assert (last.between(1, 10) & (first <= last)).all()
    assert ((lower == -np.inf) == (first == 1)).all()
    assert ((upper == np.inf) == (last == 10)).all()
    assert ((lower < run.forecast["hi-90"]) & (run.forecast["lo-90"] < upper)).all(), "sets and intervals meet"
    card = run.card["sets"]
    low, high = coverage_band(card["n"] / 4, 42, 0.9, confidence=0.999)  # windows overlap, and steps of one go together
    assert low <= run.metrics["ensemble/set_coverage_90"] <= high
    assert 1 <= run.metrics["ensemble/set_size_90"] < 8
    assert (card["rank"], card["finite"]) == (197, True)
    assert "of a series' ten decile bins" in run.report
    alone = run.bundle.forecast(with_future_rows(new_series(), run.bundle.encoding))
    assert (alone["set-lo-90"] > 900).any(), "a new series has bins by its own history"


def test_energy_alarms_beside_the_gate(run: Run) -> None:
    columns = ["energy", "energy_pvalue"]
    if not run.params.calibration.energy:
        assert not set(columns) & set(run.forecast.columns)
        assert "energy" not in run.card
        return
    assert run.params.forecasters.tcn.head == "categorical"
    assert run.card["energy"]["network"] == "first member of tcn, whose head is categorical"
    assert 0.0 <= run.metrics["ensemble/energy_auroc"] <= 1.0
    assert run.metrics["ensemble/either_false_alarm_rate"] <= 0.2
    assert run.forecast["energy_pvalue"].between(0, 1).all()
    assert (run.forecast["ood_pvalue"] <= 2 * run.forecast["energy_pvalue"]).all()
    assert (run.forecast["is_ood"] == (run.forecast["ood_pvalue"] <= 0.05)).all()
    assert (run.forecast["abstain"] | ~run.forecast["is_ood"]).all(), "strange input is withheld"


def test_the_energy_alarm_takes_one_head_and_none_that_is_set_or_absent() -> None:
    heads = lambda params: {name: getattr(params.forecasters, name).head for name in ("tcn", "mamba")}  # noqa: E731
    assert heads(of("ood")) == {"tcn": "categorical", "mamba": "quantile"}
    null = {"tcn": {"head": None}, "mamba": {"head": None}}
    assert of("ood", forecasters=null) == of("ood")
    assert of("reliable", forecasters=null) == of("reliable")
    assert heads(of("ood", forecasters={"tcn": {"head": "normal"}})) == {"tcn": "normal", "mamba": "categorical"}
    chosen = of("ood", forecasters={"mamba": {"head": "categorical"}})
    assert heads(chosen) == {"tcn": "quantile", "mamba": "categorical"}
    assert energy_family(chosen) == "mamba"
    assert energy_family(of("reliable", forecasters={"mamba": {"head": "categorical"}})) is None
    none = of("ood", families=["tft", "wavenet", "gradient_boosting"])
    assert energy_family(none) is None
    assert "told by distances alone" in alarm_record(none, None)["fallback"]


def test_families_that_sample_paths_of_bins_serve_neither_the_energy_alarm_nor_mc_dropout() -> None:
    paths = of("ood", families=["mamba", "tcn"], forecasters={"mamba": {"head": None, "decoding": "paths"}})
    assert (paths.forecasters.mamba.head, paths.forecasters.tcn.head) == ("categorical", "categorical")
    assert energy_family(paths) == "tcn"
    with pytest.raises(ValidationError, match=r"forecasters\.mamba\.decoding is paths, along which"):
        of("quick", families=["mamba"], forecasters={"mamba": {"decoding": "paths"}})
    with pytest.raises(ValidationError, match=r"forecasters\.deepar\.head is categorical"):
        of("quick", families=["deepar"], forecasters={"deepar": {"head": "categorical"}})


def new_series() -> pd.DataFrame:
    ds = pd.date_range("2024-03-05", periods=200, freq="h")
    return pd.DataFrame({"unique_id": "never seen", "ds": ds, "y": 1000 + 50 * np.sin(np.arange(200) * np.pi / 12)})


def test_a_forecast_repeats_itself(run: Run) -> None:
    history = pd.read_parquet(run.root / "data/ingested/panel.parquet")
    again = run.bundle.forecast(with_future_rows(history, run.bundle.encoding))
    pd.testing.assert_frame_equal(again, run.forecast)
