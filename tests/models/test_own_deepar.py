"""The own DeepAR computes what pytorch-forecasting's does, and samples from what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.forecasters import deepar_network
from models.forecasters.config import DeepARConfig
from models.forecasters.deepar import DeepAR
from models.layers import lookup, lstm
from models.layers.lookup import lookup_sum
from models.layers.lstm import lstm_in_blocks
from models.panel import Batch, Panel, PanelSchema, Windows

MakePanel = Callable[..., Panel]

CONFIG = DeepARConfig(hidden_size=9, layers=2, dropout=0.0, paths=20)
SCHEMAS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no known": {"known": ()},
    "no categories": {"categories": (), "static": ()},
    "no lags": {"lags": ()},
    "target alone": {"known": (), "past": (), "static": (), "categories": (), "lags": ()},
}
FULL = ((0, 30), (1, 12), (0, 25))
SHORT = ((0, 30), (1, 4), (2, 1), (1, 9))


class Unscaled(nn.Module):
    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return data["prediction"]


def theirs(schema: PanelSchema, config: DeepARConfig) -> nn.Module:
    """pytorch-forecasting's network for the same inputs."""
    from pytorch_forecasting import DeepAR as Network
    from pytorch_forecasting.metrics import NormalDistributionLoss

    names = [schema.reals[index] for index in (0, *schema.future_reals)]
    categories = [name for name, _ in schema.categories]
    return Network(
        cell_type="LSTM",
        hidden_size=config.hidden_size,
        rnn_layers=config.layers,
        dropout=config.dropout,
        static_categoricals=[name for name, _ in schema.static],
        time_varying_categoricals_encoder=categories,
        time_varying_categoricals_decoder=categories,
        time_varying_reals_encoder=names,
        time_varying_reals_decoder=names[1:],
        x_reals=names,
        x_categoricals=[name for name, _ in schema.all_categories],
        embedding_sizes={name: (count, min(8, (count + 3) // 2)) for name, count in schema.all_categories},
        target="target",
        loss=NormalDistributionLoss(),
        logging_metrics=nn.ModuleList(),
        output_transformer=Unscaled(),
    )


def pair(schema: PanelSchema, config: DeepARConfig = CONFIG) -> tuple[DeepAR, nn.Module]:
    """Our forecaster and their network with one set of weights, in float64."""
    torch.manual_seed(0)
    other, own = theirs(schema, config).double(), DeepAR(schema, config).double()
    own.network.load_pytorch_forecasting(other.state_dict())
    return own.eval(), other.eval()


def batch_of(panel: Panel, *pairs: tuple[int, int]) -> Batch:
    series, cutoff = torch.tensor(pairs).unbind(1)
    batch = panel.gather(Windows(series, cutoff))
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def teacher_forced(other: nn.Module, inputs: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Their parameters over the horizon and their state after the history."""
    rows = torch.arange(len(inputs["encoder_lengths"]))
    last = inputs["encoder_cont"][rows, inputs["encoder_lengths"] - 1, 0]
    state = other.encode(inputs)  # type: ignore[operator]
    decoder = other.construct_input_vector(  # type: ignore[operator]
        inputs["decoder_cat"], inputs["decoder_cont"], one_off_target=last[:, None]
    )
    return other.decode_all(decoder, state)[0], state  # type: ignore[operator]


@pytest.mark.parametrize("windows", [FULL, SHORT, SHORT[1:3], SHORT[2:3]], ids=["full", "short", "all short", "one step"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_equals_pytorch_forecastings(name: str, windows: tuple, make_panel: MakePanel, schema: PanelSchema) -> None:
    """Parameters of every step, in one pass or from the encoded state, that state, and every gradient, in float64."""
    schema = replace(schema, **SCHEMAS[name])
    own, other = pair(schema)
    batch = batch_of(make_panel(schema=schema), *windows)
    inputs = own._inputs(batch)
    expected, state = teacher_forced(other, inputs)
    actual = own.network(inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    for ours, others in zip(own.network.encode(inputs), state, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-9, atol=1e-11)
    stepwise, _ = own.network.decode_all(own._decoder_inputs(inputs), own.network.encode(inputs))
    torch.testing.assert_close(stepwise, expected, rtol=1e-9, atol=1e-11)

    above = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for values in (actual, expected):
        (values * above).sum().backward()
    copy = DeepAR(schema, CONFIG).double().network
    copy.load_pytorch_forecasting({key: each.grad for key, each in other.named_parameters() if each.grad is not None})
    for key, gradient in copy.named_parameters():
        torch.testing.assert_close(own.network.get_parameter(key).grad, gradient.detach(), rtol=1e-9, atol=1e-11)


def test_has_as_many_parameters(schema: PanelSchema) -> None:
    for layers in (1, 3):
        config = CONFIG.model_copy(update={"layers": layers})
        own, other = DeepAR(schema, config), theirs(schema, config)
        assert sum(map(torch.numel, own.parameters())) == sum(map(torch.numel, other.parameters()))


def test_a_missing_weight_is_named(schema: PanelSchema) -> None:
    state = theirs(schema, CONFIG).state_dict()
    del state["rnn.bias_hh_l1"]
    with pytest.raises(KeyError, match=r"rnn\.bias_hh_l1"):
        DeepAR(schema, CONFIG).network.load_pytorch_forecasting(state)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", ["everything", "target alone"])
def test_paths_obey_the_lstm(name: str, layers: int, make_panel: MakePanel, schema: PanelSchema) -> None:
    """Each value of a path is the teacher-forced mean given the path before it, plus its deviation times normal noise.

    The noise is found by solving for it; over all paths its mean is within 4.5 / sqrt(n) of 0 and its mean square
    within 4.5 sqrt(2 / n) of 1.
    """
    schema = replace(schema, **SCHEMAS[name])
    own, _ = pair(schema, CONFIG.model_copy(update={"layers": layers}))
    batch, paths = batch_of(make_panel(schema=schema), *SHORT), 500
    torch.manual_seed(0)
    drawn, features = own.sample_paths(batch, paths)
    assert drawn.shape == (4, paths, schema.horizon)
    torch.testing.assert_close(features, own.encode(batch))
    repeated = {key: value.repeat_interleave(paths, 0) for key, value in batch.items()}
    repeated["decoder_cont"] = repeated["decoder_cont"].clone()
    repeated["decoder_cont"][..., 0] = drawn.flatten(0, 1)
    with torch.no_grad():
        mean, deviation = own._normal(own.network(own._inputs(repeated)))
    noise = (drawn.flatten(0, 1) - mean) / deviation
    count = noise.numel()
    assert abs(float(noise.mean())) < 4.5 * count**-0.5
    assert abs(float(noise.square().mean()) - 1.0) < 4.5 * (2.0 / count) ** 0.5
    successive = (noise[:, 1:] * noise[:, :-1]).mean()  # were a step fed with another path's past, it would not vanish
    assert abs(float(successive)) < 4.5 * (count * (1 - 1 / schema.horizon)) ** -0.5


def test_blocks_of_paths_do_not_change_them(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise every path is one, however many advance together."""
    own, _ = pair(panel.schema)
    batch = batch_of(panel, *SHORT)
    own._normal = lambda parameters: (parameters[..., 0], 0.0 * parameters[..., 1])  # type: ignore[method-assign]
    together = own.sample_paths(batch, 7)[0]
    for columns in (1, 7, 14, 21):
        monkeypatch.setattr(deepar_network, "COLUMNS", columns)
        torch.testing.assert_close(own.sample_paths(batch, 7)[0], together)
    torch.testing.assert_close(together, together[:, :1].expand(-1, 7, -1))


def test_dropout_has_one_mask_a_path(panel: Panel) -> None:
    """With dropout on and noise off, paths differ by their masks alone, from the first step on."""
    own = DeepAR(panel.schema, CONFIG.model_copy(update={"dropout": 0.5})).eval()
    own._normal = lambda parameters: (parameters[..., 0], 0.0 * parameters[..., 1])  # type: ignore[method-assign]
    series, cutoff = torch.tensor(FULL).unbind(1)
    batch = panel.gather(Windows(series, cutoff))
    assert not own.sample_paths(batch, 30)[0].std(1).any()
    for module in own.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert (own.sample_paths(batch, 30)[0].std(1) > 0).all()


def test_an_lstm_in_blocks_is_the_lstm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, state and gradients, for a length that is no multiple of the block."""
    torch.manual_seed(0)
    network, values = nn.LSTM(3, 5, 2, batch_first=True).double(), torch.randn(4, 29, 3, dtype=torch.float64)
    start = (torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64))
    results = []
    for block in (10**9, 1):
        monkeypatch.setattr(lstm, "BLOCK", block)
        output, state = lstm_in_blocks(network, values, start)
        total = output.square().sum() + state[0].sum() + state[1].sum()
        results.append([output, *state, *torch.autograd.grad(total, list(network.parameters()))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_both_ways_to_look_up_agree(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    codes = torch.stack([torch.randint(0, 4, (20,)), torch.randint(4, 9, (20,))], dim=1)
    weights = torch.randn(20, 2, dtype=torch.float64, requires_grad=True) if weighted else None
    wanted = [table] if weights is None else [table, weights]
    results = []
    for rows in (0, 100):
        monkeypatch.setattr(lookup, "DENSE", rows)
        total = lookup_sum(codes, table, weights)
        results.append([total, *torch.autograd.grad(total.square().sum(), wanted)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
