"""DeepAR (Salinas et al., 2020): pytorch-forecasting's network behind our interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.forecasters.base import Forecaster, Prediction, scaled_target, unscale
from models.forecasters.config import DeepARConfig
from models.forecasters.tft import Identity, embedding_sizes
from models.panel import Batch, PanelSchema


class DeepAR(Forecaster):
    """Normal likelihood and ancestral sampling on pytorch-forecasting's ``DeepAR`` network, fed by our loader.

    Past-only covariates are left out: an autoregressive network would need them over the horizon.
    """

    def __init__(self, schema: PanelSchema, config: DeepARConfig) -> None:
        from pytorch_forecasting import DeepAR as Network
        from pytorch_forecasting.metrics import NormalDistributionLoss

        super().__init__()
        self.paths = config.paths
        self.keep = [0, *schema.future_reals]
        names = [schema.reals[index] for index in self.keep]
        categories = [name for name, _ in schema.categories]
        self.network = Network(
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
            embedding_sizes=embedding_sizes(schema),
            target="target",
            loss=NormalDistributionLoss(),
            logging_metrics=nn.ModuleList(),
            output_transformer=Identity(),
        )

    def _inputs(self, batch: Batch) -> Batch:
        keep = torch.tensor(self.keep, device=batch["encoder_cont"].device)
        return {
            **batch,
            "encoder_cont": batch["encoder_cont"].index_select(-1, keep),
            "decoder_cont": batch["decoder_cont"].index_select(-1, keep),
        }

    def _decoder_inputs(self, batch: Batch) -> Tensor:
        """Inputs of the decoder ``(B, H, W)``: at each step the target one step earlier."""
        rows = torch.arange(len(batch["encoder_lengths"]), device=batch["encoder_cont"].device)
        last = batch["encoder_cont"][rows, batch["encoder_lengths"] - 1, 0]
        return self.network.construct_input_vector(batch["decoder_cat"], batch["decoder_cont"], one_off_target=last[:, None])

    @staticmethod
    def _normal(parameters: Tensor) -> tuple[Tensor, Tensor]:
        return parameters[..., 0], nn.functional.softplus(parameters[..., 1]) + 1e-4

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood under teacher forcing, in the window's own scale."""
        batch = self._inputs(batch)
        hidden = self.network.encode(batch)
        parameters, _ = self.network.decode_all(self._decoder_inputs(batch), hidden)
        mean, deviation = self._normal(parameters)
        return nn.functional.gaussian_nll_loss(mean, scaled_target(batch), deviation**2)

    def sample_paths(self, batch: Batch, paths: int) -> tuple[Tensor, Tensor]:
        """Joint sample paths ``(B, paths, H)`` in the window's own scale, and features ``(B, hidden)``.

        History is encoded once; the paths of all windows then advance together, one step of the network a time.
        """
        batch = self._inputs(batch)
        state = self.network.encode(batch)
        features = state[0][-1]
        inputs = self._decoder_inputs(batch).repeat_interleave(paths, 0)
        state = self.network.rnn.repeat_interleave(state, paths)
        previous, steps = inputs[:, 0, 0], []
        for step in range(inputs.shape[1]):
            current = inputs[:, step : step + 1]
            current[:, 0, 0] = previous
            parameters, state = self.network.decode_all(current, state)
            mean, deviation = self._normal(parameters[:, 0])
            previous = mean + deviation * torch.randn_like(mean)
            steps.append(previous)
        return torch.stack(steps, dim=-1).view(-1, paths, inputs.shape[1]), features

    def encode(self, batch: Batch) -> Tensor:
        return self.network.encode(self._inputs(batch))[0][-1]

    def predict(self, batch: Batch) -> Prediction:
        paths, features = self.sample_paths(batch, self.paths)
        return Prediction(unscale(sample_quantiles(paths, self.levels), batch), features)


def sample_quantiles(paths: Tensor, levels: Tensor) -> Tensor:
    """Quantiles ``(B, H, Q)`` of ``paths`` ``(B, paths, H)``, linear between order statistics.

    Equal to ``torch.quantile``, which refuses more than 2^24 numbers.
    """
    ordered = paths.sort(dim=1).values
    position = levels * (paths.shape[1] - 1)
    below = position.long().clamp(max=paths.shape[1] - 2)
    weight = (position - below)[None, :, None]
    return torch.lerp(ordered[:, below], ordered[:, below + 1], weight.expand(-1, -1, paths.shape[2])).transpose(1, 2)
