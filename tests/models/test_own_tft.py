"""The own Temporal Fusion Transformer computes what pytorch-forecasting's does, and says what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.forecasters.config import TFTConfig
from models.forecasters.tft import TFT
from models.forecasters.tft_network import TFTNetwork
from models.layers.dropout import Dropout
from models.layers.gated_residual import GatedResidual
from models.layers.gated_sum import BLOCK, gated_sum, gated_sum_reference
from models.layers.variable_selection import RealNetworks
from models.panel import Batch, Panel, PanelSchema, Windows
from models.predictive import LEVELS

MakePanel = Callable[..., Panel]

CONFIG = TFTConfig(hidden_size=12, attention_heads=3, hidden_continuous_size=5, dropout=0.0)
SCHEMAS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no past-only": {"past": ()},
    "no known": {"known": ()},
    "no categories": {"categories": (), "static": ()},
    "no lags": {"lags": ()},
    "two statics": {"static": (("store", 4), ("region", 4)), "categories": (("weekday", 8), ("holiday", 8))},
    "target and a category": {"known": (), "past": (), "static": (), "lags": ()},
    "target and a lag": {"known": (), "past": (), "static": (), "categories": (), "lags": (4,)},
    "target alone": {"known": (), "past": (), "static": (), "categories": (), "lags": ()},
}


class Unscaled(nn.Module):
    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return data["prediction"]


def theirs(schema: PanelSchema, config: TFTConfig) -> nn.Module:
    """pytorch-forecasting's network for the same inputs."""
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import QuantileLoss

    categories = [name for name, _ in schema.categories]
    return TemporalFusionTransformer(
        hidden_size=config.hidden_size,
        lstm_layers=config.lstm_layers,
        dropout=config.dropout,
        attention_head_size=config.attention_heads,
        hidden_continuous_size=config.hidden_continuous_size,
        output_size=len(LEVELS),
        loss=QuantileLoss(list(LEVELS)),
        max_encoder_length=schema.context,
        static_categoricals=[name for name, _ in schema.static],
        time_varying_categoricals_encoder=categories,
        time_varying_categoricals_decoder=categories,
        time_varying_reals_encoder=list(schema.reals),
        time_varying_reals_decoder=[schema.reals[index] for index in schema.future_reals],
        x_reals=list(schema.reals),
        x_categoricals=[name for name, _ in schema.all_categories],
        embedding_sizes={name: (count, min(8, (count + 3) // 2)) for name, count in schema.all_categories},
        logging_metrics=nn.ModuleList(),
        output_transformer=Unscaled(),
    )


def pair(schema: PanelSchema, config: TFTConfig = CONFIG) -> tuple[TFTNetwork, nn.Module]:
    """Our network and theirs with one set of weights, none of them at a special value such as 0 or 1."""
    torch.manual_seed(0)
    other, own = theirs(schema, config).to(torch.get_default_dtype()), TFTNetwork(schema, config, len(LEVELS))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own.load_pytorch_forecasting(other.state_dict())
    return own.eval(), other.eval()


@contextmanager
def float64() -> Iterator[None]:
    """Networks that are built within are exact to float64, buffers included."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def batch_of(panel: Panel, *pairs: tuple[int, int]) -> Batch:
    series, cutoff = torch.tensor(pairs).unbind(1)
    return panel.gather(Windows(series, cutoff))


FULL = ((0, 30), (1, 12), (0, 25))
SHORT = ((0, 30), (1, 4), (2, 1), (1, 9))


@pytest.mark.parametrize("windows", [FULL, SHORT, SHORT[1:3]], ids=["full", "short", "all short"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_equals_pytorch_forecastings(name: str, windows: tuple, make_panel: MakePanel, schema: PanelSchema) -> None:
    """Quantiles, attention, selection weights: float32, so within 1e-5 or so of numbers of order one."""
    schema = replace(schema, **SCHEMAS[name])
    own, other = pair(schema)
    batch = batch_of(make_panel(schema=schema), *windows)
    with torch.no_grad():
        ours, expected = own(batch), other(batch)
    steps, lengths = ours.encoder_weights.shape[1], batch["encoder_lengths"]
    torch.testing.assert_close(ours.prediction, expected["prediction"], rtol=1e-4, atol=2e-5)
    attention = torch.cat([expected["encoder_attention"], expected["decoder_attention"]], dim=-1)
    torch.testing.assert_close(ours.attention, attention, rtol=1e-4, atol=1e-5)
    real = torch.arange(steps)[None] < lengths[:, None]
    torch.testing.assert_close(ours.encoder_weights[real], expected["encoder_variables"][:, :, 0][real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decoder_weights, expected["decoder_variables"][:, :, 0], rtol=1e-4, atol=1e-5)
    static = expected["static_variables"].flatten(1)
    torch.testing.assert_close(ours.static_weights, static, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_continuous_size": 12},
        {"hidden_continuous_size": 16},
        {"hidden_continuous_size": 1},
        {"hidden_continuous_size": 2},
        {"attention_heads": 1, "lstm_layers": 2},
        {"hidden_size": 4, "attention_heads": 2},
    ],
    ids=str,
)
def test_equals_pytorch_forecastings_in_every_size(change: dict[str, int], panel: Panel) -> None:
    config = CONFIG.model_copy(update=change)
    own, other = pair(panel.schema, config)
    batch = batch_of(panel, *SHORT)
    with torch.no_grad():
        torch.testing.assert_close(own(batch).prediction, other(batch)["prediction"], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("windows", [FULL, SHORT], ids=["full", "short"])
@pytest.mark.parametrize("name", ["everything", "target and a lag", "two statics"])
def test_gradients_equal_pytorch_forecastings(name: str, windows: tuple, make_panel: MakePanel, schema: PanelSchema) -> None:
    """In float64, of every parameter and of the inputs, to nine digits of the largest."""
    schema = replace(schema, **SCHEMAS[name])
    with float64():
        own, other = pair(schema)
        copied = TFTNetwork(schema, CONFIG, len(LEVELS))
    batch = {
        key: value.double() if value.is_floating_point() else value
        for key, value in batch_of(make_panel(schema=schema), *windows).items()
    }
    weights = torch.randn(len(windows), schema.horizon, len(LEVELS), dtype=torch.float64)
    gradients = []
    for network, read in ((own, lambda output: output.prediction), (other, lambda output: output["prediction"])):
        inputs = [batch[key].clone().requires_grad_() for key in ("encoder_cont", "decoder_cont")]
        output = read(network({**batch, "encoder_cont": inputs[0], "decoder_cont": inputs[1]}))
        (output * weights).sum().backward()
        gradients.append([each.grad if each.grad is not None else torch.zeros_like(each) for each in inputs])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    copied.load_pytorch_forecasting(  # their gradients in our layout
        {key: value.grad if value.grad is not None else torch.zeros_like(value) for key, value in named(other).items()}
    )
    scale = max(float(parameter.grad.abs().max()) for parameter in own.parameters() if parameter.grad is not None)
    for key, expected in copied.named_parameters():
        actual = own.get_parameter(key).grad
        actual = torch.zeros_like(expected) if actual is None else actual
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-8, atol=1e-9 * scale, msg=f"{key} differs")


def named(network: nn.Module) -> dict[str, nn.Parameter]:
    return dict(network.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("name", SCHEMAS)
def test_has_as_many_parameters(name: str, schema: PanelSchema) -> None:
    schema = replace(schema, **SCHEMAS[name])
    own, other = TFTNetwork(schema, CONFIG, len(LEVELS)), theirs(schema, CONFIG)
    assert sum(map(torch.numel, own.parameters())) == sum(map(torch.numel, other.parameters()))


def test_begins_where_pytorch_forecastings_does(schema: PanelSchema) -> None:
    """Parameter by parameter the same spread: standard deviations over 40 draws within 5 standard errors.

    With n numbers the relative standard error of a deviation is at most 1 / sqrt(2 n) for draws with no heavier tails
    than the normal.
    """
    torch.manual_seed(1)
    draws: dict[str, list[tuple[Tensor, Tensor]]] = {}
    copy = TFTNetwork(schema, CONFIG, len(LEVELS))
    for _ in range(40):
        own = TFTNetwork(schema, CONFIG, len(LEVELS))
        copy.load_pytorch_forecasting(theirs(schema, CONFIG).state_dict())
        for key, value in copy.named_parameters():
            draws.setdefault(key, []).append((own.get_parameter(key).detach().clone(), value.detach().clone()))
    for key, pairs in draws.items():
        ours, others = (torch.stack(values) for values in zip(*pairs, strict=True))
        if others.std() == 0:
            torch.testing.assert_close(ours, others, msg=f"{key} differs")
        else:
            assert abs(float(ours.std() / others.std()) - 1.0) < 5.0 * ours.numel() ** -0.5, key  # two deviations


def test_a_missing_weight_is_named(schema: PanelSchema) -> None:
    state = theirs(schema, CONFIG).state_dict()
    del state["prescalers.price.bias"]
    with pytest.raises(KeyError, match=r"prescalers\.price\.bias"):
        TFTNetwork(schema, CONFIG, len(LEVELS)).load_pytorch_forecasting(state)


def arguments(count: int, columns: int, hidden: int, output: int, dropout: float) -> list[Tensor | None]:
    """Random arguments of `gated_sum`, in its order, the pair of rows flattened."""
    shapes = [
        (count, columns),
        (count, hidden, 2),
        (count, hidden, hidden),
        (count, hidden),
        (count, 2 * output, hidden + 1),
        (count, columns),
        (count, columns),
        (count, output, 3),
        (count, output),
        (count, output),
        (count, columns),
    ]
    generator = torch.Generator().manual_seed(5)
    values: list[Tensor | None] = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    ]
    factors = None
    if dropout:
        factors = Dropout(dropout).factors((count, hidden, columns), torch.zeros(1, dtype=torch.float64))
    values.insert(4, factors)
    return values


@pytest.mark.parametrize("columns", [1, 7, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gated_sum_equals_its_reference(columns: int, dropout: float) -> None:
    """Values and every gradient in float64, over one block and several."""
    values = arguments(3, columns, 4, 6, dropout)
    above = torch.randn(columns, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [value for value in values if value is not None and value.requires_grad]
    results = []
    for function in (gated_sum, gated_sum_reference):
        x, inner, outer, outer_bias, factors, gate, first, second, *rest = values
        output = function(x, inner, outer, outer_bias, factors, gate, (first, second), *rest)  # type: ignore[arg-type]
        results.append([output.detach(), *torch.autograd.grad((output * above).sum(), wanted)])  # type: ignore[arg-type]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_skip_connection_is_its_layer_norm(size: float) -> None:
    """The five numbers give LayerNorm's result for small and large x, and where slope and start are parallel."""
    torch.manual_seed(0)
    networks = RealNetworks(3, 2, 8, 0.0)  # two entries: slope and start less their means are always parallel
    with torch.no_grad():
        networks.skip_mask.normal_()
        networks.skip_weight.normal_()
        networks.skip_bias.normal_()
    x, slope, start = size * torch.randn(3, 50), torch.randn(3, 2), torch.randn(3, 2)
    first, second, matrix = networks._skip(x, slope, start)
    actual = matrix @ torch.stack([torch.ones_like(x), first, second], dim=1)
    embedded = slope.double()[:, None] * x.double()[..., None] + start.double()[:, None]
    stretched = (embedded @ networks.stretch.double()) * (2 * networks.skip_mask.double().sigmoid())[:, None]
    expected = nn.functional.layer_norm(stretched, (8,))
    expected = expected * networks.skip_weight[:, None] + networks.skip_bias[:, None]
    torch.testing.assert_close(actual.transpose(1, 2), expected.float(), rtol=1e-4, atol=1e-4)


def test_dropout_keeps_its_share_and_the_mean() -> None:
    """Of n = 400,000 entries a share within 5 sqrt(p (1 - p) / n) of 1 - p is kept; neighbours are independent."""
    torch.manual_seed(0)
    count, p = 400_000, 0.3
    output = Dropout(p).train()(torch.ones(count))
    kept = output > 0
    error = 5 * (p * (1 - p) / count) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < error
    assert abs(float((kept[1:] & kept[:-1]).float().mean()) - (1 - p) ** 2) < 3 * error
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / (1 - p)), rtol=1e-4, atol=0)
    assert torch.equal(Dropout(p).eval()(output), output)


def test_every_stochastic_layer_is_a_dropout_module(panel: Panel) -> None:
    """Monte Carlo dropout turns the modules on one by one in a network that is in evaluation mode."""
    network = TFT(panel.schema, CONFIG.model_copy(update={"dropout": 0.5}))
    batch = batch_of(panel, *FULL)
    for name in ("network.encoder_selection.reals", "network.attention", "network.feed_forward"):
        network.eval()
        still = network(batch)[0]
        torch.testing.assert_close(network(batch)[0], still, rtol=0, atol=0)
        drops = [module for module in network.get_submodule(name).modules() if isinstance(module, nn.Dropout)]
        assert drops
        for module in drops:
            module.train()
        assert not torch.equal(network(batch)[0], still)


def test_gated_residual_adds_its_context() -> None:
    torch.manual_seed(0)
    network = GatedResidual(6, 6, 6, context=3)
    x, context = torch.randn(2, 4, 6), torch.randn(2, 1, 3)
    assert not torch.allclose(network(x, context), network(x))
    torch.testing.assert_close(network(x, context)[:, 2], network(x[:, 2], context[:, 0]))


@pytest.mark.parametrize("width", [3, 7])
def test_gated_residual_by_entry_is_the_same_map(width: int) -> None:
    """Entries first, for a width that stays (3) and one that is stretched from 7 to 3."""
    torch.manual_seed(0)
    net = GatedResidual(width, 4, 3, dropout=0.0, context=5).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    inner, skip, context = (torch.randn(6, 8, size, dtype=torch.float64, requires_grad=True) for size in (4, 3, 5))
    of_window = context[:, 0]
    scaled = skip if net.resample is None else net.resample.scaled(skip)
    expected = net.finish(inner, scaled, of_window[:, None])
    result = net.finish_by_entry(inner.flatten(0, 1).t(), skip.flatten(0, 1).t(), of_window).t().view(6, 8, 3)
    torch.testing.assert_close(result, expected)
    above, inputs = torch.randn_like(expected), [inner, skip, context, *net.parameters()]
    gradients = (torch.autograd.grad(output, inputs, above, allow_unused=True) for output in (result, expected))
    torch.testing.assert_close(*gradients)


def test_interpretations_are_weights(panel: Panel) -> None:
    """They add to one over the variables or the steps read, and nothing is read that is not there."""
    torch.manual_seed(0)
    network, schema = TFT(panel.schema, CONFIG).eval(), panel.schema
    found = network.interpret(batch_of(panel, *SHORT))
    for key in ("static", "encoder", "decoder"):
        assert found[key].shape == (4, len(network.variables[key]))
        torch.testing.assert_close(found[key].sum(1), torch.ones(4))
    assert network.variables["encoder"] == ("weekday", *schema.reals)
    assert network.variables["decoder"] == ("weekday", "price", "trend", "lag_4", "lag_7")
    history, horizon = found["attention"], found["horizon_attention"]
    assert history.shape == (4, schema.horizon, schema.context)
    torch.testing.assert_close(history.sum(2) + horizon.sum(2), torch.ones(4, schema.horizon))
    assert not horizon.triu().any()  # neither its own step nor later ones
    assert not history[1, :, : schema.context - 4].any()  # the second history has four steps
    assert (history[1, :, schema.context - 4 :] > 0).all()
    alone = network.interpret(batch_of(panel, SHORT[1]))
    for key, value in alone.items():
        torch.testing.assert_close(found[key][1:2], value, rtol=1e-4, atol=1e-5)


def test_importance_follows_the_input_that_matters(make_panel: MakePanel, schema: PanelSchema) -> None:
    """Trained on a target that is last known from one covariate, the decoder gives that covariate the most weight."""
    schema = replace(schema, past=(), categories=(), static=(), lags=())
    panel = make_panel(schema=schema, lengths=(200,))
    rows = panel.rows.clone()
    rows[:, 0] = 10.0 * rows[:, 1]
    panel = replace(panel, rows=rows)
    torch.manual_seed(0)
    network = TFT(schema, CONFIG)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        windows = Windows(torch.zeros(32, dtype=torch.long), torch.randint(10, 190, (32,)))
        loss = network.loss(panel.gather(windows))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    weights = network.eval().interpret(batch_of(panel, (0, 150), (0, 160)))["decoder"].mean(0)
    assert network.variables["decoder"] == ("price", "trend")
    assert weights[0] > 0.6
