"""The panel as contiguous arrays, and windows gathered from it in one vectorised step.

Series lie end to end in one float32 matrix, so memory is the data's own size and series of unequal length cost no
padding; what a time alone tells is kept once for all series (`models.calendar`). A window is a (series, cutoff) pair; it
is gathered for a whole batch at once and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.calendar import Calendar
from models.windows import WindowGrid, Windows

__all__ = ["Batch", "Panel", "PanelSchema", "SequentialLoader", "WindowGrid", "WindowLoader", "Windows", "places_by_series"]

Batch = dict[str, Tensor]

CELLS = 2**20
"""Values of history that are held at a time."""

SCALE_FLOOR = 1e-2  # of the window's mean size: keeps an almost constant window from exploding when it is scaled


@dataclass(frozen=True)
class PanelSchema:
    """What the columns of a panel are, in the order in which they lie in memory.

    Attributes
    ----------
    known : names of the real covariates that are known for the future (calendar included), standardised
    past : names of the real covariates that are known for the past alone, standardised
    static : (name, number of categories) per static categorical; category 0 means "not seen in training"
    categories : (name, number of categories) per known-future categorical
    lags : lags of the target, in steps, each at least ``horizon``, offered as inputs
    context, horizon, season_length : in steps
    """

    known: tuple[str, ...]
    past: tuple[str, ...]
    static: tuple[tuple[str, int], ...]
    categories: tuple[tuple[str, int], ...]
    lags: tuple[int, ...]
    context: int
    horizon: int
    season_length: int

    @property
    def lag_names(self) -> tuple[str, ...]:
        return tuple(f"lag_{lag}" for lag in self.lags)

    @property
    def reals(self) -> tuple[str, ...]:
        """Names of the real inputs in the order of ``encoder_cont``: target, known, past, lags."""
        return ("target", *self.known, *self.past, *self.lag_names)

    @property
    def reference(self) -> int:
        """Steps of history against which a window's own level is judged: the longest lag, or four contexts."""
        return max(4 * self.context, *self.lags, 0)

    @property
    def future_reals(self) -> tuple[int, ...]:
        """Positions in ``reals`` of what is known over the horizon."""
        n_known, n_past = len(self.known), len(self.past)
        return (*range(1, 1 + n_known), *range(1 + n_known + n_past, len(self.reals)))

    @property
    def past_reals(self) -> tuple[int, ...]:
        """Positions in ``reals`` of the past-only covariates."""
        return tuple(range(1 + len(self.known), 1 + len(self.known) + len(self.past)))

    @property
    def all_categories(self) -> tuple[tuple[str, int], ...]:
        """Categorical inputs in the order of ``encoder_cat``: static, then known-future."""
        return (*self.static, *self.categories)


def places_by_series(series: Tensor, count: int) -> tuple[Tensor, ...]:
    """Where the windows of each of ``count`` series stand in ``series`` ``(n,)``, in order, int64 ``(n_i,)`` each."""
    return series.argsort(stable=True).split(torch.bincount(series, minlength=count).tolist())


@dataclass(frozen=True)
class Panel:
    """A panel in memory (or mapped from disk).

    Attributes
    ----------
    rows : float32 ``(n_rows, 1 + n_own + n_past)``; column 0 is the target in its own units, NaN in future rows; then the
        known-future covariates that are a series' own, the first ``n_own`` of ``schema.known``, then the past-only ones
    calendar : known-future covariates and categories that depend on time alone
    static : int64 ``(n_series, n_static)``
    offsets : int64 ``(n_series + 1,)``; rows of series i are ``offsets[i]:offsets[i + 1]``
    observed : int64 ``(n_series,)``; rows of a series before its future rows
    """

    schema: PanelSchema
    rows: Tensor
    calendar: Calendar
    static: Tensor
    offsets: Tensor
    observed: Tensor = field(repr=False)

    @property
    def n_series(self) -> int:
        return len(self.observed)

    def window_grid(self, first: np.ndarray, last: np.ndarray, stride: int, minimum: int) -> WindowGrid:
        """Return every window of each series whose cutoff lies in ``[first, last]``, ``stride`` steps apart.

        The grid is anchored at ``last`` so that the newest cutoff is always in. ``first`` and ``last`` are int64
        ``(n_series,)``; cutoffs with fewer than ``minimum`` rows of history are left out.
        """
        count = np.maximum((last - np.maximum(first, minimum)) // stride + 1, 0)
        return WindowGrid(torch.from_numpy(last), torch.from_numpy(count), stride)

    def _check(self, windows: Windows) -> None:
        """Raise ValueError where a window would read rows of another series."""
        rows = self.offsets.diff()[windows.series]
        outside = (windows.cutoff < 1) | (windows.cutoff + self.schema.horizon > rows)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            series, cutoff = int(windows.series[first]), int(windows.cutoff[first])
            last = int(rows[first]) - self.schema.horizon
            raise ValueError(f"series {series} has cutoffs 1 to {last} for horizon {self.schema.horizon}, not {cutoff}")

    def targets(self, windows: Windows) -> Tensor:
        """Return the true values of each window, float32 ``(n, horizon)``, in the target's units."""
        self._check(windows)
        start = self.offsets[windows.series] + windows.cutoff
        return self.rows[:, 0][start[:, None] + torch.arange(self.schema.horizon)]

    def gather(self, windows: Windows) -> Batch:
        """Gather windows as one batch in pytorch-forecasting's v1 layout.

        Encoders are left-aligned: window i fills the first ``encoder_lengths[i]`` steps. Each window's target and
        lags are scaled by the mean and standard deviation of its own history (``target_scale``, ``(B, 2)``).
        Past-only covariates are zero over the horizon. Unknown future targets are zero. So is padding. Raises ValueError
        for a window that does not lie within its series.

        Returns
        -------
        encoder_cont (B, T, R), decoder_cont (B, H, R), encoder_cat (B, T, C), decoder_cat (B, H, C),
        encoder_lengths (B,), decoder_lengths (B,), encoder_target (B, T), decoder_target (B, H),
        target_scale (B, 2), groups (B, 1), decoder_time_idx (B, H)
        """
        self._check(windows)
        schema, horizon = self.schema, self.schema.horizon
        lengths = windows.cutoff.clamp(max=schema.context)
        context = int(lengths.max())
        first = windows.cutoff - lengths
        step = first[:, None] + torch.arange(context + horizon)
        full = bool((lengths == context).all())
        if not full:  # short histories: the decoder follows at once, so it is moved to its own columns
            decoder = windows.cutoff[:, None] + torch.arange(horizon)
            encoder = torch.minimum(step[:, :context], windows.cutoff[:, None] - 1)
            step = torch.cat([encoder, decoder], dim=1)
        offset = self.offsets[windows.series][:, None]
        index = (step + offset).flatten()
        shape = (len(windows), context + horizon)
        time = (step + self.calendar.first[windows.series][:, None]).flatten()
        rows = self.rows.index_select(0, index).view(*shape, -1)
        codes = self.calendar.codes.index_select(0, time).view(*shape, -1)
        static = self.static[windows.series][:, None].expand(-1, shape[1], -1)
        cat = torch.cat([static, codes], dim=-1)

        raw = rows[..., 0].clone()
        loc, scale = self._location_scale(raw[:, :context], lengths, full)
        parts = [rows]
        if self.calendar.reals.shape[1]:
            own = rows.shape[-1] - len(schema.past)
            parts = [rows[..., :own], self.calendar.reals.index_select(0, time).view(*shape, -1), rows[..., own:]]
        lagged = self._lagged(step, offset, loc)
        if lagged is not None:
            parts.append(lagged.sub_(loc[:, None, None]).div_(scale[:, None, None]))
        cont = torch.cat(parts, dim=-1) if len(parts) > 1 else rows
        target = cont[..., 0]
        target.sub_(loc[:, None]).div_(scale[:, None])
        future = cont[:, context:]
        future[..., 0].nan_to_num_(nan=0.0)
        if schema.past:
            future[..., 1 + len(schema.known) : 1 + len(schema.known) + len(schema.past)] = 0.0
        if not full:
            padding = torch.arange(context)[None, :] >= lengths[:, None]
            for values in (cont, cat, raw):
                values[:, :context][padding] = 0
        return {
            "encoder_cont": cont[:, :context],
            "encoder_cat": cat[:, :context],
            "encoder_lengths": lengths,
            "encoder_target": raw[:, :context],
            "decoder_cont": future,
            "decoder_cat": cat[:, context:],
            "decoder_lengths": torch.full_like(lengths, horizon),
            "decoder_target": raw[:, context:],
            "decoder_time_idx": step[:, context:],
            "target_scale": torch.stack([loc, scale], dim=1),
            "groups": windows.series[:, None],
        }

    def levels(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """What scaling hides from an encoder: each window's location and scale, and both against the time before.

        Returns the window's scale ``(n,)`` in the target's units, and ``(n, 2)`` features: the window's mean less that
        of the series' last ``reference`` steps in units of their standard deviation, and the logarithm of the ratio
        of the standard deviations. Growth over years leaves both near zero; a sudden shift does not.
        """
        schema = self.schema
        chunk = max(1, CELLS // schema.reference)
        scale, features = torch.empty(len(windows), dtype=torch.float64), torch.empty((len(windows), 2), dtype=torch.float64)
        for start in range(0, len(windows), chunk):
            part = slice(start, start + chunk)
            history, known = self.history(windows[part], schema.reference)
            mean, scale[part] = _moments(history[:, -schema.context :], known[:, -schema.context :])
            base, spread = _moments(history, known)
            features[part] = torch.stack([(mean - base) / spread, torch.log(scale[part] / spread)], dim=1)
        return scale, features

    def history(self, windows: Windows, steps: int) -> tuple[Tensor, Tensor]:
        """The target's last ``steps`` values before each cutoff, float64 ``(n, steps)``, 0 where there is none.

        Also returns which steps lie within the series, bool ``(n, steps)``.
        """
        step = windows.cutoff[:, None] + torch.arange(-steps, 0)
        index = (step.clamp(min=0) + self.offsets[windows.series][:, None]).flatten()
        values = self.rows[:, 0].index_select(0, index).view(step.shape).to(torch.float64).nan_to_num_()
        known = step >= 0
        return values.mul_(known), known

    def _location_scale(self, history: Tensor, lengths: Tensor, full: bool) -> tuple[Tensor, Tensor]:
        """Mean and floored standard deviation of each history, ``(B,)`` each."""
        if full:
            loc = history.mean(dim=1)  # two plain passes: five times faster than torch.std_mean on a CPU
            scale = (history - loc[:, None]).square_().mean(dim=1).sqrt_()
            size = history.abs().mean(dim=1)
        else:
            mask = torch.arange(history.shape[1])[None, :] < lengths[:, None]
            count = lengths.to(history.dtype)
            loc = (history * mask).sum(1) / count
            scale = ((((history - loc[:, None]) * mask) ** 2).sum(1) / count).sqrt()
            size = (history.abs() * mask).sum(1) / count
        return loc, torch.maximum(scale, SCALE_FLOOR * size).clamp(min=1e-6)

    def _lagged(self, step: Tensor, offset: Tensor, loc: Tensor) -> Tensor | None:
        """The target ``lag`` steps earlier, ``(B, W, n_lags)``; the window's mean where the series had not begun."""
        if not self.schema.lags:
            return None
        column, earliest = self.rows[:, 0], int(step.min())
        parts = []
        for lag in self.schema.lags:
            before = step - lag
            if earliest >= lag:
                parts.append(column[before + offset])
            else:
                value = column[before.clamp(min=0) + offset]
                parts.append(torch.where(before >= 0, value, loc[:, None]))
        return torch.stack(parts, dim=-1)


def _moments(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored standard deviation of ``values`` ``(n, m)``, 0 where not ``known``, ``(n,)`` each."""
    count = known.sum(1)
    mean = values.sum(1) / count
    deviation = ((values - mean[:, None]).mul_(known).square_().sum(1) / count).sqrt()
    return mean, torch.maximum(deviation, SCALE_FLOOR * mean.abs()).clamp(min=1e-6)


@dataclass
class WindowLoader:
    """Batches drawn at random from ``windows``, a pure function of (seed, epoch), so that a killed run repeats itself.

    With probability ``id_dropout`` a window's static categories are replaced by 0, which teaches the networks what to
    do with a series that they have never seen.
    """

    panel: Panel
    windows: Windows
    batch_size: int
    batches: int
    seed: int
    epoch: int = 0
    id_dropout: float = 0.0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for _ in range(self.batches):
            chosen = torch.randint(len(self.windows), (self.batch_size,), generator=generator)
            batch = self.panel.gather(self.windows[chosen])
            n_static = len(self.panel.schema.static)
            if self.id_dropout and n_static:
                hidden = torch.rand(self.batch_size, generator=generator) < self.id_dropout
                for key in ("encoder_cat", "decoder_cat"):
                    batch[key][..., :n_static][hidden] = 0
            yield batch


@dataclass
class SequentialLoader:
    """All of ``windows`` once, in order, in batches."""

    panel: Panel
    windows: Windows
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.windows), self.batch_size):
            yield self.panel.gather(self.windows[slice(start, start + self.batch_size)])
