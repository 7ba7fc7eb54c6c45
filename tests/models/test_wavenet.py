"""WaveNet: what an output may see, its gates by their equation, and generation with cached state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.decoding.streaming import fork
from models.forecasters.wavenet import WaveNet, WaveNetBackbone, WaveNetBlock
from models.forecasters.wavenet_paths import PathCache
from models.heads import HEADS, CategoricalHead, build_head
from models.panel import Batch, Panel, PanelSchema, Windows
from models.predictive import MEDIAN

WIDTH = 6


def sensitivity(backbone: WaveNetBackbone, time: int, step: int) -> Tensor:
    """Largest gradient of output `step` with respect to each of `time` inputs, over a batch of 8 random windows."""
    x = torch.randn(8, time, WIDTH, dtype=torch.float64, requires_grad=True)
    output = backbone(x)[:, step]
    (gradient,) = torch.autograd.grad(output, x, torch.rand_like(output) + 0.5)
    return gradient.abs().amax((0, 2))


@pytest.mark.parametrize(("levels", "stacks", "kernel_size"), [(1, 1, 2), (4, 1, 2), (3, 2, 2), (2, 2, 3)])
def test_receptive_field_by_gradient_equals_the_formula(levels: int, stacks: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, levels, stacks, kernel_size, dropout=0.0).double().eval()
    expected = 1 + stacks * (kernel_size - 1) * (2**levels - 1)
    assert backbone.receptive_field == expected
    time = expected + 5
    seen = sensitivity(backbone, time, time - 1).nonzero().flatten()
    assert seen.min() == time - expected
    assert seen.max() == time - 1


@pytest.mark.parametrize("step", [0, 7, 18])
@pytest.mark.parametrize("training", [True, False])
def test_no_output_sees_a_later_input(step: int, training: bool) -> None:
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, 3, 2, 2, dropout=0.2).double().train(training)
    gradient = sensitivity(backbone, 20, step)
    assert gradient[step] > 0
    assert gradient[step + 1 :].abs().max() == 0


def test_a_block_is_its_equation() -> None:
    """z = tanh(W_f * x) sigmoid(W_g * x); residual x + W_r z; skip W_s z (van den Oord et al. 2016, equation 2)."""
    torch.manual_seed(0)
    block = WaveNetBlock(2, kernel_size=2, dilation=3, dropout=0.0).double()
    x = torch.randn(4, 2, 9, dtype=torch.float64)
    weights = dict(block.named_parameters())
    taps, bias = weights["convolution.convolution.weight"], weights["convolution.convolution.bias"]
    mix, mix_bias = weights["mix.weight"][..., 0], weights["mix.bias"]
    residual, skip = block(x)
    for t in range(9):
        gates = bias + x[:, :, t] @ taps[..., 1].T
        if t >= 3:
            gates = gates + x[:, :, t - 3] @ taps[..., 0].T
        mixed = (gates[:, :2].tanh() * gates[:, 2:].sigmoid()) @ mix.T + mix_bias
        torch.testing.assert_close(residual[:, :, t], x[:, :, t] + mixed[:, :2])
        torch.testing.assert_close(skip[:, :, t], mixed[:, 2:])


def test_every_weight_is_used() -> None:
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, 2, 2, 2, dropout=0.0)
    backbone(torch.randn(4, 12, WIDTH)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in backbone.parameters())


@pytest.mark.parametrize("sizes", [(0, 2, 1, 2), (6, 0, 1, 2), (6, 2, 0, 2), (6, 2, 1, 1)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1 and kernel_size at least 2"):
        WaveNetBackbone(*sizes, dropout=0.0)


@pytest.mark.parametrize(("levels", "stacks", "kernel_size"), [(4, 1, 2), (2, 2, 3)])
def test_cached_paths_equal_steps_on_a_forked_state(levels: int, stacks: int, kernel_size: int) -> None:
    """Dilations below and above the number of steps, and taps of one convolution on both sides of the cutoff."""
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, levels, stacks, kernel_size, dropout=0.3).double().eval()
    _, state = backbone.extend(torch.randn(2, 15, WIDTH).double(), backbone.initial_state(2, "cpu", torch.float64))
    steps, paths = 7, 3
    with torch.no_grad():
        cache, forked = PathCache(backbone, state, paths, steps), fork(state, paths)
        for x_t in torch.randn(steps, 2 * paths, WIDTH, dtype=torch.float64):
            expected, forked = backbone.step(x_t, forked)
            torch.testing.assert_close(cache.step(x_t.t()).t(), expected, rtol=0.0, atol=1e-12)


def test_a_cached_step_costs_the_same_at_any_receptive_field() -> None:
    counts = []
    for levels, stacks in ((1, 6), (6, 1)):  # six blocks: a view of 7 steps and of 64
        backbone = WaveNetBackbone(WIDTH, levels, stacks, 2, dropout=0.0).eval()
        with torch.no_grad():
            cache = PathCache(backbone, backbone.initial_state(1, "cpu", torch.float32), 10, 100)
            for _ in range(40):  # beyond the longest dilation, where nothing comes from the shared history
                cache.step(torch.zeros(WIDTH, 10))
            with FlopCounterMode(display=False) as counter:
                cache.step(torch.zeros(WIDTH, 10))
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def forecaster(schema: PanelSchema, head: str = "categorical", paths: int = 3, **options: object) -> WaveNet:
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, levels=3, stacks=1, kernel_size=2, dropout=0.2)
    model = WaveNet(schema, WIDTH, backbone, build_head(head, WIDTH, **options), paths).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def gathered(panel: Panel, series: list[int], cutoff: list[int]) -> Batch:
    batch = panel.gather(Windows(torch.tensor(series), torch.tensor(cutoff)))
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


@pytest.fixture
def batch(panel: Panel) -> Batch:
    return gathered(panel, [0, 0, 1, 2], [30, 41, 20, 5])  # the last has less history than the context


@torch.no_grad()
def naive_paths(model: WaveNet, batch: Batch, paths: int, generator: torch.Generator) -> Tensor:
    """Ancestral sampling that runs the whole network over the whole window for every new step, (B * paths, H)."""
    inputs, target, base = (part.repeat_interleave(paths, 0) for part in model._inputs(batch))
    loc, scale = (part.repeat_interleave(paths) for part in batch["target_scale"].unbind(1))
    target[:, model.context :] = float("nan")  # what is not drawn yet must not be read
    drawn = []
    for step in range(model.context, target.shape[1]):
        hidden = model.backbone(model._teacher_forced(inputs[:, : step + 1], target[:, : step + 1]))[:, -1]
        values = model.head.sample(model.head(hidden, base[:, step]), loc, scale, generator)
        target[:, step] = (values - loc) / scale
        drawn.append(values)
    return torch.stack(drawn, -1)


@pytest.mark.parametrize("head", HEADS)
def test_cached_generation_equals_naive_recomputation(schema: PanelSchema, batch: Batch, head: str) -> None:
    model = forecaster(schema, head)
    cached, features = model.sample_paths(batch, 5, torch.Generator().manual_seed(4))
    naive = naive_paths(model, batch, 5, torch.Generator().manual_seed(4))
    assert cached.shape == (4, 5, schema.horizon)
    torch.testing.assert_close(cached.flatten(0, 1), naive, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(features, model.encode(batch), rtol=0.0, atol=1e-12)


def test_a_forecast_ignores_the_future_target(schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(schema)
    changed = {name: value.clone() for name, value in batch.items()}
    changed["decoder_cont"][..., 0] = 99.0
    changed["decoder_target"][:] = 99.0
    first, second = (model.sample_paths(b, 4, torch.Generator().manual_seed(1))[0] for b in (batch, changed))
    assert torch.equal(first, second)


def test_teacher_forcing_shows_a_step_only_earlier_targets(schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(schema)
    target = model._inputs(batch)[1].detach().requires_grad_()
    inputs = model._inputs(batch)[0].detach()
    step = schema.context + 1
    hidden = model.backbone(model._teacher_forced(inputs, target))[:, step].sum()
    (gradient,) = torch.autograd.grad(hidden, target)
    assert gradient[:, step - 1].abs().min() > 0
    assert gradient[:, step:].abs().max() == 0


def test_padding_of_a_short_history_carries_no_loss(schema: PanelSchema, panel: Panel) -> None:
    """The loss of a short window does not move with what stands in its padding's targets."""
    model = forecaster(schema).train()
    short = gathered(panel, [2, 0], [5, 30])
    losses = []
    for filler in (0.0, 1e3):
        changed = dict(short, encoder_target=short["encoder_target"].clone())
        changed["encoder_target"][0, 5:] = filler
        torch.manual_seed(3)
        losses.append(float(model.loss(changed).detach()))
    assert losses[0] == losses[1]


def test_evaluation_judges_the_horizon_alone(schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(schema, "normal")
    inputs, target, base = model._inputs(batch)
    parameters = model.head(model.backbone(model._teacher_forced(inputs, target)), base)[:, schema.context :]
    loc, scale = batch["target_scale"].unbind(1)
    expected = model.head.loss(parameters, batch["decoder_target"], loc, scale).mean()
    torch.testing.assert_close(model.loss(batch), expected)


def test_training_learns_an_alternation_and_sampling_keeps_it_up(schema: PanelSchema) -> None:
    """Plus and minus one by turns, in either phase: only the value one step earlier tells which comes next."""
    torch.manual_seed(0)
    plain = replace(schema, known=(), past=(), lags=())
    model = WaveNet(plain, 8, WaveNetBackbone(8, 2, 1, 2, 0.0), build_head("categorical", 8, bins=16), 50)
    time = torch.arange(schema.context + schema.horizon)
    phase = torch.arange(16)[:, None] % 2
    series = 1.0 - 2.0 * ((time[None] + phase) % 2).float()
    shape = (16, len(time))
    cont, cat = series[..., None], torch.ones(*shape, len(plain.all_categories), dtype=torch.long)
    window = {
        "encoder_cont": cont[:, : schema.context],
        "decoder_cont": cont[:, schema.context :],
        "encoder_cat": cat[:, : schema.context],
        "decoder_cat": cat[:, schema.context :],
        "encoder_target": series[:, : schema.context],
        "decoder_target": series[:, schema.context :],
        "encoder_lengths": torch.full((16,), schema.context),
        "target_scale": torch.tensor([[0.0, 1.0]]).expand(16, 2),
    }
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(window).backward()
        optimizer.step()
    median = model.eval().predict(window).quantiles[..., MEDIAN]
    assert (median.sign() == series[:, schema.context :].sign()).all()


def test_quantile_bins_are_placed_by_a_batch(schema: PanelSchema, panel: Panel) -> None:
    model = forecaster(schema, bins=8, kind="quantile")
    batch = gathered(panel, [0] * 20, list(range(20, 40)))
    model.fit_bins(batch)
    assert isinstance(model.head, CategoricalHead)
    _, target, base = model._inputs(batch)
    residual = (target - base)[:, schema.context :].flatten().detach()
    counts = torch.bincount(torch.bucketize(residual, model.head.edges), minlength=8)
    assert counts.max() - counts.min() <= 2


def test_dropout_left_on_gives_each_path_a_mask_of_its_own() -> None:
    """With dropout on, paths fed alike differ; each keeps its own way, so it repeats itself on a constant input."""
    torch.manual_seed(0)
    backbone = WaveNetBackbone(WIDTH, 1, 1, 2, dropout=0.5).double().train()
    with torch.no_grad():
        cache = PathCache(backbone, backbone.initial_state(1, "cpu", torch.float64), 6, 4)
        x = torch.ones(WIDTH, 6, dtype=torch.float64)
        _, second, third = (cache.step(x).t() for _ in range(3))
    assert len(second.unique(dim=0)) > 1
    assert torch.equal(second, third)


def test_too_few_paths_are_refused(schema: PanelSchema) -> None:
    with pytest.raises(ValueError, match="paths must be at least 2"):
        forecaster(schema, paths=1)


def test_a_prediction_has_sorted_quantiles_and_the_encoders_features(schema: PanelSchema, batch: Batch) -> None:
    model = forecaster(schema, paths=20)
    prediction = model.predict(batch)
    assert prediction.quantiles.shape == (4, schema.horizon, len(model.levels))
    assert (prediction.quantiles.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(prediction.features, model.encode(batch))
