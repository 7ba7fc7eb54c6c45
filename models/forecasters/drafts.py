"""Drafts of an autoregressive forecaster: a smaller one of its family, a distilled one, and its own first layers.

A token means the same to target and draft only where they share bins and base, so a draft takes those of its target and
keeps them; any other is refused.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.forecasters.autoregressive import Autoregressive
from models.forecasters.factory import build_forecaster
from models.forecasters.lstm import LSTMBackbone
from models.forecasters.tcn import TCNBackbone
from models.forecasters.wavenet import WaveNetBackbone
from models.heads import CategoricalHead
from models.layers.state_space import ResidualStack
from models.panel import Batch, PanelSchema

__all__ = [
    "DRAFTS",
    "DraftKind",
    "build_draft",
    "check_draft",
    "distillation_loss",
    "first_layers",
    "smaller_config",
    "warm_cosine",
]

DraftKind = Literal["distilled", "smaller", "early_exit"]
DRAFTS: tuple[DraftKind, ...] = ("distilled", "smaller", "early_exit")

SHARE = 4
"""How many times narrower than its target a smaller network is."""

LEAST_WIDTH = 16


def smaller_config(family: str, config: Any) -> Any:
    """The configuration of a draft: a quarter of the width, one layer (two of a hybrid), no dropout, the same bins.

    A convolutional one has a quarter of the levels, with 4 taps each; seasons reach it through the base all the same.
    """
    name = "hidden_size" if family == "deepar" else "width"
    width = max(LEAST_WIDTH, getattr(config, name) // SHARE)
    width = min(getattr(config, name), width)
    changed: dict[str, Any] = {name: width, "dropout": 0.0}
    if "layers" in type(config).model_fields:
        changed["layers"] = 2 if family == "hybrid" else 1
    if "levels" in type(config).model_fields:
        changed |= {"levels": max(1, config.levels // SHARE), "kernel_size": 4}
    if "stacks" in type(config).model_fields:
        changed["stacks"] = 1
    if "heads" in type(config).model_fields:
        changed["heads"] = 1
    return config.model_copy(update=changed)


def build_draft(kind: DraftKind, target: Autoregressive, schema: PanelSchema, family: str, config: Any) -> Autoregressive:
    """An untrained draft of a trained target of ``family`` and ``config``, with the target's bins and base.

    ``early_exit`` is the target's first layers with a norm and a head of its own to be learned; the other two are a smaller
    network, learned from the data or by `distillation_loss`. Raises ValueError for a target without a categorical head.
    """
    if kind == "early_exit":
        draft = copy.deepcopy(target).requires_grad_(False)
        draft.backbone = first_layers(target.backbone)
        for learned in (draft.head, getattr(draft.backbone, "norm", None), getattr(draft.backbone, "output", None)):
            if isinstance(learned, nn.Module):
                learned.requires_grad_(True)
    else:
        built = build_forecaster(family, schema, smaller_config(family, config))
        assert isinstance(built, Autoregressive)
        draft = built.to(target.lag_weights)
    target_head, head = target.head, draft.head
    if not isinstance(target_head, CategoricalHead) or not isinstance(head, CategoricalHead):
        raise ValueError(f"only a categorical head can be drafted for, and the target has a {type(target_head).__name__}")
    head.edges.copy_(target_head.edges)
    head.tails.copy_(target_head.tails)
    with torch.no_grad():
        draft.lag_weights.copy_(target.lag_weights)
    draft.lag_weights.requires_grad_(False)
    return draft


def first_layers(backbone: nn.Module, share: int = SHARE) -> nn.Module:
    """A copy of a backbone's first layers, one in ``share`` but at least one, whose final norm or output can be learned."""
    shorter: Any = copy.deepcopy(backbone).requires_grad_(False)
    if isinstance(backbone, LSTMBackbone):
        kept = -(-len(backbone.layers) // share)
        shorter.layers, shorter.between = shorter.layers[:kept], shorter.between[: kept - 1]
        shorter._specs = backbone._specs[: 2 * kept]
        return shorter
    if not isinstance(backbone, ResidualStack | TCNBackbone | WaveNetBackbone):
        raise ValueError(f"a {type(backbone).__name__} has no early exit")
    kept = -(-len(backbone.blocks) // share)
    shorter.blocks = shorter.blocks[:kept]
    if isinstance(backbone, ResidualStack):
        shorter._counts = backbone._counts[:kept]
        shorter._specs = backbone._specs[: sum(shorter._counts)]
    else:
        shorter._specs = backbone._specs[: (2 if isinstance(backbone, TCNBackbone) else 1) * kept]
    return shorter


def check_draft(target: Autoregressive, draft: Autoregressive) -> None:
    """Raise ValueError, in one sentence, unless a token means the same to ``draft`` as to ``target``."""
    theirs, own = draft.head, target.head
    if not isinstance(own, CategoricalHead) or not isinstance(theirs, CategoricalHead):
        raise ValueError("target and draft must both have a categorical head, which gives tokens their bins")
    if theirs.bins != own.bins:
        raise ValueError(f"the draft has {theirs.bins} bins and the target {own.bins}; a draft must have its target's bins")
    if not torch.equal(theirs.edges, own.edges) or not torch.equal(theirs.tails, own.tails):
        raise ValueError("the draft's bins have other edges than the target's; a draft must have its target's bins")
    if not torch.equal(draft.lag_weights, target.lag_weights):
        raise ValueError("the draft's bins lie about another average of lags than the target's; a draft must share it")


def token_logits(forecaster: Autoregressive, batch: Batch) -> Tensor:
    """Logits ``(B, T + H, V)`` of every step of history and horizon, given all true values before it."""
    inputs, target, base = forecaster._inputs(batch)
    head = forecaster.head
    assert isinstance(head, CategoricalHead)
    return head.logits(head(forecaster.backbone(forecaster._teacher_forced(inputs, target)), base))


def distillation_loss(target: Autoregressive, draft: Autoregressive, batch: Batch) -> Tensor:
    """Mean Kullback-Leibler divergence of the draft's tokens from the target's, over every step that is not padding.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015); that acceptance is bounded by it is
    Pinsker's inequality: 1 - sum min(p, q) <= sqrt(KL / 2).
    """
    with torch.no_grad():
        wanted = token_logits(target, batch).log_softmax(-1)
    found = token_logits(draft, batch).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1)
    padding = target.context - batch["encoder_lengths"]
    real = torch.arange(divergence.shape[1], device=divergence.device) >= padding[:, None]
    return torch.where(real, divergence, 0.0).sum() / real.sum()


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate at ``step`` of ``steps``: a rise over the first tenth, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    return min(1.0, (step + 1) / rise) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))
