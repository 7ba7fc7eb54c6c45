"""What a window looks like beside its own series' earlier history, from raw values.

Scaling hides a window's level and spread from an encoder, and an encoder trained to forecast forgets what does not help it.
Every descriptor compares the window with the stretch before it, so that growth over years and the size of a series leave
all of them near zero, and a sudden change does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.panel import SCALE_FLOOR, Panel, PanelSchema, Windows

__all__ = ["DESCRIPTORS", "block_length", "descriptors"]

CELLS = 4_000_000
"""Values of history that are held at a time."""
LEAST_BLOCKS = 2
"""Blocks before the window without which there is nothing to compare with."""


def block_length(schema: PanelSchema) -> int:
    """Steps of the blocks that history is cut into: the season where the context holds two, else a quarter of the context."""
    season = schema.season_length
    return season if 1 < season <= schema.context // 2 else max(1, schema.context // 4)


def descriptors(panel: Panel, windows: Windows) -> Tensor:
    """Descriptors of each window's context against the blocks before it, float64 ``(n, len(DESCRIPTORS))``.

    Differences are in standard deviations of the earlier history (through asinh or log1p, which tame their tails), scales
    are logarithms of ratios, shares are differences of shares: 0 is like the history before, in all but the last. NaN where
    the series has too little history to tell. Time and memory are a few times ``schema.reference`` a window.
    """
    chunk = max(1, CELLS // max(1, panel.schema.reference))
    parts = [_describe(_Blocks.gather(panel, windows[slice(i, i + chunk)])) for i in range(0, len(windows), chunk)]
    return torch.cat(parts) if parts else torch.empty((0, len(DESCRIPTORS)), dtype=torch.float64)


def _describe(blocks: _Blocks) -> Tensor:
    columns = torch.stack([compute(blocks) for compute in DESCRIPTORS.values()], dim=1)
    return torch.where(blocks.told[:, None], columns, torch.nan)


@dataclass(frozen=True)
class _Blocks:
    """The newest whole blocks before each cutoff: values ``(n, M, P)``, the last ``recent`` of the context, 0 where unknown.

    ``known`` bool ``(n, M)`` says which blocks lie within the series. Names with ``old`` are of the earlier blocks and those
    with ``new`` of the context's.
    """

    values: Tensor
    known: Tensor
    recent: int

    @classmethod
    def gather(cls, panel: Panel, windows: Windows) -> _Blocks:
        schema, length = panel.schema, block_length(panel.schema)
        count = schema.reference // length
        values, known = (each.view(len(windows), count, length) for each in panel.history(windows, count * length))
        known = known[:, :, 0]
        return cls(values * known[:, :, None], known, schema.context // length)

    @property
    def first(self) -> int:
        """How many blocks are earlier ones."""
        return self.values.shape[1] - self.recent

    @property
    def told(self) -> Tensor:
        """Windows whose context is known and has something before it, bool ``(n,)``."""
        return self.known[:, self.first :].all(1) & (self.known[:, : self.first].sum(1) >= LEAST_BLOCKS)

    @property
    def old(self) -> Tensor:
        return self.values[:, : self.first]

    @property
    def new(self) -> Tensor:
        return self.values[:, self.first :]

    def earlier(self, per_block: Tensor) -> Tensor:
        """Mean over the earlier blocks that are known, ``(n, M - K, ...)`` -> ``(n, ...)``."""
        mask = self.known[:, : self.first].view(len(self.known), self.first, *[1] * (per_block.dim() - 2))
        return (per_block * mask).sum(1) / mask.sum(1).clamp(min=1)

    def earlier_pairs(self, per_pair: Tensor) -> Tensor:
        """Mean over neighbouring earlier blocks of which both are known, ``(n, M - K - 1)`` -> ``(n,)``."""
        both = self.known[:, 1 : self.first] & self.known[:, : self.first - 1]
        return (per_pair * both).sum(1) / both.sum(1).clamp(min=1)

    @cached_property
    def floor(self) -> Tensor:
        """The least scale that counts, ``(n,)``: keeps an almost constant history from making all else strange."""
        return SCALE_FLOOR * self.earlier(self.old.abs().mean(2)).clamp(min=1e-6)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of each block ``(n, M)``."""
        return self.values.mean(2)

    @cached_property
    def step(self) -> Tensor:
        """Change of the mean from block to block ``(n, M - 1)``."""
        return self.mean.diff(dim=1)

    @cached_property
    def deviation(self) -> Tensor:
        """Values less their block's mean."""
        return self.values - self.mean[:, :, None]

    @cached_property
    def profile(self) -> Tensor:
        """The earlier history's usual course over a block, ``(n, P)``, of mean 0."""
        return self.earlier(self.deviation[:, : self.first])

    @cached_property
    def plain(self) -> Tensor:
        """Values without the usual course."""
        return self.values - self.profile[:, None]

    @cached_property
    def residual(self) -> Tensor:
        """Values less the usual course and their block's mean."""
        return self.deviation - self.profile[:, None]

    @cached_property
    def spread(self) -> Tensor:
        """Standard deviation of the earlier values ``(n,)``."""
        base = self.earlier(self.mean[:, : self.first])
        return (self.earlier(self.old.square().mean(2)) - base.square()).clamp(min=0).sqrt()

    @cached_property
    def level_spread(self) -> Tensor:
        """Standard deviation of the earlier blocks' means ``(n,)``."""
        means = self.mean[:, : self.first]
        return (self.earlier(means.square()) - self.earlier(means).square()).clamp(min=0).sqrt()

    @cached_property
    def noise(self) -> Tensor:
        """Size of the earlier residuals ``(n,)``."""
        return self.rms_earlier(self.residual[:, : self.first])

    @cached_property
    def usual_step(self) -> Tensor:
        """Size of the earlier changes of the mean ``(n,)``."""
        return self.earlier_pairs(self.step[:, : self.first - 1].square()).sqrt() + 0.1 * self.floor

    @cached_property
    def usual_jump(self) -> Tensor:
        """Size of the earlier one-step changes without the usual course ``(n,)``."""
        return self.rms_earlier(self.plain[:, : self.first].diff(dim=2))

    @cached_property
    def jump(self) -> Tensor:
        """One-step changes without the usual course, from the step before the window on, ``(n, K P)``."""
        flat = self.plain[:, self.first :].flatten(1)
        return torch.cat([self.plain[:, self.first - 1, -1:], flat], dim=1).diff(dim=1)

    @cached_property
    def own_profile(self) -> Tensor:
        """The window's own course over a block ``(n, P)``."""
        return self.deviation[:, self.first :].mean(1)

    @cached_property
    def around(self) -> tuple[Tensor, Tensor]:
        """Mean squares of the deviations, of the window and before, ``(n,)`` each."""
        new = self.deviation[:, self.first :].square().flatten(1).mean(1)
        return new + self.tiny, self.earlier(self.deviation[:, : self.first].square().mean(2)) + self.tiny

    @property
    def tiny(self) -> Tensor:
        return (0.1 * self.floor).square()

    def rms_earlier(self, part: Tensor) -> Tensor:
        return self.earlier(part.square().mean(2)).sqrt()

    def ratio(self, now: Tensor, then: Tensor) -> Tensor:
        """Logarithm of a ratio of scales."""
        return torch.log((now + 0.1 * self.floor) / (then + 0.1 * self.floor))

    def against_earlier(self, weights: Tensor) -> Tensor:
        """A weighted sum of the newest blocks' means in units of its own size over the earlier history, by asinh.

        Where the earlier history is too short to tell that size, it is taken from the spread of its blocks' means, the more so
        the shorter it is.
        """
        span, count = len(weights), self.values.shape[1]
        if span > count:
            return torch.full((len(self.values),), torch.nan, dtype=torch.float64)
        weights = weights / weights.abs().sum().clamp(min=1)
        now = torch.where(self.known[:, -span:].all(1), self.mean[:, -span:] @ weights, torch.nan)
        coarse = self.level_spread + 0.1 * self.usual_step
        if self.first < span:
            return torch.asinh(now / (coarse + 0.01 * self.floor))
        past = self.mean[:, : self.first].unfold(1, span, 1) @ weights
        whole = self.known[:, : self.first].unfold(1, span, 1).all(2)
        usual = ((past.square() * whole).sum(1) / whole.sum(1).clamp(min=1)).sqrt()
        share = whole.to(torch.float64).mean(1)  # by degrees: else a few more steps of history would look like a change
        usual = usual**share * coarse ** (1 - share)
        return torch.asinh(now / (usual + 0.1 * self.usual_step + 0.01 * self.floor))

    def extreme(self, sign: float) -> Tensor:
        """How far the window's largest value (smallest, by ``sign`` -1) lies beyond the earlier ones, by asinh."""
        before = (sign * self.old).amax(2).masked_fill(~self.known[:, : self.first], -torch.inf).amax(1)
        return torch.asinh(((sign * self.new).flatten(1).amax(1) - before) / (self.spread + self.floor))


def _rms(part: Tensor) -> Tensor:
    return part.square().flatten(1).mean(1).sqrt()


def _largest(part: Tensor) -> Tensor:
    return part.abs().flatten(1).amax(1)


def _ramp(count: int) -> Tensor:
    return torch.linspace(-1.0, 1.0, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)


def _level(b: _Blocks) -> Tensor:
    return torch.asinh((b.mean[:, b.first :].mean(1) - b.earlier(b.mean[:, : b.first])) / (b.spread + b.floor))


def _level_step(b: _Blocks) -> Tensor:
    side = torch.ones(b.recent, dtype=torch.float64)
    return b.against_earlier(torch.cat([-side, side]))


def _seasonal_difference(b: _Blocks) -> Tensor:
    change = b.deviation.diff(dim=1)
    usual = b.earlier_pairs(change[:, : b.first - 1].square().mean(2)).sqrt()
    return b.ratio(_rms(change[:, b.first :]), usual)


def _roughness(b: _Blocks) -> Tensor:
    """Size of one-step changes over the spread: high for noise, low for drift."""
    centred = b.new - b.mean[:, b.first :].mean(1)[:, None, None]
    now = b.ratio(_rms(b.new.flatten(1).diff(dim=1)), _rms(centred))
    return now - b.ratio(b.rms_earlier(b.old.diff(dim=2)), b.spread)


def _seasonal_strength(b: _Blocks) -> Tensor:
    own = b.deviation[:, b.first :] - b.own_profile[:, None]
    new, old = b.around
    return b.noise.square() / old - _rms(own).square() / new


def _season_autocorrelation(b: _Blocks) -> Tensor:
    product = (b.deviation[:, 1:] * b.deviation[:, :-1]).mean(2)
    new, old = b.around
    return product[:, b.first :].mean(1) / new - b.earlier_pairs(product[:, : b.first - 1]) / old


def _profile_shape(b: _Blocks) -> Tensor:
    size = (b.own_profile.square().mean(1) * b.profile.square().mean(1)).sqrt()
    return 1 - (b.own_profile * b.profile).mean(1) / (size + b.tiny)


def _profile_size(b: _Blocks) -> Tensor:
    return (b.own_profile * b.profile).mean(1) / (b.profile.square().mean(1) + b.tiny) - 1


def _season_share(blocks: Tensor) -> Tensor:
    """Share of the variance of ``(n, K, P)`` that lies at the season's frequency and its harmonics, ``(n,)``."""
    flat = blocks.flatten(1)
    power = torch.fft.rfft(flat - flat.mean(1, keepdim=True)).abs().square()
    return power[:, blocks.shape[1] :: blocks.shape[1]].sum(1) / power[:, 1:].sum(1).clamp(min=1e-12)


def _spectral_share(b: _Blocks) -> Tensor:
    n, stretches = len(b.values), b.first // b.recent  # earlier stretches as long as the window
    if stretches == 0:
        return torch.full((n,), torch.nan, dtype=torch.float64)
    begin = b.first - stretches * b.recent
    share = _season_share(b.old[:, begin:].reshape(n * stretches, b.recent, -1)).view(n, stretches)
    whole = b.known[:, begin : b.first].reshape(n, stretches, b.recent).all(2).to(torch.float64)
    usual = (share * whole).sum(1) / whole.sum(1).clamp(min=1)
    return torch.where(whole.any(1), _season_share(b.new) - usual, torch.nan)


def _zeros(b: _Blocks) -> Tensor:
    return (b.new == 0).to(torch.float64).flatten(1).mean(1) - b.earlier((b.old == 0).to(torch.float64).mean(2))


def _repeats(b: _Blocks) -> Tensor:
    new, old = b.new.flatten(1).diff(dim=1) == 0, b.old.diff(dim=2) == 0
    if not old.shape[2]:
        return torch.full((len(b.values),), torch.nan, dtype=torch.float64)
    return new.to(torch.float64).mean(1) - b.earlier(old.to(torch.float64).mean(2))


DESCRIPTORS: dict[str, Callable[[_Blocks], Tensor]] = {
    "level": _level,
    "level step": _level_step,
    "edge step": lambda b: torch.asinh(b.step[:, b.first - 1] / b.usual_step),
    "largest step": lambda b: torch.log1p(b.step[:, b.first - 1 :].abs().amax(1) / b.usual_step),
    "spread": lambda b: b.ratio(b.new.flatten(1).std(1, correction=0), b.spread),
    "trend": lambda b: b.against_earlier(_ramp(b.recent)),
    "late half": lambda b: b.against_earlier(_ramp(b.recent).sign()),
    "residual scale": lambda b: b.ratio(_rms(b.residual[:, b.first :]), b.noise),
    "newest residual scale": lambda b: b.ratio(_rms(b.residual[:, -1:]), b.noise),
    "seasonal difference": _seasonal_difference,
    "difference": lambda b: b.ratio(_rms(b.jump), b.usual_jump),
    "roughness": _roughness,
    "seasonal strength": _seasonal_strength,
    "season autocorrelation": _season_autocorrelation,
    "profile shape": _profile_shape,
    "profile size": _profile_size,
    "spectral share": _spectral_share,
    "zeros": _zeros,
    "repeats": _repeats,
    "largest jump": lambda b: torch.log1p(_largest(b.jump) / (b.usual_jump + 0.1 * b.floor)),
    "largest residual": lambda b: torch.log1p(_largest(b.residual[:, b.first :]) / (b.noise + 0.1 * b.floor)),
    "above range": lambda b: b.extreme(1.0),
    "below range": lambda b: b.extreme(-1.0),
    "earlier strength": lambda b: 1 - b.noise.square() / b.around[1],
}
"""Columns of `descriptors` by name. The last tells the kind of series, so that it is compared with others of its kind."""
