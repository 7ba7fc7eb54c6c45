"""MC dropout: only stochastic layers draw, one mask a path, and every mode comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.forecasters.config import DeepARConfig, MambaConfig, TCNConfig, TFTConfig, WaveNetConfig
from models.forecasters.deepar import DeepAR
from models.forecasters.factory import build_forecaster
from models.forecasters.wavenet import WaveNet
from models.heads.base import Head
from models.panel import Batch, Panel, PanelSchema, Windows
from models.predictive import LEVELS
from models.uncertainty.ensemble import decompose
from models.uncertainty.mc_dropout import mc_dropout, mc_dropout_forecast, mc_dropout_quantiles, stochastic_layers

CONFIGS = {
    "tft": TFTConfig(hidden_size=8, attention_heads=2, hidden_continuous_size=4, dropout=0.3),
    "deepar": DeepARConfig(hidden_size=8, layers=2, dropout=0.3, paths=20),
    "tcn": TCNConfig(width=8, levels=2, dropout=0.3),
    "wavenet": WaveNetConfig(width=8, levels=2, dropout=0.3, paths=20),
    "mamba": MambaConfig(width=8, layers=1, dropout=0.3),
}


def forecaster(family: str, schema: PanelSchema, **changes: float):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return build_forecaster(family, schema, CONFIGS[family].model_copy(update=changes))


@pytest.fixture
def batch(panel: Panel) -> Batch:
    return panel.gather(Windows(torch.tensor([0, 1, 0]), torch.tensor([30, 14, 41])))


class Rnn(nn.Module):
    """One of each kind of layer, and layers that look stochastic and are not."""

    def __init__(self) -> None:
        super().__init__()
        self.on = nn.ModuleList([nn.Dropout(0.1), nn.Dropout1d(0.1), nn.AlphaDropout(0.2), nn.LSTM(2, 2, 2, dropout=0.4)])
        off = [nn.Dropout(0.0), nn.LSTM(2, 2, 3), nn.BatchNorm1d(4), nn.Linear(2, 2)]
        self.off = nn.ModuleList(off)
        single = nn.LSTM(2, 2, 2, dropout=0.4)
        single.num_layers = 1  # torch warns when such a layer is built, and drops nothing
        self.off.append(single)


def test_stochastic_layers_are_those_that_draw() -> None:
    network = Rnn()
    assert stochastic_layers(network) == list(network.on)


@pytest.mark.parametrize("family", CONFIGS)
def test_only_stochastic_layers_are_in_training_mode(family: str, schema: PanelSchema) -> None:
    network = forecaster(family, schema).train()
    with mc_dropout(network):
        training = {module for module in network.modules() if module.training}
        assert training == set(stochastic_layers(network))
        assert training
    assert all(module.training for module in network.modules())


def test_former_modes_return_after_an_exception(schema: PanelSchema) -> None:
    network = forecaster("deepar", schema).eval()
    network.network.project.train()
    before = [module.training for module in network.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), mc_dropout(network):
        assert network.network.paths_share_masks
        raise RuntimeError("on purpose")
    assert [module.training for module in network.modules()] == before
    assert not network.network.paths_share_masks


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [("tcn", {"dropout": 0.0}, "TCNBackbone"), ("deepar", {"layers": 1}, "DeepAR"), ("tft", {"dropout": 0.0}, "TFT")],
)
def test_a_model_without_stochastic_layers_is_named(family: str, changes: dict, name: str, schema: PanelSchema) -> None:
    network = forecaster(family, schema, **changes)
    with pytest.raises(ValueError, match=f"{name} has no stochastic layer"), mc_dropout(network):
        pass


def test_no_pass_is_an_error(schema: PanelSchema, batch: Batch) -> None:
    with pytest.raises(ValueError, match="at least 1 pass, got 0"):
        mc_dropout_quantiles(forecaster("tcn", schema), batch, 0, seed=1)


@pytest.mark.parametrize("family", CONFIGS)
def test_passes_differ_and_repeat_by_seed(family: str, schema: PanelSchema, batch: Batch) -> None:
    network = forecaster(family, schema)
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    quantiles = mc_dropout_quantiles(network, batch, 4, seed=1)
    assert torch.equal(torch.rand(3), expected_next)  # torch's own random state is untouched
    assert quantiles.shape == (4, 3, schema.horizon, len(LEVELS))
    assert not quantiles.requires_grad
    assert (quantiles.std(0).amax((1, 2)) > 0).all()
    assert torch.equal(quantiles, mc_dropout_quantiles(network, batch, 4, seed=1))
    assert torch.equal(quantiles[:2], mc_dropout_quantiles(network, batch, 2, seed=1))
    assert not torch.equal(quantiles, mc_dropout_quantiles(network, batch, 4, seed=2))


def memoryless(schema: PanelSchema) -> DeepAR:
    """A DeepAR without noise whose steps depend on their own inputs alone.

    Its forget gates are shut and neither state nor target is read, so that whatever differs between steps is the mask.
    """
    network = forecaster("deepar", schema, hidden_size=16)
    network._normal = lambda parameters: (parameters[..., 0], 0.0 * parameters[..., 1])
    with torch.no_grad():
        for layer in network.network.layers:
            layer.weight_hh_l0.zero_()
            layer.bias_ih_l0[16:32] = -1e4
        network.network.layers[0].weight_ih_l0[:, 0] = 0.0
    return network


SampleHorizon = Callable[[DeepAR, Tensor, tuple[Tensor, Tensor], int], Tensor]


def sample_at_once(network: DeepAR, inputs: Tensor, state: tuple[Tensor, Tensor], paths: int) -> Tensor:
    noise = torch.zeros(inputs.shape[1], 1, paths)
    return network.network.sample(inputs, state, noise, network._normal)


def sample_step_by_step(network: DeepAR, inputs: Tensor, state: tuple[Tensor, Tensor], paths: int) -> Tensor:
    """The mutant: every step draws its masks anew."""
    return torch.cat([sample_at_once(network, inputs[:, t : t + 1], state, paths) for t in range(inputs.shape[1])], dim=-1)


def one_mask_a_path(sample: SampleHorizon, schema: PanelSchema, share_masks: bool) -> bool:
    network = memoryless(schema)
    inputs = torch.randn(2, 1, network.network.layers[0].input_size).expand(-1, 6, -1)
    state = (torch.zeros(2, 2, 16), torch.zeros(2, 2, 16))
    with mc_dropout(network, share_masks=share_masks):
        paths = sample(network, inputs, state, 8)
    return bool(torch.allclose(paths, paths[..., :1], atol=1e-6))


@pytest.mark.parametrize("share_masks", [False, True])
def test_a_path_keeps_one_mask_over_the_horizon(share_masks: bool, schema: PanelSchema) -> None:
    assert one_mask_a_path(sample_at_once, schema, share_masks)
    assert not one_mask_a_path(sample_step_by_step, schema, share_masks)


class Still(nn.Module):
    """A head's place: draws its location itself, so that paths differ by their masks alone."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def draw(
        self, hidden: Tensor, base: Tensor, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.head(hidden, base)[..., 0] * scale + loc


def noiseless(family: str, schema: PanelSchema) -> DeepAR | WaveNet:
    network = forecaster(family, schema, **({"head": "normal"} if family == "wavenet" else {}))
    if isinstance(network, WaveNet):
        network.head = Still(network.head)  # type: ignore[assignment]
    else:
        network._normal = lambda parameters: (parameters[..., 0], 0.0 * parameters[..., 1])
    return network


@pytest.mark.parametrize("family", ["deepar", "wavenet"])
def test_paths_of_a_pass_share_their_masks_unless_told_otherwise(family: str, schema: PanelSchema, batch: Batch) -> None:
    network = noiseless(family, schema)
    with mc_dropout(network):
        shared, again = (network.sample_paths(batch, 10)[0] for _ in range(2))
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared))
    assert not torch.allclose(shared, again)
    with mc_dropout(network, share_masks=False):
        own = network.sample_paths(batch, 10)[0]
    assert (own.std(1) > 0).all()


@pytest.mark.parametrize("family", ["deepar", "wavenet"])
def test_shared_masks_are_what_epistemic_variance_sees(family: str, schema: PanelSchema, batch: Batch) -> None:
    """Without noise all variance over passes is the model's; a mask for each path hides it within the passes."""
    network = noiseless(family, schema)
    weights = torch.full((40,), 1 / 40)
    aleatoric, epistemic = decompose(mc_dropout_quantiles(network, batch, 40, seed=0), weights)
    assert float((aleatoric / epistemic).max()) < 1e-6
    aleatoric, epistemic = decompose(mc_dropout_quantiles(network, batch, 40, seed=0, share_masks=False), weights)
    assert float((aleatoric / epistemic).median()) > 1.0


def test_a_window_does_not_lose_its_mask_to_its_batch(schema: PanelSchema, batch: Batch) -> None:
    """Windows of one pass have masks of their own: equal windows differ."""
    twice = {key: torch.cat([value[:1], value[:1]]) for key, value in batch.items()}
    quantiles = mc_dropout_quantiles(forecaster("tcn", schema), twice, 1, seed=0)
    assert not torch.allclose(quantiles[0, 0], quantiles[0, 1])


@pytest.mark.parametrize("family", CONFIGS)
def test_the_forecast_is_the_mixture_of_the_passes_and_repeats(family: str, schema: PanelSchema, batch: Batch) -> None:
    network = forecaster(family, schema)
    values, split = mc_dropout_forecast(network, batch, 6, seed=1)
    assert values.shape == (3, schema.horizon, len(LEVELS))
    assert split.shape == (2, 3, schema.horizon)
    assert (values.diff(dim=-1) >= 0).all()
    assert (split[0] > 0).all()
    assert (split[1] >= 0).all()
    assert float(split[1].sum()) > 0
    again = mc_dropout_forecast(network, batch, 6, seed=1)
    assert torch.equal(values, again[0])
    assert torch.equal(split, again[1])


@pytest.mark.parametrize("family", ["deepar", "wavenet"])
def test_paths_of_few_passes_split_as_many_paths_would(family: str, schema: PanelSchema, batch: Batch) -> None:
    """Against passes of 400 paths each: standard errors of variances over 40 passes are about a quarter of them.

    Without the correction for the noise of means of 10 paths, epistemic variance would be larger by aleatoric / 10.
    """
    network = forecaster(family, schema, paths=80)
    _, (aleatoric, epistemic) = mc_dropout_forecast(network, batch, 40, seed=3)
    network.paths = 400
    passes = mc_dropout_quantiles(network, batch, 40, seed=4)
    expected = decompose(passes, torch.full((40,), 1 / 40))
    assert float(aleatoric.mean() / expected[0].mean()) == pytest.approx(1.0, abs=0.15)
    assert float(epistemic.mean()) < float(expected[1].mean()) + 0.05 * float(aleatoric.mean())


def test_paths_without_dropout_noise_have_no_epistemic_variance(schema: PanelSchema, batch: Batch) -> None:
    """Masks that change nothing leave passes alike: what is left of their means' variance is sampling, and is taken off."""
    network = forecaster("deepar", schema, paths=100)
    with torch.no_grad():
        network.network.layers[1].weight_ih_l0.zero_()  # what dropout lies before
    _, (aleatoric, epistemic) = mc_dropout_forecast(network, batch, 50, seed=5)
    assert float(epistemic.mean() / aleatoric.mean()) < 0.03
