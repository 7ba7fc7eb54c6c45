"""A family's members, trained in parallel processes, and what they predict on every fold after training."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.forecasters.factory import FAMILIES
from tasks.arrays import ArrayFile
from tasks.errors import Unavailable, UserError
from tasks.files import atomic_dir, digest_of, file_md5, held, read_json, told_when_full, waiting, write_json
from tasks.params import Params
from tasks.prepare import ARRAYS, CALENDAR, PREPARED, load_prepared
from tasks.presets import passes_of
from tasks.progress import EpochBar
from tasks.settings import FOLDS

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from tasks.member import MemberSpec

TRAINED = Path("artifacts/train")
LEFT_OUT = "left_out.json"
CHECKPOINTS = Path(".weatherglass/checkpoints")
KEEP_MEMORY = {  # glibc hands freed memory back after every step, and the page faults cost as much as the arithmetic
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(512 * 2**20),
}
FEATURE_SAMPLE = 2000  # training windows whose features describe what is ordinary

RunMembers = Callable[[Sequence["MemberSpec"]], None]
"""Trains and predicts members wherever it likes; returns when the last one is done, or raises."""


def training_digest(params: Params, family: str, root: Path) -> str:
    """Identity of a training run: the params, data and code that it depends on and nothing else."""
    config = getattr(params.forecasters, family).model_dump()
    train = params.train.model_dump(exclude={"workers"})
    return digest_of([family, config, train, passes_of(params, family), data_and_code(root)])


def data_and_code(root: Path) -> list[list[str]]:
    """MD5s of the prepared files that training reads, and of the code that trains and predicts."""
    arrays = (*ARRAYS, *CALENDAR, "grid_train", "windows_early_stopping")
    files = ["encoding.json", *(f"{name}.npy" for name in arrays)]
    return [[file_md5(root / PREPARED / name) for name in files], _code()]


@cache
def _code() -> list[str]:
    """MD5s of all of models/, and of the files of this folder that call it."""
    here = Path(__file__).parent
    paths = [here / "member.py", here / "descent.py", here / "predict.py", *sorted((here.parent / "models").rglob("*.py"))]
    return [file_md5(path) for path in paths]


def sole_run(path: Path) -> AbstractContextManager[int]:
    """Hold an OS lock; a second run waits for the first and says so."""
    return held(path, waiting("training the same family"))


@contextmanager
def checkpoints_of(params: Params, root: Path, family: str) -> Iterator[Path]:
    """Hold the family alone and yield the folder of its checkpoints, with those of other params or data removed."""
    base = root / CHECKPOINTS / family
    with sole_run(base / "lock"):
        keep = base / training_digest(params, family, root)
        for stale in base.iterdir():
            if stale.is_dir() and stale != keep:
                shutil.rmtree(stale)
        yield keep


def train_family(params: Params, root: Path, family: str, run: RunMembers | None = None) -> Path:
    """Train all members of ``family`` and predict the folds; writes and returns ``artifacts/train/<family>``.

    Holds ``member_<i>.safetensors``, ``history.json``, ``quantiles_<fold>.npy`` float32 ``(M, n, H, Q)`` and
    ``features_<fold>.npy`` float32 ``(n, D)`` of the first member; the training fold's features are a sample. With MC
    dropout a member's quantiles are those of the mixture over its passes, and ``split_<fold>.npy`` ``(M, 2, n, H)`` is
    their aleatoric and epistemic variance. A family that the preset leaves out gets a note instead. Members that are not
    done yet are trained by ``run``: :func:`run_members` by default.
    """
    if params.ensemble.families == "smallest" and family in FAMILIES and family not in params.families:
        with atomic_dir(root / TRAINED / family) as folder:
            write_json(folder / LEFT_OUT, {"reason": f"ensemble.families is smallest: {params.families[0]}"})
        return root / TRAINED / family
    if family not in params.families:
        raise UserError(f"family '{family}' is not in params.yaml: families, which holds {', '.join(params.families)}.")
    with checkpoints_of(params, root, family) as keep:
        left = members_left(params, root, family, keep)
        if left:
            (run or run_members)(left)
        with atomic_dir(root / TRAINED / family) as folder:
            gather_members(params, keep, folder)
        for checkpoint in keep.glob("member_*/*.ckpt"):
            checkpoint.unlink()
    return root / TRAINED / family


def forget_members(root: Path) -> None:
    """Remove the members that training keeps: DVC has their artefacts now, where a stage runs that depends on them.

    Until then they stay, so that a run that stops after training (a service is lost, the disk is full) trains none again.
    """
    for base in (root / CHECKPOINTS).glob("*"):
        with sole_run(base / "lock"):
            for kept in base.iterdir():
                if kept.is_dir():
                    shutil.rmtree(kept)


def members_left(params: Params, root: Path, family: str, keep: Path) -> list[MemberSpec]:
    """Those members of a family that are not trained or have not predicted yet, their folders made."""
    from tasks.member import MemberSpec

    specs = [MemberSpec(root, params, family, index, keep / f"member_{index}") for index in range(params.train.members)]
    for spec in specs:
        spec.folder.mkdir(parents=True, exist_ok=True)
    return [spec for spec in specs if not spec.done]


def member_processes() -> ForkServerContext:
    """What starts processes that train members: a server that has imported all they need forks them."""
    os.environ.update(KEEP_MEMORY)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.descent", "tasks.predict"])
    return context


def workers_for(params: Params, members: int) -> int:
    """How many members to train at a time on this machine: ``train.workers`` or its cores, at most ``members``."""
    return min(params.train.workers or os.cpu_count() or 1, members)


def run_members(specs: Sequence[MemberSpec]) -> None:
    """Train and predict members in processes of this machine, at most ``train.workers`` at a time, with a progress bar."""
    params, family = specs[0].params, specs[0].family
    workers, context = workers_for(params, len(specs)), member_processes()
    news = context.Queue()
    waiting, running, failures = list(specs), dict[str, Any](), list[Exception]()
    with EpochBar(f"train {family}", {spec.name: spec.config.max_epochs for spec in specs}) as bar:
        while waiting or running:
            while waiting and len(running) < workers:
                spec = waiting.pop(0)
                process = context.Process(target=_member_process, args=(spec, news))
                process.start()
                running[spec.name] = process
            try:
                kind, name, value = news.get(timeout=0.5)
                if kind == "epoch":
                    bar.at(name, *value)
                else:
                    failures.append(value)
            except queue.Empty:
                pass
            for name, process in list(running.items()):
                if not process.is_alive():
                    process.join()
                    del running[name]
                    bar.ended(name)
                    if process.exitcode != 0:
                        waiting.clear()
                        failures.append(RuntimeError(f"{name} ended with exit code {process.exitcode}"))
    while not news.empty():
        kind, _, value = news.get()
        if kind == "failure":
            failures.insert(0, value)
    if failures:
        raise failures[0]


def _member_process(spec: MemberSpec, news: Any) -> None:
    from tasks.member import die_with_parent

    die_with_parent()
    try:
        complete_member(spec, lambda epoch, loss: news.put(("epoch", spec.name, (epoch, loss))))
    except Exception as error:
        known = isinstance(error, Unavailable)
        news.put(("failure", spec.name, Unavailable(str(error)) if known else RuntimeError(f"{type(error).__name__}: {error}")))
        news.close()
        news.join_thread()
        raise SystemExit(1) from error


def complete_member(spec: MemberSpec, report: Callable[[int, float], None]) -> None:
    """Train a member and let it predict every fold, or go on where a killed process left it.

    The member's ``lock`` names the process at work; another one waits for it, so that two never write the same files.
    A full disk raises Unavailable.
    """
    from tasks.member import train_member

    with held(spec.folder / "lock", lambda pid: None), told_when_full(spec.folder):
        weights = train_member(spec, report)
        if not spec.done:
            _predict_folds(spec, weights)


def _predict_folds(spec: MemberSpec, weights: Path) -> None:
    """Write a member's predictions of every fold, and last the note that they are whole."""
    from tasks.member import PREDICTED, load_member
    from tasks.predict import predict_windows, predicted_parts

    prepared = load_prepared(spec.root)
    forecaster = load_member(spec.family, spec.config, prepared.panel.schema, weights)
    passes = passes_of(spec.params, spec.family)
    for fold in FOLDS:
        windows = prepared.windows[fold]
        files = [spec.folder / f"{name}_{fold}.npy" for name in ("quantiles", "features", "split")]
        splits = list[np.ndarray]()
        with ArrayFile(files[0], len(windows)) as quantiles, ArrayFile(files[1], len(windows)) as features:
            for part in predicted_parts(forecaster, prepared.panel, windows, spec.seed, passes):
                quantiles.add(part.quantiles)
                features.add(part.features)
                splits += [] if part.split is None else [part.split]
        if splits:
            np.save(files[2], np.concatenate(splits, axis=1))
    if spec.index == 0:
        train = prepared.windows["train"]
        chosen = np.linspace(0, len(train) - 1, min(FEATURE_SAMPLE, len(train))).astype(np.int64)
        sample = train[torch.from_numpy(chosen)]
        np.save(spec.folder / "windows_sample.npy", np.stack([sample.series.numpy(), sample.cutoff.numpy()]))
        np.save(spec.folder / "features_train.npy", predict_windows(forecaster, prepared.panel, sample, spec.seed).features)
    write_json(spec.folder / PREDICTED, {"done": True})


def gather_members(params: Params, keep: Path, folder: Path) -> None:
    """Bring the members' files together in one folder."""
    members = [keep / f"member_{index}" for index in range(params.train.members)]
    for index, member in enumerate(members):
        shutil.copyfile(member / "weights.safetensors", folder / f"member_{index}.safetensors")
    for fold in FOLDS:
        for name in ("quantiles", "split"):
            if (members[0] / f"{name}_{fold}.npy").exists():
                with ArrayFile(folder / f"{name}_{fold}.npy", len(members)) as written:
                    for member in members:
                        written.add(np.load(member / f"{name}_{fold}.npy", mmap_mode="r")[None])
        shutil.copyfile(members[0] / f"features_{fold}.npy", folder / f"features_{fold}.npy")
    for name in ("features_train.npy", "windows_sample.npy"):
        shutil.copyfile(members[0] / name, folder / name)
    write_json(folder / "history.json", [read_json(member / "history.json") for member in members])
