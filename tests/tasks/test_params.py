"""params.yaml: what it accepts, how mistakes are told, and what is derived from the data's lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.errors import UserError
from tasks.params import Params, derive_settings
from tasks.settings import FOLDS, cycle_of

ROOT = Path(__file__).parents[2]
NAMES = "tft, deepar, tcn, wavenet, s4d, mamba, mamba2, hybrid, tide, gradient_boosting"


def load(folder: Path, text: str) -> Params:
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return Params.load(root=folder)


def message(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text)
    return str(caught.value)


def keys_of(tree: object, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {key for name, branch in tree.items() for key in keys_of(branch, f"{prefix}.{name}".lstrip("."))}


def test_the_committed_file_names_every_key_and_differs_from_the_defaults_only_in_the_chicago_columns() -> None:
    params = Params.load(root=ROOT)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert keys_of(tree) == keys_of(Params().model_dump())
    games_and_weather = params.data.model_copy(update={"known_future": (), "past_only": (), "holidays": None})
    assert params.model_copy(update={"data": games_and_weather}) == Params()


def test_params_survive_json_and_cannot_be_changed(tmp_path: Path) -> None:
    params = load(tmp_path, 'data: {until: "2015-08-14", horizon: 7}')
    assert Params.model_validate(params.model_dump(mode="json")) == params
    with pytest.raises(ValueError, match="frozen"):
        params.data.__setattr__("horizon", 3)


def test_plain_words_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    params = load(tmp_path, "data: {holidays: NO}\ntrain: {weight_decay: 1e-3}")
    assert params.data.holidays == "NO"  # Norway, not false
    assert params.train.weight_decay == 0.001  # not the text '1e-3'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("monitor: {window: 3}", "params.yaml: monitor.window is 3; it must be null or at least data.horizon, 14."),
        (
            "monitor: {webhook: chat.example/secret}",
            "params.yaml: monitor.webhook does not begin with http:// or https://; it must be an address, or null.",
        ),
        (
            "monitor: {confidence: 0.2}",
            "params.yaml: monitor.confidence is 0.2; it must be a number of 0.5 or more and less than 1.0.",
        ),
        ("data: {horizon: 0}", "params.yaml: data.horizon is 0; it must be a whole number of 1 or more."),
        ("data: {horizon: 14.5}", "params.yaml: data.horizon is 14.5; it must be a whole number of 1 or more."),
        ("data: {horizon: true}", "params.yaml: data.horizon is true; it must be a whole number of 1 or more."),
        ("data: {horizon: '14'}", "params.yaml: data.horizon is '14'; it must be a whole number of 1 or more."),
        ("data: {horzon: 3}", "params.yaml: data.horzon is not a known key; did you mean data.horizon?"),
        ("horizon: 3", "params.yaml: horizon is not a known key; did you mean data.horizon?"),
        ("zzz: 3", "params.yaml: zzz is not a known key; remove it."),
        ("data:", "params.yaml: data is null; it must be a block of keys."),
        (
            "families: []",
            f"families is []; it must be a list of one or more, each one of {NAMES}.",
        ),
        (
            "families: [tft, lstm]",
            f"families[1] is 'lstm'; it must be one of {NAMES}.",
        ),
        ("families: [tft, tft]", "families holds 'tft' twice; name each once."),
        (
            "uncertainty: fast",
            "uncertainty is 'fast'; it must be one of quick, reliable, safety_critical, sets, ood, constrained.",
        ),
        ("train: {members: 0}", "train.members is 0; it must be a whole number of 1 or more, or null."),
        (
            "uncertainty: quick\nfamilies: [gradient_boosting]",
            "uncertainty is quick, whose MC dropout (ensemble.dropout_passes 20) no family can serve: gradient_boosting has no "
            "stochastic layer; add a family with dropout above 0",
        ),
        (
            "uncertainty: constrained\nfamilies: [tcn]\nforecasters: {tcn: {dropout: 0.0}}",
            "uncertainty is constrained, whose MC dropout (ensemble.dropout_passes 10) no family can serve: "
            "forecasters.tcn.dropout is 0;",
        ),
        ("train: {id_dropout: 1}", "train.id_dropout is 1; it must be a number of 0.0 or more and less than 1.0."),
        ("features: {context: -3}", "features.context is -3; it must be a whole number of 1 or more, or null."),
        ("features: {lags: [7]}", "features.lags holds 7; each lag must be at least data.horizon, 14"),
        ("folds: {test: 3}", "folds.test is 3; it must be null or at least data.horizon, 14."),
        ("forecasters: {tft: {hidden_size: 30}}", "forecasters.tft.hidden_size is 30; it must be a multiple of"),
        ("data: {frequency: foo}", "data.frequency is 'foo'; it must be a pandas offset alias such as D"),
        ("data: {frequency: -1D}", "data.frequency is '-1D'; it must be a pandas offset alias"),
        ("data: {holidays: US-XX}", "data.holidays is 'US-XX'; it must be null, or a country"),
        ("data: {source: file}", "data.path is null; with data.source file it must name"),
        ("data: {static: [a], past_only: [a]}", "data.static names 'a', already data.past_only"),
        ("data: {static: [ds]}", "data.static names 'ds', already data.time_column"),
        ("data: {target_column: sales, static: [y]}", "data.static names 'y', which is the panel's name for"),
        ("data: {until: soon}", "data.until is 'soon'; it must be a date such as 2016-08-14"),
        ("data: {until: 2015-08-14}", 'at line 1: the date 2015-08-14 must stand in quotes, "2015-08-14", since DVC reads no'),
        ("data: {until: 5}", "data.until is 5; with data.frequency D it must be a date."),
        ("data: {horizon: 0, count: maybe}", "data.horizon is 0; it must be a whole number of 1 or more (1 further"),
        (
            "data: {horizon: 1}\ndata: {horizon: 2}",
            "params.yaml is not valid YAML at line 2: the key data comes twice.",
        ),
        ("data: [", "params.yaml is not valid YAML at line 1:"),
        ("", "params.yaml is empty; it must hold blocks of keys"),
        ("# only a comment", "params.yaml is empty; it must hold blocks of keys"),
        ("- a", "params.yaml holds no keys; it must hold blocks of keys"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_with_its_key(tmp_path: Path, text: str, told: str) -> None:
    found = message(tmp_path, text)
    assert told in found
    assert "\n" not in found


def test_a_missing_file_and_a_file_of_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other\.yaml was not found"):
        Params.load("other.yaml", root=tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"data: \xff")
    with pytest.raises(UserError, match="not UTF-8"):
        Params.load(root=tmp_path)


SEASONS: dict[str | int, int] = {"D": 7, "7D": 52, "W-MON": 52, "MS": 12, "ME": 12, "3MS": 4, "QS": 4, "YS": 1, "h": 24}
SEASONS |= {"2h": 12, "24h": 7, "15min": 96, "min": 60, "s": 60, "B": 5, 1: 1, "5h": 1}


@pytest.mark.parametrize(("frequency", "season"), SEASONS.items())
def test_season_of_a_frequency(frequency: str | int, season: int) -> None:
    assert cycle_of(frequency).season == season


def test_settings_of_the_default_data() -> None:
    settings = derive_settings(Params(), [5684] * 20)
    folds = [getattr(settings, fold) for fold in FOLDS]
    assert folds == [182, 182, 364, 364, 364]
    assert (settings.context, settings.lags, settings.cutoff_every) == (56, (14, 21, 28, 364), 14)
    assert (settings.season_length, settings.gap, settings.calendar) == (7, 13, True)


@pytest.mark.parametrize(
    ("given", "length", "gap"), [(None, 2000, 23), (None, 500, 0), (0, 2000, 0), (7, 2000, 7), (7, 500, 7)]
)
def test_a_short_history_is_not_spent_on_gaps(given: int | None, length: int, gap: int) -> None:
    params = Params.model_validate({"data": {"frequency": "h", "horizon": 24}, "folds": {"gap": given}})
    assert derive_settings(params, [length] * 3).gap == gap


@pytest.mark.parametrize(
    ("frequency", "horizon", "length"),
    [("h", 24, 26304), ("h", 48, 2000), ("MS", 12, 441), ("QS", 4, 120), ("W", 8, 500), ("D", 14, 1000), (1, 10, 500)],
)
def test_derived_lengths_leave_training_half_and_never_look_ahead(frequency: str | int, horizon: int, length: int) -> None:
    params = Params.model_validate({"data": {"frequency": frequency, "horizon": horizon}})
    settings = derive_settings(params, [length] * 5)
    assert settings.reserved <= length / 2
    assert settings.needed <= length
    assert all(lag >= horizon and lag % settings.season_length == 0 for lag in settings.lags)
    assert settings.context >= 2 * settings.season_length
    for fold in FOLDS:
        assert getattr(settings, fold) >= horizon
        assert getattr(settings, fold) % horizon == 0


def test_what_is_given_wins_over_what_is_derived() -> None:
    params = Params.model_validate(
        {
            "features": {"context": 30, "season_length": 5, "lags": [], "calendar": False},
            "folds": {"test": 99, "cutoff_every": 3},
        }
    )
    settings = derive_settings(params, [5684])
    assert (settings.context, settings.season_length, settings.lags, settings.calendar) == (30, 5, (), False)
    assert (settings.test, settings.cutoff_every, settings.conformal) == (99, 3, 364)


def test_a_few_short_series_do_not_shorten_the_context() -> None:
    assert derive_settings(Params(), [2000] * 9 + [20]).context == derive_settings(Params(), [2000] * 10).context


def test_too_short_a_panel_is_told_with_what_it_needs() -> None:
    with pytest.raises(UserError, match=r"longest series has length 80.*need \d+"):
        derive_settings(Params(), [80, 60])


def test_a_panel_is_called_by_its_source_or_its_file() -> None:
    assert Params().data.name == "chicago"
    assert Params.model_validate({"data": {"source": "file", "path": "data/raw/tourism.csv"}}).data.name == "tourism"
