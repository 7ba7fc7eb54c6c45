"""The monitor: what the champion forecast since its own data ended, held against the truths that have come since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.predictive import Predictive
from models.uncertainty.ledger import Cutoff
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.files import atomic_dir, digest_of, file_md5, read_json, write_json
from tasks.live_panel import LivePanel
from tasks.monitor_figures import Figure, figures, plain, timeline
from tasks.monitor_state import MONITOR, Issued, Tracker
from tasks.params import Params
from tasks.prepare import INGESTED
from tasks.reference import LEVEL, Judged

RESULTS = Path("artifacts/monitor")
DRIFT = Path("reports/drift.html")


@dataclass(frozen=True)
class Outcome:
    """What the monitor found.

    ``judged`` has a row a step of every window judged, ``live`` the same for figures, ``summary`` all that
    ``monitor.json`` holds. ``digest`` is one of champion, data and thresholds: equal digests mean equal outcomes.
    """

    summary: Mapping[str, Any]
    found: tuple[Figure, ...]
    judged: pd.DataFrame
    live: Judged | None
    past: Judged
    digest: str

    @property
    def alarms(self) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.found if figure.alarm)


def monitor(params: Params, root: Path, bundle: Bundle, version: str, digest: str) -> Outcome:
    """Bring the live intervals of a champion up to date and judge its forecasts; writes ``artifacts/monitor``.

    ``digest`` identifies the bundle that is registered as ``version``. Running it again on the same data changes nothing.
    Raises UserError where the bundle carries no reference, does not fit the data, or a file of the state is corrupt.
    """
    reference, rules = bundle.reference, params.monitor
    if reference is None:
        raise UserError(
            f"{bundle.name} was registered without the figures that the monitor needs; `weatherglass run --force` registers a "
            "version that has them, to be promoted by `weatherglass promote`."
        )
    panel = LivePanel.read(params, root, bundle, reference)
    tracker = Tracker.open(root, f"{params.registry.name}-{version}", digest, bundle, reference, rules.adaptive)
    notes = tracker.advance(panel, bundle)
    steps = rules.window or reference.window
    window = {
        cutoff: step
        for cutoff, step in panel.cutoffs.items()
        if step >= panel.newest - steps and step + panel.horizon <= panel.newest
    }
    issued = {cutoff: record for cutoff in window if (record := tracker.issued(cutoff)) is not None}
    whole = _whole(panel, issued)
    live = None if whole is None else whole.judged(bundle)
    found = () if live is None else tuple(figures(rules, reference, bundle, live, panel))
    md5 = file_md5(root / INGESTED / "panel.parquet")
    held = torch.empty(0) if whole is None else whole.held
    thresholds = rules.model_dump(exclude={"webhook", "retrain"})
    summary = {
        "model": params.registry.name,
        "version": version,
        "champion": {"bundle": digest, "until": reference.until, "trained_until": reference.trained_until},
        "data": {"until": panel.newest_time, "md5": md5},
        "judged": {
            "windows": 0 if live is None else len(live),
            "cutoffs": [str(cutoff) for cutoff in issued],
            "steps": steps,
        },
        "figures": [figure.row() for figure in found],
        "alarms": [figure.row() | {"text": figure.sentence} for figure in found if figure.alarm],
        "timeline": [] if live is None else timeline(live, {panel.cutoffs[cutoff]: cutoff for cutoff in issued}, held),
        "live_intervals": {
            "method": rules.adaptive,
            "level": LEVEL,
            "coverage": plain(float(held.nanmean())),
            **tracker.live.ledger.counts(),
        },
        "thresholds": thresholds,
        "notes": notes,
    }
    judged = pd.DataFrame() if whole is None or live is None else _table(panel, bundle, whole, live)
    with atomic_dir(root / RESULTS) as folder:
        write_json(folder / "monitor.json", summary)
        judged.to_parquet(folder / "judged.parquet", index=False)
        pd.DataFrame([figure.row() for figure in found]).to_parquet(folder / "figures.parquet", index=False)
    tracker.prune(set(window))
    return Outcome(summary, found, judged, live, reference.test, digest_of([digest, md5, thresholds]))


@dataclass(frozen=True)
class Whole:
    """Windows whose whole horizon is known: series and cutoffs (n,), truths, live bounds (n, H) and what was forecast."""

    series: list[str]
    step: torch.Tensor
    truth: torch.Tensor
    predictive: Predictive
    flagged: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor

    @property
    def held(self) -> torch.Tensor:
        """Whether the live interval held each truth ``(n, H)``, NaN for a series without one."""
        inside = (self.truth >= self.lower) & (self.truth <= self.upper)
        return torch.where(self.lower.isnan(), torch.nan, inside.double())

    def judged(self, bundle: Bundle) -> Judged:
        """The same as figures are made of."""
        return Judged.of(bundle.calibration, self.predictive, self.truth, self.series, self.step, self.flagged)


def _whole(panel: LivePanel, issued: dict[Cutoff, Issued]) -> Whole | None:
    """Those of the windows issued at some cutoffs whose horizon is known; None where there is none."""
    names: list[str] = []
    parts: list[tuple[torch.Tensor, ...]] = []
    for cutoff, record in issued.items():
        truth = panel.truths(record.series, panel.cutoffs[cutoff], panel.newest)
        known = ~truth.isnan().any(1)
        step = torch.full((int(known.sum()),), panel.cutoffs[cutoff])
        parts.append((step, *(each[known] for each in (truth, record.values, record.flagged, record.lower, record.upper))))
        names += [name for name, kept in zip(record.series, known.tolist(), strict=True) if kept]
    if not names:
        return None
    step, truth, values, flagged, lower, upper = (torch.cat(each) for each in zip(*parts, strict=True))
    return Whole(names, step, truth, Predictive(values), flagged, lower, upper)


def _table(panel: LivePanel, bundle: Bundle, whole: Whole, live: Judged) -> pd.DataFrame:
    """A row a step: what was forecast, what came, and how far apart they are."""
    horizon, index = panel.horizon, {name: row for row, name in enumerate(panel.ids)}
    series = torch.tensor([index[name] for name in whole.series])
    first = panel.panel.offsets[series] + whole.step - torch.from_numpy(panel.first)[series] + 1
    rows = first.numpy()[:, None] + np.arange(horizon)
    low, high = bundle.calibration.interval(whole.predictive, LEVEL, whole.series)
    columns = {
        "y": whole.truth, "median": whole.predictive.median, f"lo-{LEVEL}": low, f"hi-{LEVEL}": high,
        f"lo_{LEVEL}_live": whole.lower, f"hi_{LEVEL}_live": whole.upper, "crps": live.crps, "covered": live.covered,
        "pit": live.pit,
    }  # fmt: skip
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(whole.series, dtype=object), horizon),
            "cutoff": np.repeat(panel.ds[rows[:, 0] - 1], horizon),
            "ds": panel.ds[rows].ravel(),
            "step": np.tile(np.arange(1, horizon + 1), len(whole.series)),
            **{name: value.numpy().ravel() for name, value in columns.items()},
            "is_ood": np.repeat(live.flagged.numpy(), horizon),
        }
    )


def told(root: Path, outcome: Outcome) -> set[str]:
    """What was done about the alarms of this outcome before, such as ``webhook``."""
    try:
        record = read_json(root / MONITOR / "told.json")
        return set(record["done"]) if record["digest"] == outcome.digest else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def mark_told(root: Path, outcome: Outcome, what: str) -> None:
    """Remember that ``what`` was done about the alarms of this outcome."""
    write_json(root / MONITOR / "told.json", {"digest": outcome.digest, "done": sorted({*told(root, outcome), what})})


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """Figures of all series as MLflow knows them, ``live/<metric>``, and how many alarms there are."""
    finite = {f"live/{each.metric}": each.value for each in outcome.found if each.kind == "all" and np.isfinite(each.value)}
    adaptive = outcome.summary["live_intervals"]["coverage"]
    if adaptive is not None:
        finite[f"live/coverage_{LEVEL}_live"] = adaptive
    return finite | {"live/windows": outcome.summary["judged"]["windows"], "live/alarms": float(len(outcome.alarms))}


def verdict_text(outcome: Outcome) -> str:
    """The verdict in words, one figure of all series a line, then one sentence an alarm."""
    summary = outcome.summary
    lines = [headline(outcome)]
    rows: list[tuple[str, ...]] = [("figure", "live", "champion's", "threshold", "")]
    for each in outcome.found:
        if each.kind == "all":
            numbers = (f"{value:.4f}" if np.isfinite(value) else "-" for value in (each.value, each.reference, each.threshold))
            rows.append((each.metric, *numbers, "ALARM" if each.alarm else "calm"))
    if outcome.found:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        adaptive = summary["live_intervals"]
        if adaptive["coverage"] is not None:
            lines.append(f"live intervals ({adaptive['method']}) cover {adaptive['coverage']:.1%}")
    return "\n".join([*lines, *(each.sentence for each in outcome.alarms), *summary["notes"]])


def day(time: Cutoff) -> str:
    """A time to be read: midnight is left out."""
    return str(time).removesuffix("T00:00:00")


def headline(outcome: Outcome) -> str:
    """One sentence: calm, how many alarms, or nothing to judge yet."""
    summary = outcome.summary
    name, until = f"{summary['model']} version {summary['version']}", day(summary["champion"]["until"])
    if not outcome.found:
        waiting = summary["live_intervals"]["open"]
        return (
            f"{name}: nothing to judge yet: its own data ended at {until} and the data now ends at "
            f"{day(summary['data']['until'])}, so no window since is whole; {waiting} intervals wait for their truth"
        )
    count, cutoffs = summary["judged"]["windows"], len(summary["judged"]["cutoffs"])
    state = f"{len(outcome.alarms)} alarm{'s' if len(outcome.alarms) > 1 else ''}" if outcome.alarms else "calm"
    judged = f"{count} window{'s' * (count != 1)} of {cutoffs} cutoff{'s' * (cutoffs != 1)}"
    return f"{name}: {state}, by {judged} since {until}"
