"""MC dropout: a network that keeps its dropout on in prediction, each pass with masks of its own (Gal and Ghahramani, 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from models.forecasters.base import Forecaster
from models.panel import Batch
from models.predictive import sample_quantiles
from models.uncertainty.ensemble import decompose, pool

__all__ = ["mc_dropout", "mc_dropout_forecast", "mc_dropout_quantiles", "stochastic_layers"]

PATHS_SHARED = 5
"""How many times the paths of one forecast all MC dropout passes together draw, so that passes do not multiply the cost."""

SHARED_MASKS = "paths_share_masks"
"""Attribute of networks that sample paths: whether all paths of a window have one mask, or each a mask of its own."""


def stochastic_layers(network: nn.Module) -> list[nn.Module]:
    """Layers that draw at random in training mode: dropout with p > 0, and recurrent layers with dropout between them.

    A recurrent layer with a single layer drops nothing whatever its ``dropout`` (torch warns of it), so it is left out.
    """
    return [
        module
        for module in network.modules()
        if (isinstance(module, _DropoutNd) and module.p > 0.0)
        or (isinstance(module, nn.RNNBase) and module.dropout > 0.0 and module.num_layers > 1)
    ]


@contextmanager
def mc_dropout(forecaster: Forecaster, *, share_masks: bool = True) -> Iterator[Forecaster]:
    """Within the context ``forecaster`` is in evaluation mode save for its stochastic layers, which draw.

    The modes that its modules had before come back on exit, also after an exception.

    Parameters
    ----------
    forecaster : Forecaster
    share_masks : bool
        A network that samples paths keeps one mask a path over the whole horizon either way. If True, the paths of one
        window and pass have the same mask, so that paths differ by noise alone and passes by the model: what the split
        into aleatoric and epistemic variance needs. If False, each path has a mask of its own, and the quantiles of one
        pass are those of the mixture over masks.

    Raises
    ------
    ValueError
        If the network has no stochastic layer: its passes would all be one, an epistemic variance of zero.
    """
    layers = stochastic_layers(forecaster)
    if not layers:
        raise ValueError(
            f"{_name(forecaster)} has no stochastic layer, so MC dropout would repeat one forecast; its dropout must be "
            "above 0, and dropout between recurrent layers takes at least two of them"
        )
    modes = [(module, module.training) for module in forecaster.modules()]
    sharing = [(module, getattr(module, SHARED_MASKS)) for module in forecaster.modules() if hasattr(module, SHARED_MASKS)]
    try:
        forecaster.eval()
        for layer in layers:
            layer.training = True
        for module, _ in sharing:
            setattr(module, SHARED_MASKS, share_masks)
        yield forecaster
    finally:
        for module, training in modes:
            module.training = training
        for module, shared in sharing:
            setattr(module, SHARED_MASKS, shared)


def mc_dropout_quantiles(forecaster: Forecaster, batch: Batch, passes: int, seed: int, *, share_masks: bool = True) -> Tensor:
    """Quantiles ``(passes, B, H, Q)`` of ``passes`` predictions, each with masks of its own; the members of a pool.

    Equal for an equal ``seed``, and the first passes are the same however many follow. Torch's own random state is left
    as it was. ``share_masks`` as in `mc_dropout`. Raises ValueError for fewer than one pass or a network without
    stochastic layers.
    """
    if passes < 1:
        raise ValueError(f"MC dropout takes at least 1 pass, got {passes}")
    devices = {parameter.device for parameter in forecaster.parameters() if parameter.device.type == "cuda"}
    with mc_dropout(forecaster, share_masks=share_masks), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        return torch.stack([forecaster.predict(batch).quantiles for _ in range(passes)])


def mc_dropout_forecast(forecaster: Forecaster, batch: Batch, passes: int, seed: int) -> tuple[Tensor, Tensor]:
    """The mixture over ``passes``, as quantiles ``(B, H, Q)``, and its variance ``(2, B, H)``: aleatoric and epistemic.

    Passes are draws of one posterior, each as likely as another, so their forecast is the mixture (Gal and Ghahramani,
    2016, equation 6); the variance within passes is aleatoric, that between their means epistemic. A network that samples
    paths draws ``PATHS_SHARED`` times its usual number over all passes together, and the mixture is theirs. float64.
    """
    if hasattr(forecaster, "target_paths"):
        return _mixture_of_paths(forecaster, batch, passes, seed)
    quantiles = mc_dropout_quantiles(forecaster, batch, passes, seed).double().cpu()
    even = torch.full((passes,), 1.0 / passes, dtype=torch.float64)
    return pool(quantiles, even, "linear").values, torch.stack(decompose(quantiles, even))


def _mixture_of_paths(forecaster: Any, batch: Batch, passes: int, seed: int) -> tuple[Tensor, Tensor]:
    """`mc_dropout_forecast` of a network that samples paths.

    The means of n paths differ by a pass's variance over n even where the passes agree, which is taken off (the unbiased
    estimate of one-way analysis of variance).
    """
    count = max(2, -(-PATHS_SHARED * forecaster.paths // passes))
    devices = {parameter.device for parameter in forecaster.parameters() if parameter.device.type == "cuda"}
    with mc_dropout(forecaster), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        paths = torch.stack([forecaster.target_paths(batch, count) for _ in range(passes)]).double().cpu()
    within = paths.var(dim=2).mean(0)
    between = paths.mean(2).var(dim=0, unbiased=passes > 1) - within / count
    every = paths.transpose(0, 1).flatten(1, 2)
    return sample_quantiles(every, forecaster.levels.double().cpu()), torch.stack([within, between.clamp(min=0.0)])


def _name(forecaster: nn.Module) -> str:
    """Class of the forecaster, and of its backbone where it has one: families share `SequenceForecaster`."""
    backbone = getattr(forecaster, "backbone", None)
    return type(forecaster).__name__ + (f" on {type(backbone).__name__}" if isinstance(backbone, nn.Module) else "")
