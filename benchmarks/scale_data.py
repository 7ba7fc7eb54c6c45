"""A panel of any size: daily demand with seasons, trend, covariates and gaps between sales, written series by series.

``python -m benchmarks.scale_data FILE --rows 1000000`` writes one. Memory is that of a row group, whatever the size, and a
larger panel begins with the series of a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import at_least, parser
from tasks.files import atomic_path

STEPS, MOST_SERIES, FEWEST_SERIES = 1000, 100_000, 10
GROUP = 250
"""Series of a row group."""
START = np.datetime64("2020-01-01", "D")
KNOWN, PAST, STATIC = ("promotion", "price"), ("visitors",), ("region",)
REGIONS = np.array(["north", "east", "south", "west"])
SPORADIC = 0.3
"""Share of series that sell on some days alone."""


def shape_of(rows: int) -> tuple[int, int]:
    """Series and steps of each for ``rows`` rows: 10 series or more, of 1,000 steps until there are 100,000 of them."""
    whole = rows // STEPS
    series = min(max(whole, FEWEST_SERIES), MOST_SERIES)
    return series, STEPS if series == whole else rows // series


def group_of(number: int, series: int, steps: int, seed: int) -> pa.Table:
    """The table of row group ``number``: ``series`` series of ``steps`` days, sorted by series and day.

    ``y`` float64 is 0 or more: a level of its own for each series, a trend, a week and a year, what ``promotion`` (0 or 1) and
    ``price`` (1 in the mean), both known for the future, do to it, and noise. Three series in ten are intermittent: whole
    numbers on some days, 0 on the others. ``visitors`` is known for the past alone and ``region`` is one of four.
    """
    random = np.random.default_rng([seed, number])
    day = np.arange(steps)
    shape, own = (series, steps), (series, 1)
    promotion = (random.random(shape) < 0.1).astype(np.float64)
    price = 1 + 0.2 * np.sin(2 * np.pi * (day / 90 + random.random(own))) + random.normal(0, 0.02, shape)
    week = 0.3 * np.sin(2 * np.pi * (day / 7 + random.random(own)))
    year = 0.2 * np.sin(2 * np.pi * (day / 365.25 + random.random(own)))
    trend = random.normal(0, 0.2, own) * day / steps
    level = random.lognormal(3, 1, own)
    mean = level * np.maximum(1 + week + year + trend + 0.4 * promotion - 0.5 * (price - 1), 0.05)
    smooth = np.maximum(mean * (1 + 0.1 * random.normal(size=shape)), 0)
    sold = random.random(shape) < random.uniform(0.2, 0.6, own)
    sporadic = np.where(sold, 1.0 + random.poisson(mean / 10), 0.0)
    y = np.where(random.random(own) < SPORADIC, sporadic, smooth)
    visitors = mean * 5 + random.normal(0, 5, shape)
    names = [f"series_{number * GROUP + index:06d}" for index in range(series)]
    rows = np.repeat(np.arange(series, dtype=np.int32), steps)
    columns = {
        "unique_id": pa.array(names).take(pa.array(rows)),
        "ds": np.tile((START + day).astype("datetime64[ms]"), series),
        "y": y.ravel(),
        "promotion": promotion.ravel(),
        "price": price.ravel(),
        "visitors": visitors.ravel(),
        "region": pa.array(REGIONS[random.integers(len(REGIONS), size=series)].tolist()).take(pa.array(rows)),
    }
    return pa.table(columns)


def groups(rows: int, seed: int = 1) -> Iterator[pa.Table]:
    """The row groups of a panel of ``rows`` rows (rounded down to whole series), one after the other."""
    series, steps = shape_of(rows)
    for number in range(-(-series // GROUP)):
        yield group_of(number, min(GROUP, series - number * GROUP), steps, seed)


def write(path: Path, rows: int, seed: int = 1) -> int:
    """Write a panel as Parquet, a row group at a time; returns its rows."""
    written = 0
    with atomic_path(path) as temporary:
        first = group_of(0, 1, 1, seed)
        with pq.ParquetWriter(temporary, first.schema) as writer:
            for table in groups(rows, seed):
                writer.write_table(table, row_group_size=len(table))
                written += len(table)
    return written


def main(arguments: list[str] | None = None) -> None:
    options = parser("A seeded panel of daily demand as Parquet.")
    options.add_argument("file", type=Path, help="where to write it")
    options.add_argument("--rows", type=at_least(100), default=1_000_000, help="rows, in whole series")
    options.add_argument("--seed", type=at_least(0), default=1, help="of the generator")
    given = options.parse_args(arguments)
    print(f"{write(given.file, given.rows, given.seed):,} rows in {given.file}")


if __name__ == "__main__":
    main()
