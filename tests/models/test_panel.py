"""The gather of windows: equal to a slow loop, blind to the future, in pytorch-forecasting's layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.calendar import Calendar
from models.panel import (
    SCALE_FLOOR,
    Batch,
    Panel,
    PanelSchema,
    SequentialLoader,
    WindowGrid,
    WindowLoader,
    Windows,
    places_by_series,
)


def windows_of(*pairs: tuple[int, int]) -> Windows:
    series, cutoff = torch.tensor(pairs).unbind(1)
    return Windows(series, cutoff)


def slow_window(panel: Panel, series: int, cutoff: int) -> dict[str, np.ndarray]:
    """One window by the definition, in float64 Python loops, without padding."""
    schema, start = panel.schema, int(panel.offsets[series])
    rows = panel.rows[start : int(panel.offsets[series + 1])].numpy().astype(np.float64)
    calendar, first = panel.calendar, int(panel.calendar.first[series])
    reals, codes, own = calendar.reals.numpy(), calendar.codes.numpy(), panel.rows.shape[1] - len(schema.past)
    length = min(cutoff, schema.context)
    history = [rows[t, 0] for t in range(cutoff - length, cutoff)]
    loc = sum(history) / length
    deviation = math.sqrt(sum((value - loc) ** 2 for value in history) / length)
    scale = max(deviation, SCALE_FLOOR * sum(abs(value) for value in history) / length, 1e-6)
    cont, cat = [], []
    for t in range(cutoff - length, cutoff + schema.horizon):
        future = t >= cutoff
        target = rows[t, 0]
        record = [0.0 if math.isnan(target) else (target - loc) / scale]
        record += [*rows[t, 1:own], *reals[first + t]]
        record += [0.0 if future else value for value in rows[t, own:]]
        record += [(rows[t - lag, 0] - loc) / scale if t >= lag else 0.0 for lag in schema.lags]
        cont.append(record)
        cat.append([*panel.static[series].tolist(), *codes[first + t].tolist()])
    return {
        "encoder_cont": np.array(cont[:length]),
        "decoder_cont": np.array(cont[length:]),
        "encoder_cat": np.array(cat[:length]),
        "decoder_cat": np.array(cat[length:]),
        "encoder_target": np.array(history),
        "decoder_target": rows[cutoff : cutoff + schema.horizon, 0],
        "target_scale": np.array([loc, scale]),
        "decoder_time_idx": np.arange(cutoff, cutoff + schema.horizon),
    }


def assert_equal_to_loop(panel: Panel, windows: Windows) -> None:
    batch = panel.gather(windows)
    for row, (series, cutoff) in enumerate(zip(windows.series.tolist(), windows.cutoff.tolist(), strict=True)):
        length = min(cutoff, panel.schema.context)
        assert batch["encoder_lengths"][row] == length
        assert batch["decoder_lengths"][row] == panel.schema.horizon
        assert batch["groups"][row].tolist() == [series]
        for key, expected in slow_window(panel, series, cutoff).items():
            actual = batch[key][row].numpy()
            if key.startswith("encoder"):  # left-aligned; what follows is padding, and zero as in pytorch-forecasting
                assert not actual[length:].any(), key
                actual = actual[:length]
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4, err_msg=f"{key} of window {row}")


def test_a_calendar_kept_once_is_that_of_columns_repeated_in_every_row(panel: Panel) -> None:
    """Series that begin at different steps of one calendar, beside a panel whose rows repeat its columns: the same bytes."""
    generator, length = torch.Generator().manual_seed(3), panel.offsets.diff()
    first = torch.tensor([4, 0, 11])[: panel.n_series]
    steps = int((first + length).max())
    calendar = Calendar(torch.randn(steps, 2, generator=generator), torch.randint(7, (steps, 1), generator=generator), first)
    schema = replace(panel.schema, known=(*panel.schema.known, "sin", "cos"))
    once = replace(panel, schema=schema, calendar=calendar)
    step = torch.cat([torch.arange(int(begin), int(begin + count)) for begin, count in zip(first, length, strict=True)])
    own = panel.rows.shape[1] - len(schema.past)
    repeated = replace(
        once,
        rows=torch.cat([panel.rows[:, :own], calendar.reals[step], panel.rows[:, own:]], dim=1),
        calendar=Calendar.of_rows(torch.zeros(len(step), 0), calendar.codes[step], panel.offsets),
    )
    for pairs in ([(0, 40), (1, 20), (1, 25), (0, 60)], [(0, 40), (1, 3), (2, 9), (2, 1)]):
        windows = windows_of(*pairs)
        assert_equal_to_loop(once, windows)
        for key, expected in repeated.gather(windows).items():
            torch.testing.assert_close(once.gather(windows)[key], expected, rtol=0, atol=0, equal_nan=True)
    begin, end, own = int(once.offsets[1]), int(once.offsets[3]), slice(1, 3)
    later = calendar.of(torch.tensor([1, 2]), 0)
    part = Panel(schema, once.rows[begin:end], later, once.static[own], once.offsets[1:4] - begin, once.observed[own])
    for key, expected in once.gather(windows_of((1, 20), (2, 9))).items():
        found = part.gather(windows_of((0, 20), (1, 9)))[key]
        torch.testing.assert_close(found + int(key == "groups"), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 40), (1, 20), (0, 10), (1, 25), (0, 60)],  # every history full
        [(0, 40), (1, 3), (2, 9), (2, 1), (0, 5)],  # short histories among full ones
        [(1, 3), (2, 5)],  # no history full
        [(0, 60), (1, 25), (2, 9)],  # the future is unknown: NaN targets
    ],
)
def test_gather_equals_the_slow_loop(panel: Panel, pairs: list[tuple[int, int]]) -> None:
    assert_equal_to_loop(panel, windows_of(*pairs))


def test_gather_equals_the_slow_loop_without_covariates_and_lags(make_panel: Callable[..., Panel], schema: PanelSchema) -> None:
    bare = replace(schema, known=(), past=(), static=(), categories=(), lags=())
    assert_equal_to_loop(make_panel(schema=bare), windows_of((0, 40), (1, 3), (2, 9)))


def test_lags_before_the_series_began_are_zero_after_scaling(panel: Panel) -> None:
    batch = panel.gather(windows_of((0, 6), (1, 25)))
    lag_7 = panel.schema.reals.index("lag_7")
    assert not batch["encoder_cont"][0, :, lag_7].any()
    assert not batch["decoder_cont"][0, 0, lag_7].any()  # step 6 - 7 lies before row 0
    assert batch["decoder_cont"][0, 1:, lag_7].all()  # and the steps after it do not


def test_lags_never_reach_into_the_series_before(make_panel: Callable[..., Panel]) -> None:
    panel = make_panel()
    rows = panel.rows.clone()
    rows[: int(panel.offsets[1])] = 1e6
    other = replace(panel, rows=rows)
    windows = windows_of((1, 2), (1, 8), (1, 25))
    for key, value in panel.gather(windows).items():
        torch.testing.assert_close(value, other.gather(windows)[key], rtol=0, atol=0, equal_nan=True)


def test_almost_constant_history_is_not_blown_up(make_panel: Callable[..., Panel]) -> None:
    panel = make_panel()
    rows = panel.rows.clone()
    rows[:10, 0] = 100.0
    batch = replace(panel, rows=rows).gather(windows_of((0, 10)))
    torch.testing.assert_close(batch["target_scale"], torch.tensor([[100.0, 100.0 * SCALE_FLOOR]]))
    assert torch.isfinite(batch["encoder_cont"]).all()


def test_inputs_do_not_change_with_the_future(panel: Panel) -> None:
    """Future targets and past-only covariates reach nothing but the decoder's own target."""
    windows = windows_of((0, 40), (1, 5))
    rows = panel.rows.clone()
    for series, cutoff in ((0, 40), (1, 5)):
        start = int(panel.offsets[series]) + cutoff
        rows[start : int(panel.offsets[series + 1]), 0] = torch.nan
        rows[start : int(panel.offsets[series + 1]), 3] = 77.0
    known, hidden = panel.gather(windows), replace(panel, rows=rows).gather(windows)
    for key in known:
        if key == "decoder_target":
            assert hidden[key].isnan().all()
        elif key == "decoder_cont":
            assert not hidden[key][..., 0].any()
            torch.testing.assert_close(hidden[key][..., 1:], known[key][..., 1:], rtol=0, atol=0)
        else:
            torch.testing.assert_close(hidden[key], known[key], rtol=0, atol=0)


def test_gather_leaves_the_panel_alone(panel: Panel) -> None:
    before = panel.rows.clone()
    batch = panel.gather(windows_of((0, 40), (1, 5)))
    for value in batch.values():
        value.zero_()
    torch.testing.assert_close(panel.rows, before, rtol=0, atol=0, equal_nan=True)


def test_targets_are_the_next_steps_in_the_targets_units(panel: Panel) -> None:
    windows = windows_of((0, 40), (1, 5), (2, 9))
    truth = panel.targets(windows)
    torch.testing.assert_close(truth, panel.gather(windows)["decoder_target"], rtol=0, atol=0, equal_nan=True)
    assert truth[2].isnan().all()


def test_levels_compare_a_window_with_the_time_before(make_panel: Callable[..., Panel]) -> None:
    """Against float64 loops, for a small series between a large one and a constant one."""
    panel = make_panel(lengths=(900, 900, 900))
    rows = panel.rows.clone()
    rows[:900, 0] *= 1e5
    rows[904:1804, 0] *= 1e-2
    rows[1808:2708, 0] = 3.0
    panel = replace(panel, rows=rows)
    windows = windows_of((0, 500), (1, 4), (1, 30), (1, 900), (2, 300))
    scale, features = panel.levels(windows)
    for row, (series, cutoff) in enumerate(zip(windows.series.tolist(), windows.cutoff.tolist(), strict=True)):
        history = rows[int(panel.offsets[series]) :][:cutoff, 0].numpy().astype(np.float64)
        near, base = history[-panel.schema.context :], history[-panel.schema.reference :]
        sizes = [max(float(part.std()), SCALE_FLOOR * abs(float(part.mean()))) for part in (near, base)]
        assert float(scale[row]) == pytest.approx(sizes[0], rel=1e-6)
        expected = [(near.mean() - base.mean()) / sizes[1], math.log(sizes[0] / sizes[1])]
        np.testing.assert_allclose(features[row].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", [(0, 61), (1, 0), (2, 10)])
def test_a_window_that_leaves_its_series_is_an_error(panel: Panel, pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"series {pair[0]}"):
        panel.gather(windows_of((0, 40), pair))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_window_of_a_grid_is_found_by_its_place(stride: int) -> None:
    last, count = torch.tensor([50, 9, 30, 12]), torch.tensor([5, 0, 3, 1])
    pairs = [
        (series, int(end) - stride * back)
        for series, (end, windows) in enumerate(zip(last, count, strict=True))
        for back in reversed(range(int(windows)))
    ]
    grid = WindowGrid(last, count, stride)
    assert len(grid) == len(pairs) == 9
    assert list(zip(grid.series.tolist(), grid.cutoff.tolist(), strict=True)) == pairs
    chosen = torch.tensor([8, 0, 5, 5])
    found = grid[chosen]
    assert list(zip(found.series.tolist(), found.cutoff.tolist(), strict=True)) == [pairs[place] for place in chosen]
    few = grid[2:8:2]
    assert list(zip(few.series.tolist(), few.cutoff.tolist(), strict=True)) == pairs[2:8:2]
    assert len(WindowGrid(last, 0 * count, stride)) == 0 == len(WindowGrid(last, 0 * count, stride)[:])


def test_window_grid_is_anchored_at_the_newest_cutoff(panel: Panel) -> None:
    grid = panel.window_grid(np.array([20, 1, 50]), np.array([60, 21, 9]), stride=7, minimum=5)
    assert grid.cutoff[grid.series == 0].tolist() == [25, 32, 39, 46, 53, 60]
    assert grid.cutoff[grid.series == 1].tolist() == [7, 14, 21]
    assert not (grid.series == 2).any()
    assert len(grid) == 9
    assert grid.series.dtype == grid.cutoff.dtype == torch.int64


@pytest.mark.parametrize(("stride", "minimum"), [(1, 2), (3, 7), (7, 30)])
def test_window_grid_is_that_of_each_series_by_itself(panel: Panel, stride: int, minimum: int) -> None:
    first, last = np.array([20, 1, 50]), np.array([60, 21, 9])
    grid = panel.window_grid(first, last, stride, minimum)
    pairs = [
        (series, cutoff)
        for series, (low, high) in enumerate(zip(first, last, strict=True))
        for cutoff in range(1, int(high) + 1)
        if cutoff >= max(low, minimum) and (high - cutoff) % stride == 0
    ]
    assert list(zip(grid.series.tolist(), grid.cutoff.tolist(), strict=True)) == pairs


@pytest.mark.parametrize("cells", [1, 5000])
def test_levels_of_some_windows_at_a_time_are_those_of_all_at_once(
    panel: Panel, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = panel.window_grid(np.array([1, 1, 1]), panel.observed.numpy(), stride=1, minimum=2)
    mixed = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(1))]
    whole = panel.levels(mixed)
    monkeypatch.setattr("models.panel.CELLS", cells)
    torch.testing.assert_close(panel.levels(mixed), whole, rtol=0, atol=0)
    assert [len(part) for part in panel.levels(mixed[slice(0, 0)])] == [0, 0]


def test_windows_are_found_by_series() -> None:
    series = torch.tensor([2, 0, 2, 4, 0])
    found = [places.tolist() for places in places_by_series(series, 6)]
    assert found == [(series == index).nonzero()[:, 0].tolist() for index in range(6)]
    assert [len(places) for places in places_by_series(series[:0], 2)] == [0, 0]


def draw(loader: WindowLoader) -> list[Batch]:
    return list(loader)


def test_window_loader_is_a_function_of_seed_and_epoch_alone(panel: Panel) -> None:
    grid = panel.window_grid(np.array([1, 1, 1]), panel.observed.numpy() - 4, stride=1, minimum=1)
    make = lambda seed, epoch: draw(WindowLoader(panel, grid, 16, 3, seed, epoch, id_dropout=0.5))  # noqa: E731
    torch.manual_seed(1)
    first = make(5, 2)
    torch.manual_seed(2)
    torch.rand(7)
    for batch, again in zip(first, make(5, 2), strict=True):
        for key in batch:
            torch.testing.assert_close(batch[key], again[key], rtol=0, atol=0, equal_nan=True)
    same = lambda other: all(torch.equal(a["groups"], b["groups"]) for a, b in zip(first, other, strict=True))  # noqa: E731
    assert not same(make(5, 3))
    assert not same(make(6, 2))


def test_id_dropout_hides_whole_windows_at_its_rate(panel: Panel) -> None:
    """The count of hidden windows is binomial; 4.5 standard deviations are one in 150,000."""
    grid = panel.window_grid(np.array([10, 10, 9]), np.array([56, 21, 5]), stride=1, minimum=1)
    loader = WindowLoader(panel, grid, 64, 20, seed=1, id_dropout=0.3)
    hidden, total = 0, 64 * 20
    for batch in loader:
        store = torch.cat([batch["encoder_cat"], batch["decoder_cat"]], dim=1)[..., 0]
        gone = (store == 0).all(1)
        assert (gone | (store > 0).all(1)).all()
        assert (batch["decoder_cat"][..., 1] > 0).all()  # the weekday is never hidden
        hidden += int(gone.sum())
    assert abs(hidden - 0.3 * total) < 4.5 * math.sqrt(total * 0.3 * 0.7)


def test_sequential_loader_visits_every_window_once_in_order(panel: Panel) -> None:
    grid = panel.window_grid(np.array([1, 1, 1]), panel.observed.numpy(), stride=3, minimum=2)
    loader = SequentialLoader(panel, grid, batch_size=7)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert torch.equal(torch.cat([batch["groups"][:, 0] for batch in batches]), grid.series)
    assert torch.equal(torch.cat([batch["decoder_time_idx"][:, 0] for batch in batches]), grid.cutoff)


@pytest.mark.parametrize(("lags", "lengths"), [((4, 7), (30, 24)), ((), (30, 9))])
def test_layout_equals_pytorch_forecastings(
    make_panel: Callable[..., Panel], schema: PanelSchema, lags: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    """The same windows through ``TimeSeriesDataSet`` with its scalers off: same keys, shapes and values by name.

    ``TimeSeriesDataSet`` drops the rows before the longest lag, so short histories are compared without lags.
    """
    import pandas as pd
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data import EncoderNormalizer, NaNLabelEncoder

    schema = replace(schema, lags=lags)
    panel = make_panel(lengths=lengths, schema=schema)
    parts = []
    for series in range(panel.n_series):
        rows = slice(int(panel.offsets[series]), int(panel.offsets[series]) + int(panel.observed[series]))
        part = pd.DataFrame(panel.rows[rows].numpy().astype(float), columns=["y", *schema.known, *schema.past])
        part["weekday"] = [str(code) for code in panel.calendar.codes[rows, 0].tolist()]
        parts.append(part.assign(time=np.arange(len(part)), store=str(int(panel.static[series, 0]))))
    frame = pd.concat(parts, ignore_index=True)
    names = [*schema.known, *schema.past, *(f"y_lagged_by_{lag}" for lag in schema.lags)]
    dataset = TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="y",
        group_ids=["store"],
        min_encoder_length=1,
        max_encoder_length=schema.context,
        min_prediction_length=schema.horizon,
        max_prediction_length=schema.horizon,
        static_categoricals=["store"],
        time_varying_known_categoricals=["weekday"],
        time_varying_known_reals=list(schema.known),
        time_varying_unknown_reals=["y", *schema.past],
        lags={"y": list(lags)} if lags else {},
        target_normalizer=EncoderNormalizer(method="identity"),
        add_encoder_length=False,
        scalers=dict.fromkeys(names),
        categorical_encoders={"weekday": NaNLabelEncoder().fit(frame["weekday"]), "store": NaNLabelEncoder()},
    )
    theirs, _ = next(iter(dataset.to_dataloader(train=False, batch_size=500, num_workers=0)))
    first = theirs["decoder_time_idx"][:, 0]
    keep = theirs["encoder_lengths"] == torch.minimum(first, torch.tensor(schema.context))  # not one that skips rows
    assert keep.sum() > 10
    assert bool((theirs["encoder_lengths"][keep] < schema.context).any()) != bool(lags)
    windows = Windows(theirs["groups"][keep, 0], first[keep])
    ours = panel.gather(windows)
    assert set(ours) == set(theirs)
    position = {name: dataset.reals.index(name) for name in dataset.reals}
    aliases = {"target": "y", **{f"lag_{lag}": f"y_lagged_by_{lag}" for lag in schema.lags}}

    def cont(key: str) -> Tensor:
        order = [position[aliases.get(name, name)] for name in schema.reals]
        return theirs[key][keep][..., order]

    loc, scale = ours["target_scale"].unbind(1)
    for key in ours:
        assert ours[key].shape == theirs[key][keep].shape, key
        assert ours[key].dtype == theirs[key].dtype, key
        if key in ("encoder_cont", "decoder_cont"):
            actual, expected = ours[key].clone(), cont(key)
            raw = [0, *(index for index, name in enumerate(schema.reals) if name.startswith("lag_"))]
            actual[..., raw] = actual[..., raw] * scale[:, None, None] + loc[:, None, None]
            if key == "encoder_cont":
                actual[torch.arange(schema.context)[None] >= ours["encoder_lengths"][:, None]] = 0.0
            else:  # we hide the future of past-only covariates, they leave that to the network
                seen = [index for index in range(len(schema.reals)) if index not in schema.past_reals]
                actual, expected = actual[..., seen], expected[..., seen]
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
        elif key in ("encoder_cat", "decoder_cat"):  # our categories begin at 1, theirs at 0
            torch.testing.assert_close((ours[key] - 1).clamp(min=0), theirs[key][keep])
        elif key != "target_scale":
            torch.testing.assert_close(ours[key], theirs[key][keep])
