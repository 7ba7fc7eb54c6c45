"""The forecast service beside `mlflow models serve` with the same bundle and a NeuralForecast model behind FastAPI.

``python -m benchmarks.serving --json sv.json`` needs a project with a champion (``--root``, after `make run`), which it only
reads, and the peers' environment (`make peers`). Every service is a process of its own with one compute thread, ours with a
worker for each core besides, at most two; they take turns. At the end ``--load`` seconds of mixed load, with bad requests, two
switches of the champion and a stop, in which every answer is compared with the right one.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import serving_stand
from benchmarks.common import at_least, machine, one_thread, parser, report, table, versions
from benchmarks.serving_bodies import Ask, Windows, distinct
from benchmarks.serving_clients import Connection, Measured, drive
from benchmarks.serving_load import LOAD_GOALS, mixed_load
from benchmarks.serving_stand import Service, Stand
from tasks.bundle import Bundle
from tasks.errors import UserError
from tasks.forecast import ingested_panel
from tasks.future import with_future_rows

SIZES, CLIENTS = (1, 100), (4, 16, 32)
GOALS = {"requests_ratio": 3.0, "p99_over_p50": 5.0}
MLFLOW_FORM = "parquet"
WINDOWS, PEER_STEPS = 400, 20
LEAST_GAIN = 1.03  # where more clients bring no more than this over fewer, the fewer are called saturation
NOTES = (
    "Latencies are those that a client sees, in milliseconds; requests/s and percentiles are medians over the rounds, each of "
    "some seconds of requests, all different, prebuilt, by clients in one process that keep their connections.",
    "A series' history is the shortest that the champion reads whole (context and longest lag), with its covariates and the "
    "known future of the horizon. Series are windows of the panel under new names, so all are new to every model.",
    "weatherglass_ids asks for the same number of series of the panel by name, at most all there are; it enters no ratio.",
    "weatherglass: `weatherglass serve` with its default of workers, one for each core, at most two, a thread each.",
    "mlflow: `mlflow models serve --env-manager local --workers 1`, the same bundle registered by the same code, asked with "
    "Parquet, which it reads faster than JSON (CSV it refuses for a table with dates); its threads read several at once.",
    "neuralforecast: NHITS trained for a few steps on the same panel with the same covariates, saved and loaded, behind a "
    "FastAPI app whose one route calls nf.predict(df, futr_df); the same rows as JSON (columns and data).",
    "Saturation: 4, 16 or 32 clients, the number from which more bring no more requests a second, each service for itself.",
    "Memory of the mixed load is that of all the service's processes, a page that several share counted once (PSS).",
    "client_share is the processor time of all clients over the clock's, service_cores that of the service.",
)


@dataclass
class Contest:
    """Services side by side; ``rates`` guesses how many requests a second a case will bring, from what it brought last."""

    services: Mapping[str, Service]
    windows: Windows
    ids: Sequence[str]
    seconds: float
    rates: dict[tuple[str, int], float] = field(default_factory=dict)
    _seeds: Iterator[int] = field(default_factory=count)

    def asks(self, name: str, series: int, number: int) -> list[Ask]:
        service = self.services[name]
        if name == "weatherglass_ids":
            return [_by_name(self.ids, series, seed) for seed in islice(self._seeds, number)]
        return list(islice(distinct(self.windows, service.form, service.path, series, next(self._seeds)), number))

    def measure(self, name: str, series: int, clients: int, seconds: float) -> Measured:
        """One measure of about ``seconds``, of at least a request a client and three in all."""
        number = max(clients, 3, round(self.rates.get((name, series), 1.0) * seconds))
        measured = drive(self.services[name], self.asks(name, series, number), clients)
        self.rates[name, series] = measured.rate
        return measured

    def saturation(self, name: str, series: int, tried: Sequence[int]) -> int:
        """The number of clients from which more of them bring no more requests a second."""
        best, most = tried[0], 0.0
        for clients in tried:
            rate = self.measure(name, series, clients, self.seconds / 2).rate
            if rate < most * LEAST_GAIN:
                break
            best, most = clients, rate
        return best


def _by_name(ids: Sequence[str], series: int, seed: int) -> Ask:
    """Ask for series of the panel; which, and in what order, differs from request to request."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:series]
    return Ask("/v1/forecast", orjson.dumps({"ids": [ids[place] for place in chosen]}))


def agreement(ours: Service, mlflow: Service, windows: Windows, series: int) -> float:
    """The largest difference between our medians and those of MLflow for the same histories, over the largest of them."""
    chosen, names = list(range(min(series, len(windows)))), [f"same{place:08d}" for place in range(series)]
    answers = []
    for service in (ours, mlflow):
        ask = windows.ask(service.form, service.path, chosen, names[: len(chosen)])
        status, body, _ = Connection(service.port).ask(ask)
        if status != 200:
            raise RuntimeError(f"{service.path} answered {status}: {body[:300].decode(errors='replace')}")
        answers.append(orjson.loads(body))
    own = np.array([each["median"] for each in answers[0]["forecasts"]]).ravel()
    theirs = np.array([row["median"] for row in answers[1]["predictions"]])
    return float(np.abs(own - theirs).max() / np.abs(own).max())


def compare(contest: Contest, rounds: int, sizes: Sequence[int], tried: Sequence[int]) -> dict[str, Any]:
    """Requests/s and latencies of every service, size and number of clients."""
    cases: dict[str, dict[str, tuple[int, int]]] = {}
    for series in sizes:
        for name in contest.services:
            contest.measure(name, series, 1, min(1.0, contest.seconds))
            cases.setdefault(f"{series}_one_client", {})[name] = (series, 1)
            cases.setdefault(f"{series}_saturated", {})[name] = (series, contest.saturation(name, series, tried))
    taken: dict[str, list[Measured]] = {}
    for _ in range(rounds):
        for case, contestants in cases.items():
            for name, (series, clients) in contestants.items():
                taken.setdefault(f"{name}_{case}", []).append(contest.measure(name, series, clients, contest.seconds))
    result: dict[str, Any] = {}
    for key, measured in taken.items():
        result[f"requests_per_s_{key}"] = statistics.median(each.rate for each in measured)
        for percent in (50, 99):
            result[f"p{percent}_ms_{key}"] = statistics.median(each.milliseconds(percent) for each in measured)
        result[f"client_share_{key}"] = statistics.median(each.client_share for each in measured)
        result[f"service_cores_{key}"] = statistics.median(each.service_cores for each in measured)
        result[f"requests_{key}"] = sum(len(each.latencies) for each in measured)
    at = {f"{name}_{case}": clients for case, found in cases.items() for name, (_, clients) in found.items()}
    return {**ratios(result, list(cases)), **result, "clients": at}


def ratios(result: Mapping[str, Any], cases: Sequence[str]) -> dict[str, float]:
    """Our requests/s over each peer's, and our p99 over our p50, for every case."""
    found = {}
    for case in cases:
        for peer in ("mlflow", "neuralforecast"):
            theirs = result.get(f"requests_per_s_{peer}_{case}")
            if theirs:
                found[f"requests_ratio_{case}_{peer}"] = result[f"requests_per_s_weatherglass_{case}"] / theirs
        found[f"p99_over_p50_{case}"] = result[f"p99_ms_weatherglass_{case}"] / result[f"p50_ms_weatherglass_{case}"]
    return found


def met(result: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each goal is met: the ratios at saturation, the spread everywhere, and what the load has found."""
    goals = {
        name: value >= GOALS["requests_ratio"]
        for name, value in result.items()
        if name.startswith("requests_ratio") and "saturated" in name
    }
    goals |= {name: value < GOALS["p99_over_p50"] for name, value in result.items() if name.startswith("p99_over_p50")}
    return goals | {f"load_{name}": result["load"][name] <= most for name, most in LOAD_GOALS.items() if "load" in result}


def summary(result: Mapping[str, Any]) -> str:
    rows = []
    for key in (name[15:] for name in result if name.startswith("requests_per_s_")):
        values = [result[f"{kind}_{key}"] for kind in ("p50_ms", "p99_ms", "requests_per_s")]
        rows.append((key, str(result["clients"][key]), *(f"{value:,.1f}" for value in values)))
    if "load" in result:
        load = result["load"]
        values = [load[name] for name in ("p50_ms_series", "p99_ms_series", "requests_per_s")]
        rows.append(("weatherglass, mixed load", str(load["clients"]), *(f"{value:,.1f}" for value in values)))
    text = table(("service, series a request", "clients", "p50 ms", "p99 ms", "requests/s"), rows)
    goals = []
    for name, reached in result["goals_met"].items():
        value = result["load"][name[5:]] if name.startswith("load_") else result[name]
        asked = (
            LOAD_GOALS[name[5:]] if name.startswith("load_") else next(GOALS[goal] for goal in GOALS if name.startswith(goal))
        )
        goals.append((name, f"{value:.3g}", f"{asked:g}", "met" if reached else "missed"))
    return f"{text}\n\n{table(('goal', 'found', 'asked', ''), goals)}"


def main(arguments: list[str] | None = None) -> None:
    options = parser("The service's speed beside MLflow's and NeuralForecast's, and a minute of mixed load.")
    options.add_argument("--root", type=Path, default=Path(), help="project with a champion, after `make run`")
    options.add_argument("--rounds", type=at_least(1), default=3, help="times that each case is measured")
    options.add_argument("--seconds", type=at_least(0.01, float), default=4.0, help="length of a measure, about")
    options.add_argument("--load", type=at_least(0, float), default=60.0, help="seconds of mixed load; 0 for none")
    options.add_argument("--load-clients", type=at_least(1), default=16, help="clients of the mixed load")
    options.add_argument("--load-only", action="store_true", help="the mixed load alone")
    options.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="an interpreter that has the peers")
    options.add_argument("--no-peers", action="store_true", help="MLflow alone, which we carry ourselves")
    given = options.parse_args(arguments)
    if not given.no_peers and not given.load_only and not given.peers.exists():
        raise UserError(f"--peers is {given.peers}, which is not there; run `make peers` first or give --no-peers.")
    one_thread()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it ends its services when it is ended
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        stand = Stand.lay_out(given.root, Path(folder) / "project")
        bundle = stand.bundle()
        frame = with_future_rows(ingested_panel(stand.root), bundle.encoding)
        windows = Windows.draw(frame, bundle.encoding, WINDOWS, seed=1)
        if not given.load_only:
            result |= contest_of(given, stand, bundle, windows)
        if given.load > 0:
            result["load"] = mixed_load(stand, bundle, frame, given.load, given.load_clients)
    result |= {
        "goals": GOALS | LOAD_GOALS, "goals_met": met(result), "rounds": given.rounds, "seconds": given.seconds,
        "history_steps": windows.steps, "horizon": bundle.encoding.schema.horizon, "members": len(bundle.members),
        "families": sorted(set(bundle.families)), "series_of_the_panel": frame["unique_id"].nunique(),
        "machine": machine(), "versions": versions(["torch", "mlflow", "fastapi", "uvicorn"]), "notes": list(NOTES),
    }  # fmt: skip
    report(result, summary(result), given.json)


def contest_of(given: Any, stand: Stand, bundle: Bundle, windows: Windows) -> dict[str, Any]:
    """Start the services and compare them."""
    with ExitStack() as stack:
        ours = stack.enter_context(serving_stand.ours(stand))
        services = {"weatherglass": ours, "mlflow": stack.enter_context(serving_stand.mlflow(stand, MLFLOW_FORM))}
        if not given.no_peers:
            peer = serving_stand.neuralforecast(stand, given.peers, bundle, PEER_STEPS)
            services["neuralforecast"] = stack.enter_context(peer)
        services["weatherglass_ids"] = ours
        difference = agreement(ours, services["mlflow"], windows, 20)
        contest = Contest(services, windows, windows.frame["unique_id"].unique().tolist(), given.seconds)
        return {**compare(contest, given.rounds, SIZES, CLIENTS), "difference_to_mlflow": difference}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"serving: {error}", file=sys.stderr)
        raise SystemExit(2) from None
