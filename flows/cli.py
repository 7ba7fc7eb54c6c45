"""The command line. Heavy imports live inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from tasks.errors import UserError

app = typer.Typer(
    name="weatherglass",
    help="Probabilistic forecasts that say how far to trust them.\n\n"
    "Exit codes: 0 done, 1 failure, 2 a mistake in params.yaml, the data or the command (told in one sentence); "
    "retrain ends with 3 where the champion stays, monitor with 4 where there is an alarm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout, all else on stderr.")]
Root = Annotated[Path, typer.Option("--root", help="The project's folder.", show_default="the current folder")]


@app.command()
def run(
    targets: Annotated[Optional[list[str]], typer.Argument(help="Stages, such as train@tcn; all of them by default.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option("--force", help="Run stages that are up to date as well.")] = False,
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Run what is stale: ingest, prepare, baselines, train, ensemble, calibrate, evaluate, project, register."""
    from flows.outcome import aside, pipeline_outcome, tell
    from flows.pipeline import run_pipeline

    with aside(as_json):
        code = run_pipeline(root, targets or (), force)
    if as_json:
        tell(pipeline_outcome(root, code))
    raise typer.Exit(code)


@app.command()
def forecast(
    output: Annotated[Optional[Path], typer.Option(help="Parquet or CSV file for the forecast table.")] = None,  # noqa: UP045
    data: Annotated[Optional[Path], typer.Option(help="CSV or Parquet with new history, in place of the panel.")] = None,  # noqa: UP045
    cutoff: Annotated[Optional[str], typer.Option(help="Forecast as if this were the last known time.")] = None,  # noqa: UP045
    alias: Annotated[str, typer.Option(help="Which registered model answers.")] = "champion",
    sampler: Annotated[
        Literal["ancestral", "speculative", "gumbel"],
        typer.Option(help="How paths of bins are drawn; speculative wants drafts, see `weatherglass distill`."),
    ] = "ancestral",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the steps of --sampler where a C++ compiler is there; takes a minute.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON records on stdout.")] = False,
    root: Root = Path("."),
) -> None:
    """Forecast every series with the registered champion, with intervals, a joint band and the gate's verdict.

    Without --output and --json it prints the first rows.
    """
    from flows.forecast import run_forecast

    raise typer.Exit(run_forecast(root, output, data, cutoff, alias, as_json, sampler, compiled))


@app.command()
def distill(
    kind: Annotated[
        Literal["distilled", "smaller", "early_exit"],
        typer.Option(help="A small network taught by its target or by the data, or the target's own first layers."),
    ] = "distilled",
    alias: Annotated[str, typer.Option(help="Which registered model the drafts are for.")] = "champion",
    steps: Annotated[int, typer.Option(help="Training steps of a draft.", min=1)] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    root: Root = Path("."),
) -> None:
    """Train drafts for the champion's members that sample paths of bins, for `weatherglass forecast --sampler speculative`."""
    from flows.distill import run_distill

    raise typer.Exit(run_distill(root, alias, kind, steps, as_json))


@app.command()
def ingest(
    until: Annotated[Optional[str], typer.Option(help="Last date of the target to use; written to params.yaml.")] = None,  # noqa: UP045
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Read the data again, and only that; with --until, as if that date were today."""
    from flows.outcome import aside, tell
    from flows.pipeline import INGESTED, run_ingest
    from tasks.files import read_json

    with aside(as_json):
        code = run_ingest(root, until)
    if as_json:
        tell({"exit": code} | (read_json(root / INGESTED / "meta.json") if code == 0 else {}))
    raise typer.Exit(code)


@app.command()
def retrain(
    force: Annotated[bool, typer.Option("--force", help="Run stages that are up to date as well.")] = False,
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Run what is stale, then let the new version meet the champion on fresh cutoffs: promote it or keep the champion.

    Exit codes: 0 promoted, 3 champion kept, 2 a mistake, 1 failure.
    """
    from flows.outcome import aside, retrain_outcome, tell
    from flows.retrain import run_retrain

    with aside(as_json):
        code = run_retrain(root, force)
    if as_json:
        tell(retrain_outcome(root, code))
    raise typer.Exit(code)


@app.command()
def monitor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
    root: Root = Path("."),
) -> None:
    """Hold what the champion has forecast since its own data ended against the truths that have come since.

    Exit codes: 0 calm or nothing to judge yet, 4 alarm, 2 a mistake, 1 failure.
    """
    from flows.monitor import run_monitor

    raise typer.Exit(run_monitor(root, as_json))


@app.command()
def promote(
    version: Annotated[Optional[str], typer.Option(help="The version to promote; the challenger by default.")] = None,  # noqa: UP045
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "asked for",
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Make the challenger the champion that forecasts; the old one stays as @previous_champion."""
    from flows.promotion import run_promote

    raise typer.Exit(run_promote(root, version, reason, as_json))


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "asked for",
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Make @previous_champion the champion again."""
    from flows.promotion import run_rollback

    raise typer.Exit(run_rollback(root, reason, as_json))


@app.command()
def history(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    root: Root = Path("."),
) -> None:
    """List the registered versions, their aliases and metrics, and what was decided of them."""
    from flows.promotion import run_history

    raise typer.Exit(run_history(root, as_json))


@app.command("serve-schedule")
def serve_schedule(
    cron: Annotated[Optional[str], typer.Option(help="Minute hour day month weekday, in place of prefect.yaml's.")] = None,  # noqa: UP045
    timezone: Annotated[Optional[str], typer.Option(help="IANA name, such as America/Chicago.")] = None,  # noqa: UP045
    root: Root = Path("."),
) -> None:
    """Stay, and retrain at the times of prefect.yaml, one run at a time; Ctrl-C ends it."""
    from flows.schedule import serve_schedule as serve

    raise typer.Exit(serve(root, cron, timezone))


@app.command()
def serve(
    host: Annotated[Optional[str], typer.Option(help="Address to listen at.", show_default="serving.host, 127.0.0.1")] = None,  # noqa: UP045
    port: Annotated[
        int | None, typer.Option(help="Port; 0 for one that is free.", min=0, max=65535, show_default="serving.port, 8080")
    ] = None,
    alias: Annotated[str, typer.Option(help="Which registered model answers; the service follows it.")] = "champion",
    workers: Annotated[
        int | None, typer.Option(help="Processes that forecast.", min=1, show_default="serving.workers, a core each, at most 2")
    ] = None,
    root: Root = Path("."),
) -> None:
    """Answer forecasts over HTTP with the champion, and with the next one as soon as the alias moves; Ctrl-C ends it."""
    from flows.serve import run_serve

    raise typer.Exit(run_serve(root, host, port, alias, workers))


@app.command()
def tune(
    family: Annotated[str, typer.Argument(help="The family, such as tcn.")],
    trials: Annotated[int, typer.Option(help="Trials in all, those of an earlier call included.")] = 20,
    metric: Annotated[Literal["wql", "loss"], typer.Option(help="What is made small on the early-stopping fold.")] = "wql",
    timeout: Annotated[Optional[float], typer.Option(help="Seconds after which to stop; the same command goes on.")] = None,  # noqa: UP045
    write: Annotated[bool, typer.Option("--write", help="Write the best values to params.yaml.")] = False,
    as_json: AsJson = False,
    root: Root = Path("."),
) -> None:
    """Search a family's hyperparameters with Optuna (the extra 'tune') and print the best as lines of params.yaml."""
    from flows.outcome import aside, tell
    from flows.tune import best_of, run_tune

    with aside(as_json):
        code = run_tune(root, family, trials, metric, timeout, write)
    if as_json:
        tell({"exit": code} | best_of(root, family, metric))
    raise typer.Exit(code)


@app.command()
def project(
    embeddings: Annotated[Optional[Path], typer.Option(help="A matrix of your own, a row a point, as .npy.")] = None,  # noqa: UP045
    labels: Annotated[Optional[Path], typer.Option(help="CSV whose columns colour the points, a row for each.")] = None,  # noqa: UP045
    new: Annotated[Optional[Path], typer.Option(help="A second matrix, to be placed on the map of the first.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option(help="Folder for the page, coordinates and guards.")] = Path("projection"),
    neighbors: Annotated[
        list[int] | None, typer.Option(help="Neighbourhood size, once for each.", show_default="15 and 50")
    ] = None,
    method: Annotated[Optional[list[str]], typer.Option(help="pca, tsne or umap, once for each.", show_default="all")] = None,  # noqa: UP045
    metric: Annotated[
        Literal["auto", "euclidean", "cosine"],
        typer.Option(help="How rows are compared; auto: cosine where all have length 1."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same maps.", min=0)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the guards as JSON on stdout.")] = False,
    root: Root = Path("."),
) -> None:
    """Draw maps by PCA, t-SNE and UMAP, and say how far to believe them; without --embeddings, of the project's windows."""
    from flows.project import run_matrix, run_project

    if embeddings is None:
        raise typer.Exit(run_project(root, as_json))
    from tasks.projection.matrix import MatrixMaps

    sizes, methods = neighbors or [15, 50], method or ["pca", "tsne", "umap"]
    wanted = MatrixMaps(embeddings, labels, new, output, sizes, methods, metric, seed)
    raise typer.Exit(run_matrix(wanted, as_json))


@app.command()
def report(as_json: AsJson = False, root: Root = Path(".")) -> None:
    """Print where the report is, and the leaderboard of the last run."""
    from flows.outcome import pipeline_outcome, tell
    from tasks.summary import METRICS, REPORT, leaderboard_rows, load_metrics
    from tasks.terminal import show_table

    if not (root / METRICS).exists():
        raise UserError(f"{METRICS} is not there; run `weatherglass run` first.")
    if as_json:
        tell(pipeline_outcome(root, 0))
        return
    show_table(leaderboard_rows(load_metrics(root)), "Models on the test fold, by WQL", strong=("ensemble",))
    print(f"\n{(root / REPORT).resolve()}")


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect UI.")] = 4200,
    root: Root = Path("."),
) -> None:
    """Serve the MLflow and Prefect UIs on 127.0.0.1 until interrupted."""
    from flows.ui import serve_uis

    raise typer.Exit(serve_uis(root.resolve(), mlflow_port, prefect_port))


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2; so is what is unavailable, with code 1."""
    try:
        app()
    except UserError as error:
        print(f"weatherglass: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
