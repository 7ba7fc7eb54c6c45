"""Windows from a long table: building the panel and serving batches, beside pytorch-forecasting's TimeSeriesDataSet.

``python -m benchmarks.loader --json loader.json`` measures both on the same windows of the same synthetic panel, in
one process and one thread, and first makes sure that both serve the same values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import alternating, at_least, machine, one_thread, parser, report, table, versions
from models.panel import Panel, WindowLoader, Windows
from tasks.encoding import Encoding
from tasks.ingest import validate_panel
from tasks.params import Data, Features, Params
from tasks.settings import Settings, derive_settings

if TYPE_CHECKING:
    from pytorch_forecasting import TimeSeriesDataSet

STEPS, CONTEXT, HORIZON, BATCH_SIZE = 1000, 168, 48, 128
KNOWN, PAST = ("known_1", "known_2", "known_3"), ("past_1",)
COMPARED = 64  # windows whose values are compared, the first and the last among them
PACKAGES = ("torch", "numpy", "pandas", "pytorch-forecasting", "numba")
NOTES = (
    "Panel: hourly integer time, 3 known reals, 1 past-only real, the series id as static category; synthetic.",
    f"Windows: every cutoff with a context of {CONTEXT} and a horizon of {HORIZON}; batches of {BATCH_SIZE} at random; "
    "one process, no workers.",
    "Both sides standardise the covariates by their moments over the panel.",
    "windows_per_s_ours normalises the target by the mean and standard deviation of each window's history.",
    "windows_per_s_peer normalises the target per series, once, when the dataset is built (GroupNormalizer), which is "
    "the peer's faster setting; windows_per_s_peer_per_window is its EncoderNormalizer, the same work as ours and what "
    "target_normalizer='auto' chooses for a context above 20.",
    "build_s_ours is from a long table sorted by series and time, as ingest leaves it, to encoded panel and window "
    "index; the peer's build has its own light checks (finite values, regular steps) in it.",
    "check_s_ours is ingest's validation of the table, paid once a data version and not part of build_s_ours; "
    "build_ratio_with_check counts it in.",
    "The peer's numba function was compiled before its build was timed.",
)


@dataclass(frozen=True)
class Built:
    """Our side, ready to serve: an encoded panel and its windows."""

    panel: Panel
    windows: Windows


def synthetic_frame(rows: int, seed: int = 1) -> pd.DataFrame:
    """Return a long table of ``rows // STEPS`` series of ``STEPS`` hours: a daily wave, its covariates and noise."""
    generator, series = np.random.default_rng(seed), rows // STEPS
    step = np.tile(np.arange(STEPS), series)
    level = np.repeat(generator.uniform(10, 100, series), STEPS)
    covariates = {name: generator.normal(size=len(step)) for name in (*KNOWN, *PAST)}
    wave = np.sin(2 * np.pi * step / 24)
    y = level * (1 + 0.3 * wave + 0.1 * covariates[KNOWN[0]] + 0.1 * generator.normal(size=len(step)))
    names = np.repeat([f"series_{index:06d}" for index in range(series)], STEPS)
    return pd.DataFrame({"unique_id": names, "ds": step, "y": y, **covariates})


def parameters() -> Params:
    """Return the parameters that describe the synthetic table: whole-number time, no lags, no calendar."""
    return Params(
        data=Data(frequency=1, horizon=HORIZON, known_future=KNOWN, past_only=PAST),
        features=Features(context=CONTEXT, season_length=24, lags=(), calendar=False),
    )


def build_ours(frame: pd.DataFrame, params: Params, settings: Settings) -> Built:
    """Encode a sorted long table and index all windows whose history fills the context."""
    encoding = Encoding.fit(frame, params, settings, train=frame["y"].notna().to_numpy())
    panel = encoding.panel(frame)
    last = panel.observed.numpy() - HORIZON
    return Built(panel, panel.window_grid(np.full(panel.n_series, CONTEXT), last, stride=1, minimum=CONTEXT))


def build_peer(frame: pd.DataFrame, per_window: bool) -> TimeSeriesDataSet:
    """Build pytorch-forecasting's dataset of the same windows, the target normalised per window or per series."""
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data import EncoderNormalizer, GroupNormalizer

    return TimeSeriesDataSet(
        frame,
        time_idx="ds",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=CONTEXT,
        max_prediction_length=HORIZON,
        static_categoricals=["unique_id"],
        time_varying_known_reals=list(KNOWN),
        time_varying_unknown_reals=["y", *PAST],
        target_normalizer=EncoderNormalizer() if per_window else GroupNormalizer(groups=["unique_id"]),
    )


def compare(ours: Built, peer: TimeSeriesDataSet, seed: int = 1) -> int:
    """Assert that both sides serve the same windows and return how many were compared.

    ``peer`` normalises per window. Times, series and raw targets are equal to the bit, covariates and the target's
    location and scale to float32 accuracy; the peer's standard deviation divides by T - 1, ours by T.

    Raises
    ------
    AssertionError
        Where a value differs.
    """
    assert len(ours.windows) == len(peer), f"{len(ours.windows)} windows here, {len(peer)} there"
    chosen = torch.from_numpy(np.random.default_rng(seed).integers(len(peer), size=COMPARED))
    chosen[0], chosen[-1] = 0, len(peer) - 1
    mine = ours.panel.gather(ours.windows[chosen])
    theirs, _ = peer._collate_fn([peer[int(index)] for index in chosen])
    for key in ("encoder_target", "decoder_target", "decoder_time_idx", "encoder_lengths", "decoder_lengths", "groups"):
        assert torch.equal(mine[key], theirs[key]), f"{key} differs"
    reals = ours.panel.schema.reals
    for part, names in (("encoder_cont", (*KNOWN, *PAST)), ("decoder_cont", KNOWN)):
        left = mine[part][..., [reals.index(name) for name in names]]
        right = theirs[part][..., [peer.reals.index(name) for name in names]]
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine[part.replace("cont", "cat")], theirs[part.replace("cont", "cat")] + 1)
    scale = theirs["target_scale"] * torch.tensor([1.0, math.sqrt((CONTEXT - 1) / CONTEXT)])
    torch.testing.assert_close(mine["target_scale"], scale, rtol=1e-4, atol=1e-5)
    return len(chosen)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the loader's batches, epoch after epoch."""
    while True:
        yield from loader


def _throughput(loader: Iterable[Any], seconds: float) -> Callable[[], float]:
    """Return a measure of windows served a second; the first batch, and with it the first shuffle, is not counted."""
    batches = _endless(loader)
    next(batches)

    def measure() -> float:
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            next(batches)
            count += BATCH_SIZE
        return count / elapsed

    return measure


def _seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return a measure of the seconds that ``work`` takes."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measure


def measure(rows: int, rounds: int = 3, seconds: float = 2.0) -> dict[str, Any]:
    """Measure both sides on a panel of ``rows`` rows (whole series of ``STEPS``): medians of ``rounds`` each.

    Returns
    -------
    Seconds to build (``build_s_*``) and windows served a second (``windows_per_s_*``) of both sides with their ratios
    (above 1: ours is faster), and the size, versions, machine and notes that belong to them.
    """
    one_thread()
    frame, params = synthetic_frame(rows), parameters()
    settings = derive_settings(params, [STEPS] * (rows // STEPS))
    build_peer(frame[:STEPS], per_window=False)
    build = alternating(
        {
            "ours": _seconds(lambda: build_ours(frame, params, settings)),
            "peer": _seconds(lambda: build_peer(frame, per_window=False)),
            "check": _seconds(lambda: validate_panel(frame, params)),
        },
        rounds,
    )
    ours = build_ours(frame, params, settings)
    per_series, per_window = build_peer(frame, per_window=False), build_peer(frame, per_window=True)
    compared = compare(ours, per_window)
    own = WindowLoader(ours.panel, ours.windows, BATCH_SIZE, max(1, len(ours.windows) // BATCH_SIZE), seed=1)
    options = dict(train=True, batch_size=BATCH_SIZE, num_workers=0)
    served = alternating(
        {
            "ours": _throughput(own, seconds),
            "peer": _throughput(per_series.to_dataloader(**options), seconds),
            "peer_per_window": _throughput(per_window.to_dataloader(**options), seconds),
        },
        rounds,
    )
    return {
        **{f"windows_per_s_{name}": value for name, value in served.items()},
        "windows_per_s_ratio": served["ours"] / served["peer"],
        "windows_per_s_ratio_per_window": served["ours"] / served["peer_per_window"],
        **{f"build_s_{name}": build[name] for name in ("ours", "peer")},
        "build_ratio": build["peer"] / build["ours"],
        "check_s_ours": build["check"],
        "build_ratio_with_check": build["peer"] / (build["ours"] + build["check"]),
        "rows": len(frame),
        "series": rows // STEPS,
        "windows": len(ours.windows),
        "windows_compared": compared,
        "rounds": rounds,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "notes": list(NOTES),
    }


def _summary(result: dict[str, Any]) -> str:
    lines = [
        ("build, s", "build_s_ours", "build_s_peer", "build_ratio", "{:.3f}"),
        ("windows/s", "windows_per_s_ours", "windows_per_s_peer", "windows_per_s_ratio", "{:,.0f}"),
        (
            "windows/s, peer per window",
            "windows_per_s_ours",
            "windows_per_s_peer_per_window",
            "windows_per_s_ratio_per_window",
            "{:,.0f}",
        ),
    ]
    rows = [
        (name, form.format(result[ours]), form.format(result[peer]), f"{result[ratio]:.1f}")
        for name, ours, peer, ratio, form in lines
    ]
    head = f"{result['rows']:,} rows, {result['windows']:,} windows, {result['windows_compared']} compared and equal"
    return f"{head}\n{table(('', 'weatherglass', 'pytorch-forecasting', 'ratio'), rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser("Build and serve windows: weatherglass beside pytorch-forecasting.")
    options.add_argument("--rows", type=at_least(STEPS), default=1_000_000, help=f"rows, in whole series of {STEPS}")
    options.add_argument("--rounds", type=at_least(1), default=3, help="times that each side is measured")
    options.add_argument("--seconds", type=at_least(0.01, float), default=2.0, help="length of a serving measure")
    given = options.parse_args(arguments)
    result = measure(given.rows, given.rounds, given.seconds)
    report(result, _summary(result), given.json)


if __name__ == "__main__":
    main()
