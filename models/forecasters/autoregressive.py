"""Autoregressive forecasters: any causal backbone that streams, any head, paths sampled one step after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoding.streaming import State, extend, fork
from models.forecasters.base import CategoryEmbedding, Forecaster, Prediction, align_right
from models.heads import CategoricalHead, Head
from models.panel import Batch, PanelSchema
from models.predictive import sample_quantiles

__all__ = ["Autoregressive"]

ROWS_AT_A_TIME = 8192
"""Paths that are sampled together: enough that a step's arithmetic outweighs its calls, few enough to bound the memory."""


class Sampler(Protocol):
    """Draws paths, as `models.forecasters.sampler.PathSampler` does; `batch_invariant` as a forecaster's."""

    batch_invariant: bool

    def paths(self, batch: Batch, copies: int, seed: int) -> tuple[Tensor, Tensor]:
        """Joint sample paths (B, copies, H) in the target's units, and features (B, width) at the last known step."""
        ...


class Autoregressive(Forecaster):
    """A causal backbone with any head: each step reads the target one step earlier and what is known of its own.

    Learns by teacher forcing on every step of history and horizon at once, and is judged on the horizon. Forecasts by
    ancestral sampling with cached state. The head's location is a correction of a learned average of the target's lags.
    Past-only covariates are left out: an autoregressive network would need them over the horizon.

    Parameters
    ----------
    schema : PanelSchema
    width : int
        Of `backbone` and of the hidden states that `head` reads.
    backbone : nn.Module
        A `models.decoding.streaming.StreamingBackbone`.
    head : Head
        With a categorical one it can be sampled speculatively, see `models.forecasters.binned_paths`.
    paths : int
        Sampled for a forecast, at least 2.
    """

    batch_invariant = False

    def __init__(self, schema: PanelSchema, width: int, backbone: nn.Module, head: Head, paths: int) -> None:
        super().__init__()
        if paths < 2:
            raise ValueError(f"paths must be at least 2, got {paths}")
        self.context, self.paths = schema.context, paths
        self.known = list(schema.future_reals)
        self.embedding = CategoryEmbedding(schema.all_categories)
        self.project = nn.Linear(2 + len(self.known) + self.embedding.width, width)
        self.backbone: Any = backbone
        self.head = head
        self.n_lags = len(schema.lags)
        self.lag_weights = nn.Parameter(torch.zeros(self.n_lags))
        self.sampler: Sampler | None = None

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs without the previous target (B, T + H, I), the scaled target (B, T + H) and the base (B, T + H).

        The first input marks steps whose previous target is padding; the target over the horizon is teacher's.
        """
        lengths, context = batch["encoder_lengths"], self.context
        cont = torch.cat([align_right(batch["encoder_cont"], lengths, context), batch["decoder_cont"]], dim=1)
        cat = torch.cat([align_right(batch["encoder_cat"], lengths, context), batch["decoder_cat"]], dim=1)
        step = torch.arange(cont.shape[1], device=cont.device)
        padding = (step[None] <= (context - lengths)[:, None])[..., None].to(cont.dtype)
        inputs = torch.cat([padding, cont[..., self.known], self.embedding(cat).to(cont.dtype)], dim=-1)
        lags = cont[..., cont.shape[-1] - self.n_lags :]
        return inputs, cont[..., 0], (lags * self.lag_weights.softmax(0)).sum(-1)

    def _teacher_forced(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Backbone inputs (B, S, width) from inputs (B, S, I) and the target one step earlier, zero before the first."""
        previous = functional.pad(target[:, :-1], (1, 0))
        return self.project(torch.cat([previous[..., None], inputs], dim=-1))

    def loss(self, batch: Batch) -> Tensor:
        """Mean of the head's loss: over the whole window in training, over the horizon in evaluation."""
        inputs, target, base = self._inputs(batch)
        parameters = self.head(self.backbone(self._teacher_forced(inputs, target)), base)
        loc, scale = batch["target_scale"].unbind(1)
        first = 0 if self.training else self.context
        lengths = batch["encoder_lengths"]
        history = align_right(batch["encoder_target"][..., None], lengths, self.context)[..., 0]
        truth = torch.cat([history, batch["decoder_target"]], dim=1)[:, first:]
        losses = self.head.loss(parameters[:, first:], truth, loc, scale)
        real = torch.arange(first, target.shape[1], device=target.device) >= (self.context - lengths)[:, None]
        return torch.where(real, losses, 0.0).sum() / real.sum()

    @torch.no_grad()
    def fit_bins(self, batch: Batch) -> None:
        """Place a categorical head's quantile bins by the horizon's scaled targets less their base; others stay."""
        if isinstance(self.head, CategoricalHead):
            _, target, base = self._inputs(batch)
            self.head.fit((target - base)[:, self.context :])

    @torch.no_grad()
    def sample_paths(self, batch: Batch, paths: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Joint sample paths (B, paths, H) in the target's units, and features (B, width) at the last known step.

        History is read once; then all paths of some windows advance together, one step at a time.
        """
        inputs, target, base = self._inputs(batch)
        rows, length, _ = inputs.shape
        known = self._teacher_forced(inputs[:, : self.context], target[:, : self.context])
        state = self.backbone.initial_state(rows, known.device, known.dtype)
        hidden, state = extend(self.backbone, known, state)
        weight, bias = self.project.weight, self.project.bias
        future = functional.linear(inputs[:, self.context :], weight[:, 1:], bias).permute(1, 2, 0)  # (H, width, B)
        drawn = []
        for piece in torch.arange(rows, device=inputs.device).split(max(1, ROWS_AT_A_TIME // paths)):
            loc, scale = (part.repeat_interleave(paths) for part in batch["target_scale"][piece].unbind(1))
            previous = target[piece, self.context - 1].repeat_interleave(paths)
            forked = tuple(part[piece] for part in state)
            advance = self._advancing(forked, paths, length - self.context)
            steps = []
            for step, known in enumerate(future[:, :, piece, None]):
                x_t = torch.addcmul(known, weight[:, :1, None], previous.view(len(piece), paths)).flatten(1)
                guess = base[piece, self.context + step].repeat_interleave(paths)
                values = self.head.draw(advance(x_t).t(), guess, loc, scale, generator)
                previous = (values - loc) / scale
                steps.append(values)
            drawn.append(torch.stack(steps, dim=-1).view(len(piece), paths, -1))
        return torch.cat(drawn), hidden[:, -1]

    def _advancing(self, state: State, paths: int, steps: int) -> Callable[[Tensor], Tensor]:
        """What takes the inputs (width, B * paths) of each of `steps` steps to outputs (width, B * paths)."""
        forked = fork(state, paths)

        def advance(x_t: Tensor) -> Tensor:
            nonlocal forked
            hidden, forked = self.backbone.step(x_t.t(), forked)
            return hidden.t()

        return advance

    def encode(self, batch: Batch) -> Tensor:
        inputs, target, _ = self._inputs(batch)
        known = self._teacher_forced(inputs[:, : self.context], target[:, : self.context])
        return self.backbone(known)[:, -1]

    def target_paths(self, batch: Batch, paths: int) -> Tensor:
        """Joint sample paths (B, paths, H) in the target's units."""
        return self.sample_paths(batch, paths)[0]

    def use(self, sampler: Sampler | None) -> None:
        """Forecast from now on by what ``sampler`` draws; None for `sample_paths`."""
        self.sampler = sampler
        self.batch_invariant = sampler is not None and sampler.batch_invariant

    def predict(self, batch: Batch) -> Prediction:
        if self.sampler is None:
            paths, features = self.sample_paths(batch, self.paths)
        else:
            paths, features = self.sampler.paths(batch, self.paths, int(torch.randint(2**62, ())))
        return Prediction(sample_quantiles(paths, self.levels), features)
