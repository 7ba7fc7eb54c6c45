"""One family's search by Optuna: trials in processes of their own, pruned by epoch, and a study that outlives a kill.

A trial is a member as the pipeline trains it, from the first seed, on the train and early-stopping folds alone. What a kill
leaves of a trial goes on from its checkpoint when the same command runs again.
"""

from __future__ import annotations

import queue
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ValidationError

from tasks.errors import UserError
from tasks.files import digest_of, held, refusing
from tasks.params import Params
from tasks.prepare import PREPARED
from tasks.presets import passes_of
from tasks.search_space import Space, space_of, with_values
from tasks.train import data_and_code, member_processes

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TUNED = Path(".weatherglass/tune")
STARTUP_TRIALS = 5  # whole trials before any is pruned
MOST_FAILURES = 3  # trials that may fail before one has ended well
METRICS = {"wql": "early_stopping_wql", "loss": "early_stopping_loss"}
Metric = Literal["wql", "loss"]
State = Literal["complete", "pruned", "failed"]
Parameters = dict[str, Any]


class Trialled(NamedTuple):
    """A trial that has ended: its values, losses by epoch and, where it ran to its end, its metrics; why it failed, else ''."""

    number: int
    state: State
    values: Parameters
    losses: list[float]
    metrics: dict[str, float]
    reason: str


@dataclass(frozen=True)
class Search:
    """What is searched; ``metric`` of the early-stopping fold is made as small as can be."""

    params: Params
    root: Path
    family: str
    metric: Metric = "wql"

    @cached_property
    def space(self) -> Space:
        """The family's search space; raises UserError for a family that there is not."""
        return space_of(self.family, getattr(self.params.forecasters, self.family, None))

    @property
    def config(self) -> Any:
        return getattr(self.params.forecasters, self.family)

    @cached_property
    def name(self) -> str:
        """The family and a digest of all that decides a trial's outcome: data, code, search space, metric and other params.

        Raises UserError where there is no prepared data.
        """
        space = {name: repr(choice) for name, choice in self.space.items()}
        if not (self.root / PREPARED / "meta.json").exists():
            raise UserError(f"{PREPARED} is not there to tune on; run `weatherglass run prepare` first.")
        fixed = {key: value for key, value in self.config.model_dump().items() if key not in space}
        train = self.params.train.model_dump(exclude={"workers", "members"})
        known = [space, fixed, train, self.metric, passes_of(self.params, self.family), data_and_code(self.root)]
        return f"{self.family}-{digest_of(known)}"

    @property
    def folder(self) -> Path:
        return self.root / TUNED / self.name

    def trial_params(self, values: Parameters) -> Params:
        """The params of a trial; raises pydantic.ValidationError where values do not go together."""
        config = with_values(self.config, values)
        forecasters = self.params.forecasters.model_copy(update={self.family: config})
        return self.params.model_copy(update={"forecasters": forecasters})


@contextmanager
def opened_study(search: Search) -> Iterator[Study]:
    """The search's study in ``.weatherglass/tune/<family>-<digest>.db``, which no other process uses meanwhile.

    Its first trial is params.yaml as it stands. Trials that a killed process left running are set up to go on.
    Raises UserError where Optuna is missing or another process tunes the family.
    """
    if find_spec("optuna") is None:
        raise UserError(
            "weatherglass tune needs Optuna, which the extra 'tune' brings; run `.venv/bin/pip install -e '.[tune]'`."
        )
    import optuna

    database = search.root / TUNED / f"{search.name}.db"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with held(search.root / TUNED / f"{search.family}.lock", refusing(f"tuning {search.family} in this project")):
        study = optuna.create_study(
            storage=f"sqlite:///{database.resolve()}", study_name=search.name, direction="minimize", load_if_exists=True
        )
        if not study.trials:
            study.enqueue_trial({name: getattr(search.config, name) for name in search.space})
        for left in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.enqueue_trial(left.params, user_attrs={"goes_on": left.number})
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        yield study


def run_search(
    search: Search,
    study: Study,
    trials: int,
    timeout: float | None = None,
    told: Callable[[Trialled], None] = lambda trial: None,
) -> None:
    """Go on with a study until it holds ``trials`` ended trials or ``timeout`` seconds are over.

    ``told`` hears of every trial that ends. A trial that time runs out on goes on next time. Raises RuntimeError where
    trials keep failing and none has ended well.
    """
    from optuna.pruners import MedianPruner
    from optuna.samplers import TPESampler
    from tqdm import tqdm

    study.pruner = MedianPruner(STARTUP_TRIALS, n_warmup_steps=search.config.max_epochs // 4)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    with tqdm(total=trials, initial=len(ended(study)), desc=f"tune {search.family}", unit="trial", disable=None) as bar:
        while len(ended(study)) < trials and time.monotonic() < deadline:
            # a seed for each trial, so that a search that was interrupted draws what one in a single go would
            study.sampler = TPESampler(seed=search.params.train.seed * 1_000_003 + len(ended(study)))
            trial = _run_trial(search, study, deadline)
            if trial is None:
                break
            told(trial)
            bar.update()
            bar.set_postfix_str(_best_text(study))
            if bar.disable:  # a pipe gets plain lines
                print(trial_text(search, trial), flush=True)
            failures = [each for each in ended(study) if "reason" in each.user_attrs]
            if len(failures) >= MOST_FAILURES and not completed(study):
                raise RuntimeError(f"no trial of {search.family} ends well: {failures[-1].user_attrs['reason']}")


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that ran to their end, were pruned or failed by themselves."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def completed(study: Study) -> list[FrozenTrial]:
    """Trials that ran to their end, the best first."""
    from optuna.trial import TrialState

    return sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value or 0.0)


def trial_text(search: Search, trial: Trialled) -> str:
    """A trial in one line."""
    values = ", ".join(f"{name} {value}" for name, value in trial.values.items())
    if trial.state == "complete":
        end = f"{search.metric} {trial.metrics[METRICS[search.metric]]:.5f}"
    else:
        end = f"pruned after epoch {len(trial.losses)}" if trial.state == "pruned" else f"failed: {trial.reason}"
    return f"tune {search.family}: trial {trial.number}: {values}: {end}"


def _best_text(study: Study) -> str:
    best = completed(study)[:1]
    return f"best {best[0].value:.5f} (trial {best[0].number})" if best else ""


def _run_trial(search: Search, study: Study, deadline: float) -> Trialled | None:
    """Ask for a trial, run it and tell how it ended; None where it was stopped at the deadline and is to go on later."""
    from optuna.trial import TrialState

    trial = study.ask()
    values: Parameters = {name: choice.suggest(trial, name) for name, choice in search.space.items()}
    trial.set_user_attr("values", values)
    losses = _earlier_losses(study, trial)
    folder = search.folder / digest_of(values)
    state, metrics, reason = _follow(search, trial, losses, folder, deadline)
    if state is None:
        return None
    if state == "complete":
        study.tell(trial, metrics[METRICS[search.metric]])
    else:
        if reason:
            trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.PRUNED)
    shutil.rmtree(folder, ignore_errors=True)
    return Trialled(trial.number, state, values, losses, metrics, reason)


def _earlier_losses(study: Study, trial: Trial) -> list[float]:
    """Losses of the epochs that a trial had before it was interrupted, reported anew."""
    before = trial.user_attrs.get("goes_on")
    known = {} if before is None else study.trials[before].intermediate_values
    for epoch in sorted(known):
        trial.report(known[epoch], epoch)
    return [known[epoch] for epoch in sorted(known)]


def _follow(
    search: Search, trial: Trial, losses: list[float], folder: Path, deadline: float
) -> tuple[State | None, dict[str, float], str]:
    """Train a trial's member in a process, add its losses to ``losses`` and stop it where it is pruned or out of time."""
    from tasks.member import MemberSpec

    try:
        params = search.trial_params(trial.user_attrs["values"])
    except ValidationError as error:
        return "failed", {}, str(error.errors()[0]["msg"])
    folder.mkdir(parents=True, exist_ok=True)
    spec = MemberSpec(search.root, params, search.family, 0, folder)
    context = member_processes()
    news = context.Queue()
    process = context.Process(target=_trial_process, args=(spec, search.metric, news))
    process.start()
    try:
        while time.monotonic() < deadline:
            alive = process.is_alive()
            try:
                kind, value = news.get(timeout=0.5)
            except queue.Empty:
                if alive:
                    continue
                return "failed", {}, f"its process ended with exit code {process.exitcode}"
            if kind != "epoch":
                return ("complete", value, "") if kind == "done" else ("failed", {}, value)
            epoch, loss = value
            if epoch > len(losses) and loss == loss:  # a member that was trained before tells no losses
                losses.append(loss)
                trial.report(loss, epoch)
                if epoch < spec.config.max_epochs and trial.should_prune():
                    return "pruned", {}, ""
        return None, {}, ""
    finally:
        process.kill()
        process.join()


def _trial_process(spec: Any, metric: Metric, news: Any) -> None:
    """Train a member and tell its losses by epoch, then its metrics on the early-stopping fold, or why it failed."""
    from tasks.member import die_with_parent, member_history, train_member

    die_with_parent()
    try:
        weights = train_member(spec, lambda epoch, loss: news.put(("epoch", (epoch, loss))))
        metrics = {"early_stopping_loss": min(row["early_stopping_loss"] for row in member_history(spec.folder))}
        if metric == "wql":
            metrics["early_stopping_wql"] = _early_stopping_wql(spec, weights)
        news.put(("done", metrics))
    except Exception as error:
        news.put(("failed", f"{type(error).__name__}: {error}"))
    news.close()
    news.join_thread()


def _early_stopping_wql(spec: Any, weights: Path) -> float:
    """WQL of a member's forecasts of the early-stopping fold, as the pipeline makes them."""
    import torch

    from models.predictive import Predictive
    from models.uncertainty.scores import wql
    from tasks.member import load_member
    from tasks.predict import predict_windows
    from tasks.prepare import load_prepared

    prepared = load_prepared(spec.root)
    windows = prepared.fold("early_stopping", "tune")
    forecaster = load_member(spec.family, spec.config, prepared.panel.schema, weights)
    predicted = predict_windows(forecaster, prepared.panel, windows, spec.seed, passes_of(spec.params, spec.family))
    return wql(Predictive(torch.from_numpy(predicted.quantiles)), prepared.panel.targets(windows))
