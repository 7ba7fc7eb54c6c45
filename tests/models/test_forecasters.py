"""Every family: it learns, answers in sorted quantiles, and sees neither the future nor its neighbours in a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from models.forecasters.base import align_right, scaled_target, unscale
from models.forecasters.config import (
    DeepARConfig,
    ForecasterConfig,
    HybridConfig,
    Mamba2Config,
    MambaConfig,
    S4DConfig,
    TCNConfig,
    TFTConfig,
    TiDEConfig,
    WaveNetConfig,
)
from models.forecasters.deepar import DeepAR
from models.forecasters.factory import NETWORKS, Forecaster, build_forecaster
from models.heads import QuantileHead
from models.loading import moved
from models.panel import Batch, Panel, PanelSchema, WindowLoader, Windows
from models.predictive import LEVELS, MEDIAN, sample_quantiles

CONFIGS: dict[str, ForecasterConfig] = {
    "tft": TFTConfig(hidden_size=8, attention_heads=2, hidden_continuous_size=4),
    "deepar": DeepARConfig(hidden_size=12, layers=2, paths=50),
    "tcn": TCNConfig(width=12, levels=3),
    "wavenet": WaveNetConfig(width=12, levels=3, bins=16, paths=50),
    "s4d": S4DConfig(width=12, layers=2, state_size=4),
    "mamba": MambaConfig(width=12, layers=2, state_size=4),
    "mamba2": Mamba2Config(width=12, layers=2, state_size=4, heads=2),
    "hybrid": HybridConfig(width=12, layers=3, state_size=4, heads=2),
    "tide": TiDEConfig(width=12, hidden=16, layers=1),
}
SAMPLING = ("deepar", "wavenet")
DIRECT = [family for family in NETWORKS if family not in SAMPLING]
MakePanel = Callable[..., Panel]


def build(family: str, schema: PanelSchema, seed: int = 0) -> Forecaster:
    torch.manual_seed(seed)
    return build_forecaster(family, schema, CONFIGS[family])


def windows_of(*pairs: tuple[int, int]) -> Windows:
    series, cutoff = torch.tensor(pairs).unbind(1)
    return Windows(series, cutoff)


def answer(network: Forecaster, batch: Batch) -> tuple[Tensor, Tensor]:
    """Quantiles and features, with the same random numbers at every call."""
    torch.manual_seed(7)
    with torch.no_grad():
        prediction = network.eval().predict(batch)
    return prediction.quantiles, prediction.features


def test_every_network_has_a_configuration_under_test() -> None:
    assert set(CONFIGS) == set(NETWORKS)


def test_unknown_family_is_named() -> None:
    schema = PanelSchema((), (), (), (), (4,), 8, 4, 7)
    with pytest.raises(ValueError, match=r"'prophet' is not a family; there are tft, deepar"):
        build_forecaster("prophet", schema, CONFIGS["tcn"])


@pytest.mark.parametrize("family", NETWORKS)
def test_loss_falls_in_thirty_steps(family: str, panel: Panel) -> None:
    """On the batches of a loader, by a tenth of the first steps' mean at least."""
    network = build(family, panel.schema).train()
    windows = Windows(torch.zeros(40, dtype=torch.long), torch.arange(12, 52))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for batch in WindowLoader(panel, windows, batch_size=32, batches=30, seed=0, id_dropout=0.1):
        loss = network.loss(batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    first, last = sum(losses[:3]) / 3, sum(losses[-5:]) / 5
    assert last < first - 0.1 * abs(first)


@pytest.mark.parametrize("pairs", [((0, 40), (1, 20)), ((0, 40), (1, 5))])
@pytest.mark.parametrize("family", NETWORKS)
def test_a_training_step_never_waits_for_the_device(
    family: str, pairs: tuple[tuple[int, int], ...], panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers, where every look at one, and every shape that depends on one, is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    nowhere = torch.device("meta")
    network = build(family, panel.schema).train().to(nowhere)
    loss = network.loss(moved(panel.gather(windows_of(*pairs)), nowhere))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    torch.optim.AdamW(network.parameters(), lr=1e-3).step()
    for look in (float, lambda value: value[value > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look(loss.detach())


@pytest.mark.parametrize("family", NETWORKS)
def test_every_parameter_that_is_trained_gets_a_gradient(family: str, panel: Panel) -> None:
    network = build(family, panel.schema).train()
    network.loss(panel.gather(windows_of((0, 30), (1, 12), (1, 3)))).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) > 0.8 * len(list(network.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("family", NETWORKS)
def test_quantiles_are_sorted_in_the_targets_units(family: str, panel: Panel) -> None:
    batch = panel.gather(windows_of((0, 30), (1, 12), (2, 3)))
    quantiles, features = answer(build(family, panel.schema), batch)
    assert quantiles.shape == (3, panel.schema.horizon, len(LEVELS))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.isfinite(quantiles).all()
    assert features.shape[0] == 3
    assert features.dim() == 2
    loc, scale = batch["target_scale"].unbind(1)
    assert ((quantiles[..., MEDIAN] - loc[:, None]).abs() < 10 * scale[:, None]).all()  # series lie at 20, 40, 60


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("value", [float("nan"), 1e4])
def test_the_future_is_not_read(family: str, value: float, panel: Panel) -> None:
    """Neither the true target nor past-only covariates of the horizon change a forecast."""
    network = build(family, panel.schema)
    batch = panel.gather(windows_of((0, 30), (1, 12), (2, 3)))
    hidden = {key: tensor.clone() for key, tensor in batch.items()}
    hidden["decoder_target"][:] = value
    hidden["decoder_cont"][..., [0, *panel.schema.past_reals]] = value
    for actual, expected in zip(answer(network, hidden), answer(network, batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", DIRECT)
def test_no_gradient_reaches_the_future(family: str, panel: Panel) -> None:
    network = build(family, panel.schema).eval()
    batch = panel.gather(windows_of((0, 30), (1, 12)))
    decoder = batch["decoder_cont"].clone().requires_grad_(True)
    quantiles = network.predict({**batch, "decoder_cont": decoder}).quantiles
    (gradient,) = torch.autograd.grad((quantiles * torch.rand_like(quantiles)).sum(), decoder)
    assert not gradient[..., [0, *panel.schema.past_reals]].any()
    assert gradient[..., list(panel.schema.future_reals)].abs().sum() > 0  # while what is known is read


@pytest.mark.parametrize("family", DIRECT)
def test_features_end_with_the_history(family: str, panel: Panel) -> None:
    """They describe what was seen up to the cutoff: nothing of the horizon changes them, the newest step does."""
    network = build(family, panel.schema)
    batch = panel.gather(windows_of((0, 30), (1, 12), (1, 4)))
    changed = {**batch, "decoder_cont": batch["decoder_cont"] + 3.0, "decoder_cat": batch["decoder_cat"] * 0}
    rounding = 1e-5 if family == "s4d" else 0.0  # its convolution by FFT is causal up to float32 rounding
    torch.testing.assert_close(answer(network, changed)[1], answer(network, batch)[1], rtol=0, atol=rounding)
    rows, newest = torch.arange(3), batch["encoder_lengths"] - 1
    encoder = batch["encoder_cont"].clone()
    encoder[rows, newest] += 1.0
    difference = answer(network, {**batch, "encoder_cont": encoder})[1] - answer(network, batch)[1]
    assert (difference.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("family", NETWORKS)
def test_padding_is_not_read(family: str, panel: Panel) -> None:
    network = build(family, panel.schema)
    batch = panel.gather(windows_of((0, 30), (1, 4), (2, 7)))
    dirty = {key: tensor.clone() for key, tensor in batch.items()}
    padding = torch.arange(panel.schema.context)[None] >= batch["encoder_lengths"][:, None]
    dirty["encoder_cont"][padding] = 50.0
    dirty["encoder_target"][padding] = 50.0
    dirty["encoder_cat"][padding] = 1
    for actual, expected in zip(answer(network, dirty), answer(network, batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("pair", [(1, 4), (2, 9), (0, 30)])
def test_a_window_does_not_depend_on_its_batch(family: str, pair: tuple[int, int], panel: Panel) -> None:
    """Alone, its history is not padded at all; in company it is padded to the longest."""
    network = build(family, panel.schema)
    alone = answer(network, panel.gather(windows_of(pair)))
    together = answer(network, panel.gather(windows_of(pair, (0, 40), (1, 2))))
    torch.testing.assert_close(together[1][:1], alone[1], rtol=1e-4, atol=1e-5)
    if family in SAMPLING:  # the random numbers do depend on the batch, the parameters do not
        return
    torch.testing.assert_close(together[0][:1], alone[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", NETWORKS)
def test_saved_weights_give_the_same_forecast(family: str, panel: Panel, tmp_path: Path) -> None:
    """Through safetensors, into a network that began elsewhere."""
    network, other = build(family, panel.schema), build(family, panel.schema, seed=1)
    batch = panel.gather(windows_of((0, 30), (1, 4)))
    path = str(tmp_path / "weights.safetensors")
    save_model(network, path)
    assert not torch.equal(answer(other, batch)[0], answer(network, batch)[0])
    load_model(other, path)
    for actual, expected in zip(answer(other, batch), answer(network, batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_deep_copy_answers_for_itself(family: str, panel: Panel) -> None:
    """A copy, as a trainer keeps of its best epoch, shares nothing with the original."""
    network = build(family, panel.schema)
    batch = panel.gather(windows_of((0, 30), (1, 4)))
    expected = answer(network, batch)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for actual, value in zip(answer(twin, batch), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=0, atol=0)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("lags", [(), (4,)])
def test_a_panel_of_targets_alone_is_enough(
    family: str, lags: tuple[int, ...], make_panel: MakePanel, schema: PanelSchema
) -> None:
    bare = replace(schema, known=(), past=(), static=(), categories=(), lags=lags)
    panel = make_panel(schema=bare)
    batch = panel.gather(windows_of((0, 30), (1, 4)))
    network = build(family, bare)
    assert torch.isfinite(network.loss(batch))
    assert torch.isfinite(answer(network, batch)[0]).all()


def test_sequence_networks_begin_as_a_seasonal_forecast(panel: Panel) -> None:
    """At the start the median is near the mean of the target's lags."""
    batch = panel.gather(windows_of((0, 30), (0, 40)))
    for family in ("tcn", "mamba"):
        median = answer(build(family, panel.schema), batch)[0][..., MEDIAN]
        lags = batch["decoder_cont"][..., -2:].mean(-1)
        error = (median - unscale(lags, batch)) / batch["target_scale"][:, 1:]
        assert error.abs().max() < 0.6


def test_one_step_of_deepars_paths_follows_its_teacher_forced_normal(panel: Panel) -> None:
    """Mean within 4.5 standard errors, deviation within 4.5 sigma / sqrt(2 n)."""
    network = build("deepar", panel.schema)
    assert isinstance(network, DeepAR)
    network.eval()
    batch, count = panel.gather(windows_of((0, 30), (1, 12), (1, 4))), 20_000
    with torch.no_grad():
        inputs = network._inputs(batch)
        parameters, _ = network.network.decode_all(network._decoder_inputs(inputs), network.network.encode(inputs))
        mean, deviation = network._normal(parameters[:, 0])
        torch.manual_seed(0)
        paths, _ = network.sample_paths(batch, count)
    assert paths.shape == (3, count, panel.schema.horizon)
    first = paths[..., 0]
    assert ((first.mean(1) - mean).abs() < 4.5 * deviation / count**0.5).all()
    assert ((first.std(1) - deviation).abs() < 4.5 * deviation / (2 * count) ** 0.5).all()


def test_deepars_paths_feed_on_their_own_past(panel: Panel) -> None:
    """With the noise off, a path is the chain of means: each the network's answer to the means before it."""
    network = build("deepar", panel.schema)
    assert isinstance(network, DeepAR)
    network.eval()
    batch = panel.gather(windows_of((0, 30), (1, 12)))
    network._normal = lambda parameters: (parameters[..., 0], torch.zeros_like(parameters[..., 0]))  # type: ignore[method-assign]
    with torch.no_grad():
        path = network.sample_paths(batch, 2)[0][:, 0]
        forced = batch["decoder_cont"].clone()
        forced[..., 0] = path
        inputs = network._inputs({**batch, "decoder_cont": forced})
        parameters, _ = network.network.decode_all(network._decoder_inputs(inputs), network.network.encode(inputs))
    torch.testing.assert_close(parameters[..., 0], path, rtol=1e-5, atol=1e-6)


def test_sample_quantiles_equal_torchs() -> None:
    paths = torch.randn(3, 37, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.0, *LEVELS, 1.0])
    expected = torch.quantile(paths, levels, dim=1).permute(1, 2, 0)
    torch.testing.assert_close(sample_quantiles(paths, levels), expected)


def test_quantile_head_never_crosses() -> None:
    torch.manual_seed(0)
    head = QuantileHead(6)
    quantiles = head(50 * torch.randn(100, 6))
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_align_right_keeps_the_newest_step_last() -> None:
    values = torch.arange(1, 9).view(2, 4, 1)
    values[1, 2:] = -1  # padding
    aligned = align_right(values, torch.tensor([4, 2]), 5)
    assert aligned[..., 0].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 5, 6]]


def test_unscale_undoes_scaled_target(panel: Panel) -> None:
    batch = panel.gather(windows_of((0, 30), (1, 12)))
    torch.testing.assert_close(unscale(scaled_target(batch), batch), batch["decoder_target"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["tft", "deepar", "tcn", "mamba", "tide", "hybrid"])
def test_a_window_is_forecast_alike_whatever_is_in_its_batch(family: str, panel: Panel) -> None:
    network = build(family, panel.schema).eval()
    assert network.batch_invariant
    windows = ((0, 30), (1, 12), (1, 4), (0, 40))
    with torch.no_grad():
        torch.manual_seed(3)
        together = network.predict(panel.gather(windows_of(*windows)))
        for row, window in enumerate(windows):
            torch.manual_seed(3)
            alone = network.predict(panel.gather(windows_of(window)))
            torch.testing.assert_close(alone.quantiles[0], together.quantiles[row], rtol=2e-5, atol=1e-5)
