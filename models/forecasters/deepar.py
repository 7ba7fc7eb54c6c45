"""DeepAR (Salinas et al., 2020): normal likelihood and ancestral sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.decoding.noise import stratified_normal
from models.forecasters.base import Forecaster, Prediction, scaled_target, unscale
from models.forecasters.config import DeepARConfig
from models.forecasters.deepar_network import DeepARNetwork
from models.panel import Batch, PanelSchema
from models.predictive import sample_quantiles

__all__ = ["DeepAR"]

LEAST_VARIANCE = 1e-6


class DeepAR(Forecaster):
    """Normal likelihood on `DeepARNetwork`, learned under teacher forcing, and forecasts from sampled paths.

    Past-only covariates are left out: an autoregressive network would need them over the horizon.
    """

    keep: Tensor

    def __init__(self, schema: PanelSchema, config: DeepARConfig) -> None:
        super().__init__()
        self.paths = config.paths
        self.register_buffer("keep", torch.tensor([0, *schema.future_reals]), persistent=False)
        self.network = DeepARNetwork(schema, config)

    def _inputs(self, batch: Batch) -> Batch:
        """The batch with the reals that the network reads."""
        kept = {key: batch[key].index_select(-1, self.keep) for key in ("encoder_cont", "decoder_cont")}
        return {**batch, **kept}

    def _decoder_inputs(self, batch: Batch) -> Tensor:
        """Inputs of the decoder ``(B, H, W)``: at each step the target one step earlier."""
        rows = torch.arange(len(batch["encoder_lengths"]), device=batch["encoder_cont"].device)
        last = batch["encoder_cont"][rows, batch["encoder_lengths"] - 1, 0]
        previous = torch.cat([last[:, None], batch["decoder_cont"][:, :-1, 0]], dim=1)
        return self.network.inputs(batch["decoder_cont"], *self.network.split_codes(batch["decoder_cat"]), previous)

    @staticmethod
    def _normal(parameters: Tensor) -> tuple[Tensor, Tensor]:
        return parameters[..., 0], nn.functional.softplus(parameters[..., 1]) + 1e-4

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood under teacher forcing, in the window's own scale."""
        mean, deviation = self._normal(self.network(self._inputs(batch)))
        return _negative_log_likelihood(mean, scaled_target(batch), deviation**2)

    def sample_paths(self, batch: Batch, paths: int) -> tuple[Tensor, Tensor]:
        """Independent joint sample paths ``(B, paths, H)`` in the window's own scale, and features ``(B, hidden)``.

        History is encoded once; the paths of all windows then advance together, one step of the network a time.
        """
        cont = batch["decoder_cont"]
        return self._paths(batch, torch.randn(cont.shape[1], len(cont), paths, dtype=cont.dtype, device=cont.device))

    def _paths(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        batch = self._inputs(batch)
        state = self.network.encode(batch)
        return self.network.sample(self._decoder_inputs(batch), state, noise, self._normal), state[0][-1]

    def target_paths(self, batch: Batch, paths: int) -> Tensor:
        """Joint sample paths ``(B, paths, H)`` in the target's units."""
        return unscale(self.sample_paths(batch, paths)[0], batch)

    def encode(self, batch: Batch) -> Tensor:
        return self.network.encode(self._inputs(batch))[0][-1]

    def predict(self, batch: Batch) -> Prediction:
        """Quantiles over paths whose noise is stratified, and the same for all windows."""
        cont = batch["decoder_cont"]
        paths, features = self._paths(batch, stratified_normal(cont.shape[1], self.paths, cont)[:, None])
        return Prediction(unscale(sample_quantiles(paths, self.levels), batch), features)


def _negative_log_likelihood(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """``torch.nn.functional.gaussian_nll_loss`` without its look whether a variance is negative, for which a device waits."""
    least = variance + (variance.clamp(min=LEAST_VARIANCE) - variance).detach()
    return 0.5 * (least.log() + (mean - target) ** 2 / least).mean()
