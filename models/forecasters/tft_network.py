"""The network of the Temporal Fusion Transformer (Lim et al., 2021), fast on a CPU.

The same function with the same parameters as pytorch-forecasting's ``TemporalFusionTransformer`` (whose departures
from the paper it keeps: categories are not transformed by networks of their own, residuals are stretched by linear
interpolation); `TFTNetwork.load_pytorch_forecasting` takes its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.forecasters.config import TFTConfig
from models.layers.gated_residual import GateAddNorm, GatedResidual
from models.layers.interpretable_attention import InterpretableAttention, decoder_mask
from models.layers.lstm import lstm_in_blocks
from models.layers.variable_selection import VariableSelection
from models.loading import host_lengths
from models.panel import Batch, PanelSchema

__all__ = ["TFTNetwork", "TFTOutput"]


class TFTOutput(NamedTuple):
    """What the network computes for B windows of T steps of history and H of horizon.

    Attributes
    ----------
    prediction : ``(B, H, outputs)``
    encoded : features of each step of the history ``(B, T, hidden)``, after the LSTM's gate
    attention : weights of each head ``(B, H, heads, T + H)``; row h says what step h of the forecast reads; None where
        they were not asked for
    static_weights, encoder_weights, decoder_weights : selection weights ``(B, V)``, ``(B, T, V)``, ``(B, H, V)``
    """

    prediction: Tensor
    encoded: Tensor
    attention: Tensor | None
    static_weights: Tensor
    encoder_weights: Tensor
    decoder_weights: Tensor


class TFTNetwork(nn.Module):
    """Variable selection, LSTM encoder and decoder, attention over time: a batch -> ``outputs`` numbers a step.

    Parameters
    ----------
    schema : PanelSchema
        The inputs. Static categories, known-future categories and all reals are read in the history; known-future
        reals, the target's lags and categories over the horizon.
    config : TFTConfig
        Sizes.
    outputs : int
        Numbers a step, one for each quantile level.
    """

    future: Tensor

    def __init__(self, schema: PanelSchema, config: TFTConfig, outputs: int) -> None:
        super().__init__()
        hidden, dropout, width = config.hidden_size, config.dropout, config.hidden_continuous_size
        self.schema = schema
        self.n_static = len(schema.static)
        sizes = [(count, min(8, (count + 3) // 2, hidden)) for _, count in schema.all_categories]
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in sizes)
        n_reals = len(schema.reals)
        self.real_slope = nn.Parameter(torch.empty(n_reals, width).uniform_(-1.0, 1.0))  # nn.Linear's own start
        self.real_start = nn.Parameter(torch.empty(n_reals, width).uniform_(-1.0, 1.0))
        self.register_buffer("future", torch.tensor(schema.future_reals, dtype=torch.long), persistent=False)
        static, varying = sizes[: self.n_static], sizes[self.n_static :]
        self.static_selection = VariableSelection(static, 0, width, hidden, dropout, 0)
        self.encoder_selection = VariableSelection(varying, n_reals, width, hidden, dropout, hidden)
        self.decoder_selection = VariableSelection(varying, len(schema.future_reals), width, hidden, dropout, hidden)

        def residual(context: int = 0) -> GatedResidual:
            return GatedResidual(hidden, hidden, hidden, dropout, context)

        self.selection_context, self.enrichment_context = residual(), residual()
        self.initial_hidden, self.initial_cell = residual(), residual()
        between = dropout if config.lstm_layers > 1 else 0.0
        self.encoder = nn.LSTM(hidden, hidden, config.lstm_layers, dropout=between, batch_first=True)
        self.decoder = nn.LSTM(hidden, hidden, config.lstm_layers, dropout=between, batch_first=True)
        self.after_lstm = GateAddNorm(hidden, hidden, dropout)
        self.enrichment = residual(context=hidden)
        self.attention = InterpretableAttention(hidden, config.attention_heads, dropout)
        self.after_attention = GateAddNorm(hidden, hidden, dropout)
        self.feed_forward = residual()
        self.before_output = GateAddNorm(hidden, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, batch: Batch, attention: bool = True) -> TFTOutput:
        """The whole network; ``batch`` in the layout of `models.panel`, histories left-aligned.

        Without ``attention`` the weights of the heads, which training does not need, are not written out.
        """
        history, horizon = batch["encoder_cont"], batch["decoder_cont"].index_select(2, self.future)
        lengths, steps = batch["encoder_lengths"], history.shape[1]
        here = host_lengths(batch).cpu()
        full = bool((here == steps).all())
        tables = [table.weight for table in self.embeddings.children() if isinstance(table, nn.Embedding)]
        static, static_weights = self._static(batch["encoder_cat"][:, :1, : self.n_static], tables[: self.n_static], history)
        varying = tables[self.n_static :]
        context = self.selection_context(static)
        codes = batch["encoder_cat"][..., self.n_static :]
        past, encoder_weights = self.encoder_selection(codes, varying, history, self.real_slope, self.real_start, context)
        codes, slope, start = (
            batch["decoder_cat"][..., self.n_static :],
            self.real_slope[self.future],
            self.real_start[self.future],
        )
        coming, decoder_weights = self.decoder_selection(codes, varying, horizon, slope, start, context)

        layers = self.encoder.num_layers
        hidden, cell = (net(static).expand(layers, -1, -1).contiguous() for net in (self.initial_hidden, self.initial_cell))
        past_output, state = self._encode(past, (hidden, cell), None if full else here)
        coming_output, _ = lstm_in_blocks(self.decoder, coming, state)
        sequence = self.after_lstm(torch.cat([past_output, coming_output], dim=1), torch.cat([past, coming], dim=1))
        enriched = self.enrichment(sequence, self.enrichment_context(static)[:, None])
        mask = decoder_mask(steps, horizon.shape[1], None if full else lengths).to(history.device)
        queries = enriched[:, steps:]
        read = self.attention(queries, enriched, mask)
        weights = self.attention.weights(queries, enriched, mask) if attention else None
        output = self.feed_forward(self.after_attention(read, queries))
        output = self.before_output(output, sequence[:, steps:])
        encoded = sequence[:, :steps]
        return TFTOutput(self.output(output), encoded, weights, static_weights, encoder_weights, decoder_weights)

    def _static(self, codes: Tensor, tables: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Static embedding ``(B, hidden)`` and selection weights ``(B, V)`` from codes ``(B, 1, V)``."""
        none = like.new_zeros((len(codes), 1, 0))
        empty = self.real_slope[:0]
        selected, weights = self.static_selection(codes, tables, none, empty, empty)
        return selected[:, 0], weights[:, 0]

    def _encode(
        self, past: Tensor, state: tuple[Tensor, Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """LSTM over the histories, each to its own length: outputs ``(B, T, hidden)`` and the state after the last step.

        ``lengths`` ``(B,)`` lie in the CPU's memory; None for histories that are all whole.
        """
        if lengths is None:
            return lstm_in_blocks(self.encoder, past, state)
        order = lengths.argsort(descending=True, stable=True)  # torch's own sort asks the device for the way back
        there, back = order.to(past.device), order.argsort().to(past.device)
        begun = tuple(each.index_select(1, there) for each in state)
        packed = pack_padded_sequence(past.index_select(0, there), lengths[order], batch_first=True)
        output, last = self.encoder(packed, begun)
        output = pad_packed_sequence(output, batch_first=True, total_length=past.shape[1])[0]
        return output.index_select(0, back), tuple(each.index_select(1, back) for each in last)

    def load_pytorch_forecasting(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of pytorch-forecasting's ``TemporalFusionTransformer.state_dict()`` of the same inputs.

        Raises KeyError for a weight that is missing and RuntimeError for one of another shape.
        """
        names = [name for name, _ in self.schema.all_categories]
        known = [self.schema.reals[index] for index in self.schema.future_reals]
        varying = names[self.n_static :]
        ours: dict[str, Tensor] = {
            f"embeddings.{index}.weight": state[f"input_embeddings.embeddings.{name}.weight"]
            for index, name in enumerate(names)
        }
        ours["real_slope"] = torch.stack([state[f"prescalers.{name}.weight"][:, 0] for name in self.schema.reals])
        ours["real_start"] = torch.stack([state[f"prescalers.{name}.bias"] for name in self.schema.reals])
        for key, categories, reals in (
            ("static", names[: self.n_static], []),
            ("encoder", varying, list(self.schema.reals)),
            ("decoder", varying, known),
        ):
            ours |= _selection(state, f"{key}_selection", f"{key}_variable_selection", categories, reals)
        for own, theirs in GATED_RESIDUALS.items():
            ours |= _residual(state, own, theirs)
        for own, theirs in {"after_attention": "post_attn_gate_norm", "before_output": "pre_output_gate_norm"}.items():
            ours |= _renamed(state, own, theirs, GATE_ADD_NORM)
        ours |= _renamed(state, "after_lstm.gate.linear", "post_lstm_gate_encoder.fc", {"": ""})
        ours |= _renamed(state, "after_lstm.norm", "post_lstm_add_norm_encoder.norm", {"": ""})
        for own, theirs in {"encoder": "lstm_encoder", "decoder": "lstm_decoder", "output": "output_layer"}.items():
            ours |= _renamed(state, own, theirs, {"": ""})
        heads = range(self.attention.heads)
        for own, theirs in (("query", "q"), ("key", "k")):
            for part in ("weight", "bias"):
                parts = [state[f"multihead_attn.{theirs}_layers.{head}.{part}"] for head in heads]
                ours[f"attention.{own}.{part}"] = torch.cat(parts)
        ours |= _renamed(state, "attention", "multihead_attn", {"value": "v_layer", "output": "w_h"})
        self.load_state_dict(ours)


GATED_RESIDUALS = {
    "selection_context": "static_context_variable_selection",
    "enrichment_context": "static_context_enrichment",
    "initial_hidden": "static_context_initial_hidden_lstm",
    "initial_cell": "static_context_initial_cell_lstm",
    "enrichment": "static_enrichment",
    "feed_forward": "pos_wise_ff",
}
"""Our name -> pytorch-forecasting's, of the gated residual networks outside variable selection."""

GATE_ADD_NORM = {"gate.linear": "glu.fc", "norm": "add_norm.norm"}

STACKED = {
    "inner_weight": "fc1.weight",
    "inner_bias": "fc1.bias",
    "outer_weight": "fc2.weight",
    "outer_bias": "fc2.bias",
    "gate_weight": "gate_norm.glu.fc.weight",
    "gate_bias": "gate_norm.glu.fc.bias",
    "norm_weight": "gate_norm.add_norm.norm.weight",
    "norm_bias": "gate_norm.add_norm.norm.bias",
}
STACKED_SKIP = {
    "skip_mask": "resample_norm.mask",
    "skip_weight": "resample_norm.norm.weight",
    "skip_bias": "resample_norm.norm.bias",
}
"""Parameter of `RealNetworks` -> that of each of pytorch-forecasting's gated residual networks."""


def _renamed(state: Mapping[str, Tensor], own: str, theirs: str, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Everything below ``theirs.part``, named ``own.part``, for each of ``parts`` (ours -> theirs)."""
    found: dict[str, Tensor] = {}
    for part, other in parts.items():
        prefix, target = ".".join(filter(None, (theirs, other))) + ".", ".".join(filter(None, (own, part)))
        found |= {f"{target}.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    return found


def _residual(state: Mapping[str, Tensor], own: str, theirs: str) -> dict[str, Tensor]:
    """A gated residual network."""
    gate = {f"gate_norm.{part}": f"gate_norm.{other}" for part, other in GATE_ADD_NORM.items()}
    parts = {"inner": "fc1", "outer": "fc2", "context": "context", "resample": "resample_norm", **gate}
    return _renamed(state, own, theirs, parts)


def _selection(
    state: Mapping[str, Tensor], own: str, theirs: str, categories: Sequence[str], reals: Sequence[str]
) -> dict[str, Tensor]:
    """A variable selection network: its reals' networks are stacked."""
    found = _residual(state, f"{own}.weigh", f"{theirs}.flattened_grn")
    networks = f"{theirs}.single_variable_grns"
    for index, name in enumerate(categories):
        found |= _renamed(state, f"{own}.category_norms.{index}", f"{networks}.{name}", {"": ""})
    if reals:
        skip = STACKED_SKIP if f"{networks}.{reals[0]}.resample_norm.mask" in state else {}
        for part, other in {**STACKED, **skip}.items():
            found[f"{own}.reals.{part}"] = torch.stack([state[f"{networks}.{name}.{other}"] for name in reals])
    return found
