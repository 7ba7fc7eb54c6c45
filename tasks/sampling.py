"""Drafts of a registered model's members, and forecasts that are drawn with their help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.forecasters.autoregressive import Autoregressive
from models.forecasters.drafts import DRAFTS, build_draft, check_draft, distillation_loss, warm_cosine
from models.forecasters.sampler import SAMPLERS, PathSampler
from models.heads import CategoricalHead
from models.panel import WindowLoader
from tasks.errors import UserError
from tasks.files import atomic_dir, digest_of, file_md5, read_json, write_json
from tasks.prepare import Prepared

if TYPE_CHECKING:
    from tasks.bundle import Bundle

FOLDER = Path(".weatherglass/drafts")
LEARNING_RATE = 4e-3
BATCH = 32
COMPILED_LENGTHS = (4,)
"""Numbers of drafted tokens to choose from in compiled steps: each takes its own time to compile."""

Report = Callable[[str, int, float], None]
"""Is told a member, the steps done and the last loss."""


def binned_members(bundle: Bundle) -> dict[str, tuple[str, Autoregressive]]:
    """Members that sample paths of bins, by name, with their family.

    Raises UserError where there is none.
    """
    found, numbers = {}, dict.fromkeys(bundle.families, 0)
    for family, member in zip(bundle.families, bundle.members, strict=True):
        if isinstance(member, Autoregressive) and isinstance(member.head, CategoricalHead):
            found[f"{family}_{numbers[family]}"] = family, member
        numbers[family] += 1
    if not found:
        raise UserError(
            f"{bundle.name} has no member that samples paths of bins; set forecasters.FAMILY.decoding: paths for one of tcn, "
            "s4d, mamba, mamba2 or hybrid, or take wavenet, and register the model again by `weatherglass run`."
        )
    return found


def distil(
    root: Path, label: str, digest: str, bundle: Bundle, prepared: Prepared, kind: str, steps: int, report: Report
) -> dict[str, Any]:
    """Train a draft for each member of `binned_members` and keep them for the bundle of ``digest``; what was done, by member.

    ``label`` is <model>-<version>. A draft depends on the bundle, the training fold, ``kind``, ``steps`` and train.seed alone.

    Raises UserError where ``kind`` does not exist, no member can have a draft, or data/prepared is of another panel.
    """
    from safetensors.torch import save_model

    if kind not in DRAFTS:
        raise UserError(f"'{kind}' is no kind of draft; there are {', '.join(DRAFTS)}.")
    members = binned_members(bundle)
    if prepared.panel.schema != bundle.encoding.schema:
        raise UserError(
            f"data/prepared has other columns or lengths than {bundle.name} was trained on; register a model of today's "
            "params.yaml by `weatherglass run`."
        )
    done: dict[str, Any] = {}
    with atomic_dir(root / FOLDER / label) as folder:
        for name, (family, target) in members.items():
            config = getattr(bundle.params.forecasters, family)
            torch.manual_seed(bundle.params.train.seed)
            draft = build_draft(kind, target, bundle.encoding.schema, family, config)  # type: ignore[arg-type]
            loss = _train(target, draft, prepared, kind, steps, bundle.params.train.seed, partial(report, name))
            save_model(draft, str(folder / f"{name}.safetensors"))
            sizes = [sum(each.numel() for each in model.parameters()) for model in (target, draft)]
            done[name] = {"loss": loss, "target_parameters": sizes[0], "draft_parameters": sizes[1]}
        files = {path.name: file_md5(path) for path in sorted(folder.iterdir())}
        write_json(folder / "drafts.json", {"bundle": digest, "kind": kind, "steps": steps, "files": files})
    return done


def _train(
    target: Autoregressive,
    draft: Autoregressive,
    prepared: Prepared,
    kind: str,
    steps: int,
    seed: int,
    report: Callable[[int, float], None],
) -> float:
    """Train a draft on windows of the training fold; returns the mean loss of the last tenth of the steps."""
    weights = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, steps=steps))
    windows = prepared.fold("train", "fit networks")
    losses = []
    draft.train()
    for step, batch in enumerate(WindowLoader(prepared.panel, windows, BATCH, steps, seed), start=1):
        loss = draft.loss(batch) if kind == "smaller" else distillation_loss(target, draft, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        report(step, losses[-1])
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def use_sampler(root: Path, label: str, digest: str, bundle: Bundle, name: str, compiled: bool = False) -> None:
    """Let the members of `binned_members` draw their paths by ``name``, with the drafts that `distil` has made for them.

    ``compiled`` steps are asked for where `torch.compile` works, with a single number of drafted tokens to compile for.
    `speculative` wants drafts; `gumbel` gives the same paths without, one step after another. Raises UserError where drafts are
    missing, damaged, or of another bundle.
    """
    if name not in SAMPLERS:
        raise UserError(f"--sampler is '{name}'; it must be one of {', '.join(SAMPLERS)}.")
    members = binned_members(bundle)
    folder = root / FOLDER / label
    there = (folder / "drafts.json").exists()
    if name == "speculative" and not there:
        raise UserError(f"{bundle.name} has no drafts to speculate with; run `weatherglass distill` first.")
    for member, (family, target) in members.items():
        draft = None if not there else load_draft(folder, digest, bundle, member, family, target)
        plans = {"lengths": COMPILED_LENGTHS} if compiled else {}
        target.use(PathSampler(target, name, draft, compiled=compiled, **plans))  # type: ignore[arg-type]


def load_draft(folder: Path, digest: str, bundle: Bundle, name: str, family: str, target: Autoregressive) -> Autoregressive:
    """A member's draft from ``folder``, checked against what `distil` wrote and against its target's bins."""
    from safetensors.torch import load_model

    record, weights = read_json(folder / "drafts.json"), folder / f"{name}.safetensors"
    again = "run `weatherglass distill` again."
    if record["bundle"] != digest:
        raise UserError(f"the drafts in {folder} are for another bundle than that of {bundle.name}; {again}")
    if not weights.is_file() or file_md5(weights) != record["files"].get(weights.name):
        raise UserError(f"the draft '{weights.name}' in {folder} is not the one that was written; {again}")
    config = getattr(bundle.params.forecasters, family)
    draft = build_draft(record["kind"], target, bundle.encoding.schema, family, config)
    load_model(draft, str(weights), strict=True)
    try:
        check_draft(target, draft)
    except ValueError as error:
        raise UserError(f"the draft '{weights.name}' cannot serve {bundle.name}: {error}; {again}") from None
    return draft.eval()


def sampling_figures(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Of each member and number of paths that were drawn together, what its sampler measured; see `PathSampler`."""
    figures = {}
    for name, (_, member) in binned_members(bundle).items():
        if isinstance(member.sampler, PathSampler):
            for rows, record in member.sampler.records.items():
                figures[f"{name}/{rows}_paths"] = record.figures()
    return {name: found for name, found in figures.items() if found}


def log_sampling(root: Path, experiment: str, bundle: Bundle, sampler: str) -> None:
    """Log `sampling_figures` as an MLflow run of its own; nothing where no member had a draft."""
    from tasks.tracking import log_alone

    figures = sampling_figures(bundle)
    if figures:
        metrics = {f"{name}/{key}": value for name, found in figures.items() for key, value in found.items()}
        log_alone(root, experiment, f"sampler {sampler}", digest_of([bundle.name, metrics]), metrics, [])


def sampling_text(bundle: Bundle) -> str:
    """A line for each member and number of paths: whether it speculated, and what came of it."""
    lines = []
    for name, found in sampling_figures(bundle).items():
        if found["length"]:
            said = f"{found['length']:.0f} tokens drafted a round, {found.get('tokens_per_call', 1.0):.2f} tokens a call"
        else:
            said = "speculation off"
        lines.append(
            f"{name}: {said}; predicted gain {found['predicted_gain']:.2f}, acceptance {found['acceptance']:.2f}, "
            f"measured gain {found.get('measured_gain', float('nan')):.2f}"
        )
    samplers = [member.sampler for _, member in binned_members(bundle).values()]
    if any(isinstance(sampler, PathSampler) and sampler.asked and not sampler.compiled for sampler in samplers):
        lines.append("steps are not compiled: torch.compile finds no working C++ compiler")
    return "\n".join(lines) or "one step after another, without drafts"
