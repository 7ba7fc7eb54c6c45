"""What TFT looks at on the test fold: its variables, how far back it reads, and what changes in rare regimes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.forecasters.tft import TFT
from models.interpretation import lag_profile, pattern_distance
from models.panel import Panel, SequentialLoader, Windows
from tasks.calibrate import load_calibration
from tasks.ensemble import ENSEMBLE, pooled
from tasks.files import atomic_dir, write_json
from tasks.gate import encoder_family, gate_features, relative_spread
from tasks.member import load_member
from tasks.params import Params
from tasks.predict import BATCH
from tasks.prepare import Prepared, load_prepared
from tasks.train import TRAINED

INTERPRETATION = Path("artifacts/interpretation")
FAMILY = "tft"
KINDS = {"static": "series", "encoder": "history", "decoder": "horizon"}
TOP = 3  # variables named for a forecast
UNUSUAL = 0.25  # p-value up to which a window that is not flagged counts as unusual
CALM, EXTREME = 0.25, 0.9  # quantiles of the predicted spread that bound its regimes
DIGITS = 6


@dataclass(frozen=True)
class Regime:
    """Windows that have something in common: ``mask`` is bool ``(n,)``, ``split`` what they were split by."""

    split: str
    name: str
    mask: Tensor


@dataclass(frozen=True)
class Reading:
    """What M members of TFT read from ``n`` windows, float64; V variables, L lags, R regimes.

    Attributes
    ----------
    weights : kind to ``(M, n, V)`` selection weights; each row adds to one
    lags : ``(M, n, L)`` attention by lag; each row adds to one
    history : ``(M, L)`` the part of its mean over windows that lies on history, the rest being on the horizon
    distance : ``(M, n)`` of a window's attention from the mean pattern, mean over steps of the horizon
    regime_distance : ``(M, R)`` of a regime's mean pattern from the mean pattern, likewise
    """

    weights: dict[str, Tensor]
    lags: Tensor
    history: Tensor
    distance: Tensor
    regime_distance: Tensor


def interpret(params: Params, root: Path) -> Path:
    """Read TFT's members on the test fold; writes and returns ``artifacts/interpretation``.

    ``variable_importance.csv``, ``attention_by_lag.csv`` and ``regimes.csv`` are the three interpretations of Lim et al.
    (2021, section 7), averaged over members; ``forecasts.parquet`` holds them for each forecast; ``interpretation.png``
    shows them; ``interpretation.json`` says what they were made from. Without TFT among the families it is alone.
    """
    with atomic_dir(root / INTERPRETATION) as folder:
        if FAMILY not in params.families:
            reason = f"{FAMILY} is not in params.yaml: families, which holds {', '.join(params.families)}"
            write_json(folder / "interpretation.json", {"family": None, "reason": reason})
            return root / INTERPRETATION
        prepared = load_prepared(root)
        windows = prepared.fold("test", "evaluate")
        members = _members(params, root, prepared)
        regimes = find_regimes(params, root, prepared)
        reading = read_windows(members, prepared.panel, windows, regimes)
        variables = members[0].variables
        tables = {
            "variable_importance": importance_table(reading, variables),
            "attention_by_lag": lag_table(reading),
            "regimes": regime_table(reading, variables, regimes),
        }
        for name, table in tables.items():
            table.round(DIGITS).to_csv(folder / f"{name}.csv", index=False)
        forecast_table(reading, variables, regimes, prepared).to_parquet(folder / "forecasts.parquet", index=False)
        schema = prepared.panel.schema
        summary = {
            "family": FAMILY,
            "fold": "test",
            "members": len(members),
            "windows": len(windows),
            "context": schema.context,
            "horizon": schema.horizon,
            "season_length": schema.season_length,
            "mean_distance": round(float(reading.distance.mean()), DIGITS),
        }
        write_json(folder / "interpretation.json", summary)
        draw(tables, summary, folder / "interpretation.png")
    return root / INTERPRETATION


def _members(params: Params, root: Path, prepared: Prepared) -> list[TFT]:
    """The trained members."""
    config, schema, folder = params.forecasters.tft, prepared.panel.schema, root / TRAINED / FAMILY
    paths = (folder / f"member_{index}.safetensors" for index in range(params.train.members))
    return [cast(TFT, load_member(FAMILY, config, schema, path)) for path in paths]


def find_regimes(params: Params, root: Path, prepared: Prepared) -> list[Regime]:
    """Windows of the test fold by how familiar they are, how uncertain their forecast is and whether a holiday comes.

    A regime without a window is left out, and so is the split by holidays where the data has no holidays.
    """
    windows = prepared.fold("test", "evaluate")
    calibrations, gate, _ = load_calibration(root)
    scale = prepared.panel.levels(windows)[0]
    encoded = torch.from_numpy(np.load(root / TRAINED / encoder_family(params) / "features_test.npy"))
    p_value = gate.p_value(gate.score(gate_features(encoded, prepared.panel, windows)))
    flagged, unusual = p_value <= gate.alpha, p_value <= max(UNUSUAL, gate.alpha)
    spread = relative_spread(calibrations[ENSEMBLE].apply(pooled(root, ENSEMBLE, "test", "evaluate")), scale)
    low, high = np.quantile(spread.numpy(), [CALM, EXTREME])
    calm, extreme = spread < low, spread > high
    found = [
        Regime("familiarity", "familiar", ~unusual),
        Regime("familiarity", "unusual", unusual & ~flagged),
        Regime("familiarity", "flagged", flagged),
        Regime("spread", "calm", calm),
        Regime("spread", "ordinary", ~calm & ~extreme),
        Regime("spread", "extreme", extreme),
    ]
    names = [name for name, _ in prepared.panel.schema.categories]
    if "holiday" in names:
        calendar = prepared.panel.calendar
        steps = (calendar.first[windows.series] + windows.cutoff)[:, None] + torch.arange(prepared.panel.schema.horizon)
        ahead = (calendar.codes[:, names.index("holiday")][steps] > 0).any(dim=1)
        found += [Regime("holiday", "none ahead", ~ahead), Regime("holiday", "ahead", ahead)]
    return [regime for regime in found if bool(regime.mask.any())]


def read_windows(members: list[TFT], panel: Panel, windows: Windows, regimes: list[Regime]) -> Reading:
    """Interpret ``windows`` with each member; memory grows with windows x lags, not with attention itself."""
    groups = torch.stack([torch.ones(len(windows), dtype=torch.bool), *(regime.mask for regime in regimes)]).double()
    parts = [_read_member(member, panel, windows, groups) for member in members]
    return Reading(
        weights={kind: torch.stack([part.weights[kind] for part in parts]) for kind in parts[0].weights},
        lags=torch.stack([part.lags for part in parts]),
        history=torch.stack([part.history for part in parts]),
        distance=torch.stack([part.distance for part in parts]),
        regime_distance=torch.stack([part.regime_distance for part in parts]),
    )


def _read_member(member: TFT, panel: Panel, windows: Windows, groups: Tensor) -> Reading:
    """One member's reading, without the member axis. ``groups`` float64 ``(1 + R, n)``, 0 or 1, begin with all windows.

    Attention is made twice, first for the mean patterns and then for each window's distance from them.
    """
    context = panel.schema.context
    weights: dict[str, list[Tensor]] = {kind: [] for kind in KINDS if member.variables[kind]}
    lags: list[Tensor] = []
    patterns, count = torch.zeros((), dtype=torch.float64), groups.sum(1)
    for rows, found, attention in _batches(member, panel, windows):
        for kind, values in weights.items():
            values.append(found[kind].double())
        lags.append(lag_profile(attention, context))
        patterns = patterns + torch.einsum("gn,nhp->ghp", groups[:, rows], attention)
    patterns = patterns / count[:, None, None]
    past = patterns[0].clone()
    past[:, context:] = 0
    distance = [pattern_distance(attention, patterns[0]).mean(-1) for _, _, attention in _batches(member, panel, windows)]
    return Reading(
        weights={kind: torch.cat(values) for kind, values in weights.items()},
        lags=torch.cat(lags),
        history=lag_profile(past, context),
        distance=torch.cat(distance),
        regime_distance=pattern_distance(patterns[1:], patterns[0]).mean(-1),
    )


def _batches(member: TFT, panel: Panel, windows: Windows) -> Iterator[tuple[slice, dict[str, Tensor], Tensor]]:
    """Rows of each batch, what `TFT.interpret` says, and attention on history and horizon together, float64."""
    start = 0
    for batch in SequentialLoader(panel, windows, BATCH):
        found = member.interpret(batch)
        attention = torch.cat([found["attention"], found["horizon_attention"]], dim=-1).double()
        rows = slice(start, start + len(attention))
        start = rows.stop
        yield rows, found, attention


def _between(values: Tensor) -> np.ndarray:
    """Standard deviation between members ``(M, ...)`` -> ``(...)``, 0 for one member."""
    deviation: np.ndarray = values.std(dim=0, correction=1).numpy() if len(values) > 1 else np.zeros(values.shape[1:])
    return deviation


def _range(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The 10 and 90 % quantiles over windows ``(n, ...)``."""
    low, high = np.quantile(values.numpy(), [0.1, 0.9], axis=0)
    return low, high


def importance_table(reading: Reading, variables: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """A row a variable of each kind, the heaviest first; ``weight`` adds to one over a kind.

    ``low`` and ``high`` are the 10 and 90 % quantiles over windows, ``member_spread`` the standard deviation of the mean
    weight between members.
    """
    parts = []
    for kind, values in reading.weights.items():
        low, high = _range(values.mean(0))
        part = pd.DataFrame(
            {"kind": kind, "variable": variables[kind], "weight": values.mean((0, 1)), "low": low, "high": high}
        )
        part["member_spread"] = _between(values.mean(1))
        parts.append(part.sort_values("weight", ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)


def lag_table(reading: Reading) -> pd.DataFrame:
    """A row a lag in steps; ``attention`` adds to one and is the sum of its parts on ``history`` and ``horizon``.

    ``low``, ``high`` and ``member_spread`` are as in :func:`importance_table`.
    """
    mean, history = reading.lags.mean((0, 1)).numpy(), reading.history.mean(0).numpy()
    low, high = _range(reading.lags.mean(0))
    table = pd.DataFrame({"lag": np.arange(1, len(mean) + 1), "attention": mean, "low": low, "high": high})
    table["history"], table["horizon"] = history, np.maximum(mean - history, 0)
    return table.assign(member_spread=_between(reading.lags.mean(1)))


def regime_table(reading: Reading, variables: dict[str, tuple[str, ...]], regimes: list[Regime]) -> pd.DataFrame:
    """A row a regime after one for all windows.

    ``distance`` is the mean over its windows of their attention's distance from the mean pattern, ``pattern_distance``
    that of the regime's own mean pattern; then the mean weight of each variable, named ``<kind>.<variable>``.
    """
    distance, from_usual = reading.distance.mean(0), reading.regime_distance.mean(0)
    everything = Regime("all", "all", torch.ones(len(distance), dtype=torch.bool))
    rows: list[dict[str, Any]] = []
    for number, regime in enumerate((everything, *regimes)):
        row: dict[str, Any] = {"split": regime.split, "regime": regime.name, "windows": int(regime.mask.sum())}
        row["distance"] = float(distance[regime.mask].mean())
        row["pattern_distance"] = float(from_usual[number - 1]) if number else 0.0
        for kind, values in reading.weights.items():
            mean = values.mean(0)[regime.mask].mean(0).tolist()
            row |= {f"{kind}.{name}": weight for name, weight in zip(variables[kind], mean, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def forecast_table(
    reading: Reading, variables: dict[str, tuple[str, ...]], regimes: list[Regime], prepared: Prepared
) -> pd.DataFrame:
    """A row a forecast: its regimes, its most important variables, every weight, and its attention by lag as a list."""
    windows = prepared.fold("test", "evaluate")
    table: dict[str, Any] = {
        "unique_id": prepared.ids[windows.series.numpy()].astype(str),
        "cutoff": prepared.cutoff_time(windows),
    }
    for regime in regimes:
        table.setdefault(regime.split, np.full(len(windows), "", dtype=object))[regime.mask.numpy()] = regime.name
    weights, lags = {kind: values.mean(0) for kind, values in reading.weights.items()}, reading.lags.mean(0)
    table["distance"] = reading.distance.mean(0).numpy()
    table["strongest_lag"] = lags.argmax(dim=1).numpy() + 1
    for kind, values in weights.items():
        order = values.argsort(dim=1, descending=True, stable=True)
        names = np.array(variables[kind], dtype=object)
        for place in range(min(TOP, len(names))):
            table[f"{kind}_{place + 1}"] = names[order[:, place].numpy()]
    for kind, values in weights.items():
        table |= {f"{kind}.{name}": values[:, index].float().numpy() for index, name in enumerate(variables[kind])}
    table["attention_by_lag"] = list(lags.float().numpy())
    return pd.DataFrame(table)


def draw(tables: dict[str, pd.DataFrame], summary: dict[str, Any], path: Path) -> None:
    """A picture of three panels: variables, attention by lag, and how far each regime's attention is from the usual."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"static": "#566270", "encoder": "#0b6a7a", "decoder": "#99570c"}
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.6), layout="constrained")
    shown = tables["variable_importance"]
    shown = shown[shown.groupby("kind")["kind"].transform("size") > 1].groupby("kind", sort=False).head(8)[::-1]
    place = np.arange(len(shown))
    error = np.stack([shown[["weight", "member_spread"]].min(axis=1), shown["member_spread"]])
    axes[0].barh(place, shown["weight"], xerr=error, color=shown["kind"].map(colours), error_kw={"elinewidth": 0.8})
    axes[0].set_yticks(place, shown["variable"])
    axes[0].set(title="Weight of variables", xlabel="mean weight, with the deviation between members")
    for kind in shown["kind"].unique()[::-1]:
        axes[0].barh(0, 0, color=colours[kind], label=KINDS[kind])
    axes[0].legend(frameon=False, loc="lower right")

    lags = tables["attention_by_lag"].head(summary["context"])
    axes[1].fill_between(lags["lag"], lags["low"], lags["high"], color=colours["encoder"], alpha=0.2, linewidth=0)
    axes[1].plot(lags["lag"], lags["attention"], color=colours["encoder"])
    season = summary["season_length"]
    for lag in range(season, summary["context"] + 1, season) if 1 < season <= summary["context"] else ():
        axes[1].axvline(lag, color="#9aa5b1", linewidth=0.8, linestyle=":")
    axes[1].set(title=f"Attention by lag, dotted every {season} steps", xlabel="steps before the one that is forecast",
                ylabel="mean attention", ylim=(0, None))  # fmt: skip

    rows = tables["regimes"].iloc[:0:-1]
    names = [f"{split}: {name} ({n})" for split, name, n in zip(rows["split"], rows["regime"], rows["windows"], strict=True)]
    axes[2].barh(names, rows["distance"], color=colours["encoder"])
    axes[2].axvline(summary["mean_distance"], color="#17212b", linewidth=1, linestyle=":")
    axes[2].set(title="Distance from the usual attention, dotted: all windows", xlabel="0: the same, 1: no step in common")
    figure.suptitle(f"What TFT looks at: {summary['members']} members on {summary['windows']} windows of the test fold")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
