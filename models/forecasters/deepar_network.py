"""The network of DeepAR (Salinas et al., 2020): an LSTM that reads a series and says how its next value is distributed.

The same function with the same parameters as pytorch-forecasting's ``DeepAR`` with an LSTM and a normal likelihood;
`DeepARNetwork.load_pytorch_forecasting` takes its weights. Faster in two places: history and horizon are one pass in
training, and paths are sampled by the equations of the LSTM with all that paths share computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from models.forecasters.config import DeepARConfig
from models.layers.dropout import Dropout
from models.layers.lookup import lookup_sum
from models.layers.lstm import lstm_in_blocks
from models.loading import host_lengths
from models.panel import Batch, PanelSchema

__all__ = ["DeepARNetwork", "State"]

State = tuple[Tensor, Tensor]
"""Hidden and cell state, ``(layers, B, hidden)`` each."""

COLUMNS = 4096
"""Paths that advance together on a CPU: their gates stay in its cache."""


class DeepARNetwork(nn.Module):
    """LSTM over [target one step before, known reals, embedded categories], and two parameters a step.

    Reals are those of `models.panel` at ``keep``: the target, then what is known over the horizon.

    Parameters
    ----------
    schema : PanelSchema
        The inputs.
    config : DeepARConfig
        Sizes.
    """

    offsets: Tensor
    paths_share_masks = False

    def __init__(self, schema: PanelSchema, config: DeepARConfig) -> None:
        super().__init__()
        self.categories = tuple(name for name, _ in schema.all_categories)
        sizes = [(count, min(8, (count + 3) // 2)) for _, count in schema.all_categories]
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in sizes)
        width, hidden = 1 + len(schema.future_reals) + sum(size for _, size in sizes), config.hidden_size
        first = torch.tensor([0, *(count for count, _ in sizes)]).cumsum(0)[:-1]
        self.register_buffer("offsets", first, persistent=False)
        self.n_static = len(schema.static)
        widths = [width, *[hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in widths)
        self.between = nn.ModuleList(Dropout(config.dropout) for _ in widths[1:])
        self.project = nn.Linear(hidden, 2)
        self.hidden_size = hidden

    def inputs(self, reals: Tensor, static: Tensor, codes: Tensor, previous: Tensor) -> Tensor:
        """Inputs ``(B, T, W)``: ``previous``, ``reals`` less the first, and all categories embedded.

        ``previous`` ``(B, T)`` is the target one step before each step, ``reals`` are ``(B, T, R)``, ``static`` ``(B, S)``
        codes of a window and ``codes`` ``(B, T, C)`` those of a step.
        """
        parts = [previous[..., None], reals[..., 1:]]
        if self.n_static:  # embedded once a window
            embedded = self._embed(static, slice(0, self.n_static))
            parts.append(embedded[:, None].expand(-1, reals.shape[1], -1))
        if codes.shape[-1]:
            parts.append(self._embed(codes, slice(self.n_static, None)))
        return torch.cat(parts, dim=-1)

    def _embed(self, codes: Tensor, chosen: slice) -> Tensor:
        """Embeddings ``(..., width)`` of codes ``(..., C)``, those of the ``chosen`` categories, side by side."""
        tables, offsets = list(self.embeddings)[chosen], self.offsets[chosen]
        table = torch.block_diag(*(cast(nn.Embedding, each).weight for each in tables))
        return lookup_sum((codes + (offsets - offsets[0])).flatten(0, -2), table).view(*codes.shape[:-1], -1)

    def split_codes(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of a window ``(B, S)``, which are those of its first step, and of its steps ``(B, T, C)``."""
        return codes[:, 0, : self.n_static], codes[..., self.n_static :]

    def forward(self, batch: Batch) -> Tensor:
        """Parameters ``(B, H, 2)`` of each step of the horizon, given all true values before it."""
        reals = torch.cat([batch["encoder_cont"], batch["decoder_cont"]], dim=1)
        static, codes = self.split_codes(torch.cat([batch["encoder_cat"], batch["decoder_cat"]], dim=1))
        lengths, steps, horizon = batch["encoder_lengths"], batch["encoder_cont"].shape[1], batch["decoder_cont"].shape[1]
        full = bool((host_lengths(batch) == steps).all())
        if not full:  # let each horizon follow its history at once; what is left over comes last and is not read
            step = torch.arange(steps + horizon, device=lengths.device)[None].expand(len(lengths), -1)
            step = torch.where(step < lengths[:, None], step, step + (steps - lengths)[:, None])
            step = step.clamp(max=steps + horizon - 1)[..., None]
            reals = reals.gather(1, step.expand_as(reals))
            codes = codes.gather(1, step.expand_as(codes))
        hidden = self.inputs(reals[:, 1:], static, codes[:, 1:], reals[:, :-1, 0])
        hidden, _ = self._run(hidden, None)
        if full:
            hidden = hidden[:, steps - 1 :]
        else:
            step = (lengths - 1)[:, None] + torch.arange(horizon, device=lengths.device)
            hidden = hidden.gather(1, step[..., None].expand(-1, -1, self.hidden_size))
        result: Tensor = self.project(hidden)
        return result

    def encode(self, batch: Batch) -> State:
        """State after the history: its last input is the last known step, of which the target is still to be read."""
        reals, lengths = batch["encoder_cont"], batch["encoder_lengths"] - 1
        if reals.shape[1] == 1:
            zero = reals.new_zeros((len(self.layers), len(reals), self.hidden_size))
            return zero, zero
        static, codes = self.split_codes(batch["encoder_cat"])
        inputs = self.inputs(reals[:, 1:], static, codes[:, 1:], reals[:, :-1, 0])
        here = host_lengths(batch).cpu() - 1
        if bool((here == inputs.shape[1]).all()):
            return self._run(inputs, None)[1]
        packed = pack_padded_sequence(inputs, here.clamp(min=1), batch_first=True, enforce_sorted=False)
        begun = (lengths > 0)[None, :, None]
        hidden, cell = self._run(packed, None)[1]
        return hidden * begun, cell * begun

    def decode_all(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Parameters ``(B, T, 2)`` and the state after ``inputs`` ``(B, T, W)``, from ``state`` on."""
        hidden, state = self._run(inputs, state)
        return self.project(hidden), state

    def _run(self, values: Any, state: State | None) -> tuple[Any, State]:
        """All layers over a tensor or packed sequence, with dropout between them: outputs of the last and the state."""
        states = []
        for index, layer in enumerate(self.layers):
            if index:
                drop = self.between[index - 1]
                packed = isinstance(values, PackedSequence)
                values = values._replace(data=drop(values.data)) if packed else drop(values)
            start = None if state is None else (state[0][index : index + 1], state[1][index : index + 1])
            values, last = lstm_in_blocks(layer, values, start)
            states.append(last)
        hidden, cell = (torch.cat(parts) for parts in zip(*states, strict=True))
        return values, (hidden, cell)

    @torch.no_grad()
    def sample(self, inputs: Tensor, state: State, noise: Tensor, normal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Ancestral sample paths ``(B, paths, H)``: each step feeds on the value that was drawn for the one before.

        ``inputs`` ``(B, H, W)`` are the decoder's, of whose targets the first alone is read; ``noise`` ``(H, B, paths)``,
        or ``(H, 1, paths)`` for all windows alike, is standard normal; ``normal`` turns parameters ``(..., 2)`` into mean
        and deviation. Dropout, where it is on, has one mask a path and layer, which
        all paths of a window share if ``paths_share_masks``.
        """
        size = max(1, COLUMNS // noise.shape[2]) if inputs.device.type == "cpu" else len(inputs)
        noise = noise.expand(-1, len(inputs), -1)
        blocks = zip(inputs.split(size), state[0].split(size, 1), state[1].split(size, 1), noise.split(size, 1), strict=True)
        return torch.cat([self._sample(block, (hidden, cell), drawn, normal) for block, hidden, cell, drawn in blocks])

    def _sample(self, inputs: Tensor, state: State, noise: Tensor, normal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """One block of windows, with noise ``(H, B, paths)``.

        Feature-major: the paths are columns, and a gate is a contiguous slab of rows.

        ``carried`` has the rows [last target, hidden state of layer 0, of layer 1, ...], so that what a layer reads,
        the layer below it and itself, are neighbouring rows and one matrix product makes its gates.
        """
        count, width, paths = len(inputs), self.hidden_size, noise.shape[2]
        cells = [self._cell(layer) for layer in self.layers]
        matrix, bias = cells[0]
        known = (inputs[..., 1:] @ matrix[:, 1:-width].t() + bias[:, 0]).permute(1, 2, 0)  # (H, 4 hidden, B)
        cells[0] = torch.cat([matrix[:, :1], matrix[:, -width:]], dim=1), bias
        columns, copies = (count, paths) if self.paths_share_masks else (count * paths, 1)
        masks = [drop.factors((width, columns), inputs) for drop in self.between if isinstance(drop, Dropout)]
        masks = [None if mask is None else mask.repeat_interleave(copies, -1) for mask in masks]
        carried = torch.cat([inputs[:, 0, :1].t(), *state[0].transpose(1, 2)])
        memory = state[1].transpose(1, 2).contiguous()
        if any(mask is not None for mask in masks):  # else all paths are one until the first draw
            carried, memory = (values.repeat_interleave(paths, -1) for values in (carried, memory))
        drawn: list[Tensor] = []
        for at_step, shock in zip(known, noise, strict=True):
            for index, (matrix, bias) in enumerate(cells):
                own = 1 + index * width
                read = carried[max(own - width, 0) : own + width]
                mask = masks[index - 1] if index else None
                if mask is not None:
                    read = torch.cat([read[:width] * mask, read[width:]])
                gates = matrix @ read
                if index:
                    gates += bias
                else:
                    gates.view(4 * width, count, -1).add_(at_step[..., None])
                into, keep, out, new = gates.sigmoid_().chunk(4)
                cell = memory[index]  # c = f c + i tanh(g) and h = o tanh(c), with tanh(x) = 2 sigmoid(2 x) - 1
                cell.mul_(keep).addcmul_(into, new, value=2.0).sub_(into)
                torch.mul(out, (2.0 * cell).sigmoid_().mul_(2.0).sub_(1.0), out=carried[own : own + width])
            mean, deviation = normal(self.project(carried[-width:].t()))
            if not drawn and carried.shape[1] == count:
                carried, memory = (values.repeat_interleave(paths, -1) for values in (carried, memory))
            mean, deviation = mean.view(count, -1), deviation.view(count, -1)
            drawn.append(mean + deviation * shock)
            carried[0] = drawn[-1].flatten()
        return torch.stack(drawn, dim=-1)

    def _cell(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Matrix ``(4 hidden, inputs + hidden)`` and bias ``(4 hidden, 1)`` of a layer's gates, in the order i, f, o, g.

        Torch has i, f, g, o. The rows of g are doubled, so that one sigmoid serves all four.
        """
        of_inputs, of_hidden, *biases = layer.parameters()
        into, keep, new, out = torch.cat([of_inputs, of_hidden, (biases[0] + biases[1])[:, None]], dim=1).chunk(4)
        rows = torch.cat([into, keep, out, 2.0 * new])
        return rows[:, :-1], rows[:, -1:]

    def load_pytorch_forecasting(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of pytorch-forecasting's ``DeepAR.state_dict()`` of the same inputs.

        Raises KeyError for a weight that is missing and RuntimeError for one of another shape.
        """
        ours = {
            f"embeddings.{index}.weight": state[f"embeddings.embeddings.{name}.weight"]
            for index, name in enumerate(self.categories)
        }
        for index in range(len(self.layers)):
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                ours[f"layers.{index}.{part}_l0"] = state[f"rnn.{part}_l{index}"]
        for part in ("weight", "bias"):
            ours[f"project.{part}"] = state[f"distribution_projector.{part}"]
        self.load_state_dict(ours)
