"""Our UMAP and t-SNE against plain umap-learn, scikit-learn and openTSNE: time and trustworthiness.

    python -m benchmarks.projection [--json pr.json] [--rows 20000] [--columns 128] [--repeats 1]
    python -m benchmarks.projection --rows 5000 --methods ours_tsne sklearn_tsne open_tsne open_tsne_fft

openTSNE (``pip install openTSNE``) is no dependency of ours and runs only where it is named, by Barnes and Hut and by FFT.

The data are clusters on a curved sheet of 12 dimensions in ``columns`` of them with noise, as embeddings lie. Each method runs
in a process of its own, the methods in turn, so that none finds another's compiled code warm in memory; numba's cache on disk
is filled by a small run before. Ours is what ``weatherglass project`` draws, its scaling and PCA counted in. Both get the same
seed, without which umap-learn would use all cores and repeat nothing; with it umap-learn takes one thread, as ours does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import at_least, machine, parser, report, table, versions

NEIGHBORS, SEED, WARM = 15, 1, 600
METHODS = ("ours_umap", "umap_learn", "umap_learn_all_cores", "ours_tsne", "sklearn_tsne")
OPTIONAL = ("open_tsne", "open_tsne_fft")


def data(rows: int, columns: int, seed: int = 3) -> np.ndarray:
    """Float32 ``(rows, columns)``: 30 clusters on a curved sheet of 12 dimensions, with noise in all columns."""
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(30, 12))[rng.integers(30, size=rows)] * 2 + rng.normal(size=(rows, 12))
    first, second = rng.normal(size=(12, 64)) / np.sqrt(12), rng.normal(size=(64, columns)) / 8
    return (np.tanh(place @ first) @ second + 0.05 * rng.normal(size=(rows, columns))).astype(np.float32)


def draw(method: str, values: np.ndarray) -> np.ndarray:
    """Coordinates ``(n, 2)`` by one method."""
    from sklearn.manifold import TSNE

    from tasks.projection.maps import make_atlas

    if method.startswith("ours"):
        name = method.removeprefix("ours_")
        size = NEIGHBORS if name == "umap" else 30
        return make_atlas(values, neighbors=(size,), methods=(name,), seed=SEED, guards=False).maps[0].coordinates
    if method == "sklearn_tsne":
        return np.asarray(TSNE(random_state=SEED).fit_transform(values))
    if method in OPTIONAL:
        import openTSNE

        gradient = "fft" if method == "open_tsne_fft" else "bh"
        return np.asarray(openTSNE.TSNE(random_state=SEED, n_jobs=1, negative_gradient_method=gradient).fit(values))
    from umap import UMAP

    seeded: dict[str, Any] = {"random_state": SEED} if method == "umap_learn" else {}
    return np.asarray(UMAP(**seeded).fit_transform(values))


def alone(method: str, rows: int, columns: int) -> None:
    """Run one method in this process and print its seconds, those of a processor too, and trustworthiness as JSON."""
    import torch

    from models.projection.neighbours import neighbourhoods

    draw(method, data(WARM, columns))
    values = data(rows, columns)
    start, processor = time.perf_counter(), time.process_time()
    coordinates = draw(method, values)
    spent = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
    asked = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:2000]
    kept = neighbourhoods(torch.from_numpy(values), torch.from_numpy(np.ascontiguousarray(coordinates)), NEIGHBORS, asked)
    print(json.dumps({**spent, **kept._asdict()}))


def measure(rows: int, columns: int, repeats: int, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Medians over ``repeats`` of every method, in turn."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method in methods:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.projection", "--alone", method]
            command += ["--rows", str(rows), "--columns", str(columns)]
            threads = {} if method.endswith("all_cores") else {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads, cwd=Path(__file__).parents[1]
            )
            found[method].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{method}: {found[method][-1]}", file=sys.stderr, flush=True)
    return {
        method: {name: statistics.median(each[name] for each in results) for name in results[0]}
        for method, results in found.items()
    }


def main(given_arguments: list[str] | None = None) -> None:
    arguments = parser("Maps: ours beside umap-learn and scikit-learn.")
    arguments.add_argument("--rows", type=at_least(200), default=20_000, help="rows of the matrix")
    arguments.add_argument("--columns", type=at_least(12), default=128, help="columns of the matrix")
    arguments.add_argument("--repeats", type=at_least(1), default=1, help="runs of each method")
    arguments.add_argument("--methods", nargs="+", choices=METHODS + OPTIONAL, default=list(METHODS), help="which to run")
    arguments.add_argument("--alone", choices=METHODS + OPTIONAL, help="run one in this process and print its figures")
    given = arguments.parse_args(given_arguments)
    if given.alone:
        alone(given.alone, given.rows, given.columns)
        return
    packages = ["umap-learn", "scikit-learn", "numpy", *(["openTSNE"] if set(given.methods) & set(OPTIONAL) else [])]
    result: dict[str, Any] = {"rows": given.rows, "columns": given.columns, "neighborhood": NEIGHBORS}
    result |= {"methods": measure(given.rows, given.columns, given.repeats, tuple(given.methods))}
    result |= {"machine": machine(), "versions": versions(packages)}
    rows = [(name, *(f"{value:.3f}" for value in found.values())) for name, found in result["methods"].items()]
    header = ("method", *next(iter(result["methods"].values())))
    report(result, table(header, rows), given.json)


if __name__ == "__main__":
    main()
