"""tune: search a family's hyperparameters, a run for the search and a nested one for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError

if TYPE_CHECKING:
    from optuna import Study

    from tasks.tune import Metric, Search

RUN_ATTRIBUTE = "mlflow_run"


def run_tune(root: Path, family: str, trials: int, metric: Metric, timeout: float | None, write: bool) -> int:
    """Search until ``trials`` trials have ended, those of an earlier call included; prints the best. Returns 0."""
    from flows.environment import opened
    from tasks.params_file import set_keys
    from tasks.tracking_store import initialise
    from tasks.tune import Search, completed, opened_study

    if trials < 1:
        raise UserError(f"--trials is {trials}; it must be 1 or more.")
    if timeout is not None and timeout <= 0:
        raise UserError(f"--timeout is {timeout:g}; it must be more than 0 seconds.")
    root, params = opened(root)
    search = Search(params, root, family, metric)
    with opened_study(search) as study:
        initialise()
        _search_and_record(search, study, trials, timeout)
        best = completed(study)[:1]
        if not best:
            print(f"tune {family}: no trial has ended yet; the same command goes on")
            return 0
        print(summary(search, study))
    if write:
        values = {name: str(value) for name, value in best[0].user_attrs["values"].items()}
        set_keys(root / "params.yaml", f"forecasters.{family}", values)
        print(f"written to {root / 'params.yaml'}")
    return 0


def best_of(root: Path, family: str, metric: Metric) -> dict[str, Any]:
    """The best trial so far: its values of params.yaml and what it reached; null where none has ended."""
    from flows.environment import opened
    from tasks.tune import Search, completed, opened_study

    root, params = opened(root)
    with opened_study(Search(params, root, family, metric)) as study:
        best = completed(study)
    told = {"values": best[0].user_attrs["values"], metric: best[0].value} if best else None
    return {"family": family, "ended": len(best), "best": told}


def _search_and_record(search: Search, study: Study, trials: int, timeout: float | None) -> None:
    """Run the search within its MLflow run, which a search that goes on finds again."""
    from tasks.experiment import commit, revision
    from tasks.tracking import log_stage, resumed_run
    from tasks.tune import METRICS, Trialled, completed, run_search

    family, block = search.family, f"forecasters.{search.family}"
    told = {"kind": "tune", "family": family, "git_commit": commit(search.root), "git_revision": revision(search.root)}
    tags = {f"weatherglass.{key}": value for key, value in told.items() if value}
    known = study.user_attrs.get(RUN_ATTRIBUTE)
    with resumed_run(search.root, search.params.registry.experiment, f"tune {family}", tags, known) as run:
        study.set_user_attr(RUN_ATTRIBUTE, run.run_id)

        def record(trial: Trialled) -> None:
            log_stage(
                run.run_id,
                f"trial {trial.number:03d}",
                params=_prefixed(f"{block}.", trial.values),
                metrics=_prefixed(f"{family}/", trial.metrics),
                histories={"early_stopping_loss": trial.losses},
                tags={"weatherglass.trial": trial.state} | ({"weatherglass.reason": trial.reason} if trial.reason else {}),
            )
            best = completed(study)[:1]
            if best:
                run.log(metrics={f"{family}/{METRICS[search.metric]}": best[0].value or 0.0})

        run_search(search, study, trials, timeout, record)
        best = completed(study)[:1]
        if best:
            run.log(tags={f"weatherglass.best.{name}": str(value) for name, value in best[0].user_attrs["values"].items()})


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def summary(search: Search, study: Study) -> str:
    """How the search went, and the best values as lines of params.yaml."""
    from tasks.tune import METRICS, completed, ended

    best, tried = completed(study)[0], ended(study)
    failed = sum("reason" in trial.user_attrs for trial in tried)
    pruned = len(tried) - len(completed(study)) - failed
    before = next((trial.value for trial in completed(study) if trial.number == 0), None)
    compared = "" if before is None or best.number == 0 else f" (params.yaml as it was at the start: {before:.5f})"
    lines = [
        f"tune {search.family}: {len(tried)} trials, {pruned} pruned, {failed} failed",
        f"best {METRICS[search.metric]} {best.value:.5f} in trial {best.number}{compared}:",
        "",
        "forecasters:",
        f"  {search.family}:",
        *(f"    {name}: {value}" for name, value in best.user_attrs["values"].items()),
    ]
    return "\n".join(lines)
