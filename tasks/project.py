"""Projections of encoder embeddings: PCA, t-SNE and UMAP, with a picture and the coordinates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.panel import Windows
from tasks.files import atomic_dir
from tasks.gate import encoder_family
from tasks.params import Params
from tasks.prepare import Prepared, load_prepared
from tasks.train import TRAINED

PROJECTION = Path("artifacts/projection")
FOLDS_SHOWN = ("train", "test")


def project(params: Params, root: Path) -> Path:
    """Project embeddings of training and test windows; writes and returns ``artifacts/projection``.

    ``coordinates.parquet`` has one row a window: fold, unique_id, cutoff and two coordinates a method;
    ``projection.png`` shows them coloured by series and by fold.
    """
    prepared = load_prepared(root)
    features, table = window_embeddings(params, root, prepared)
    chosen = np.sort(np.random.default_rng(params.projection.seed).permutation(len(table))[: params.projection.points])
    features, table = features[chosen], table.iloc[chosen].reset_index(drop=True)
    for method, coordinates in embed(features, params).items():
        table[f"{method}_1"], table[f"{method}_2"] = coordinates[:, 0], coordinates[:, 1]
    with atomic_dir(root / PROJECTION) as folder:
        table.to_parquet(folder / "coordinates.parquet", index=False)
        draw(table, folder / "projection.png", encoder_family(params))
    return root / PROJECTION


def window_embeddings(params: Params, root: Path, prepared: Prepared) -> tuple[np.ndarray, pd.DataFrame]:
    """Encoder features ``(n, D)`` of windows from ``FOLDS_SHOWN`` and what each row is."""
    folder = root / TRAINED / encoder_family(params)
    features, rows = [], []
    for fold in FOLDS_SHOWN:
        if fold == "train":
            pairs = torch.from_numpy(np.load(folder / "windows_sample.npy"))
            windows = Windows(pairs[0], pairs[1])
        else:
            windows = prepared.windows[fold]
        features.append(np.load(folder / f"features_{fold}.npy"))
        ids = prepared.ids[windows.series.numpy()]
        rows.append(pd.DataFrame({"fold": fold, "unique_id": ids, "cutoff": prepared.cutoff_time(windows)}))
    return np.concatenate(features), pd.concat(rows, ignore_index=True)


def embed(features: np.ndarray, params: Params) -> dict[str, np.ndarray]:
    """Two coordinates a window by each method, float32 ``(n, 2)``, on standardised features and with fixed seeds."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    options, n = params.projection, len(features)
    scaled = StandardScaler().fit_transform(features)
    pca: Any = PCA(n_components=2, random_state=options.seed)
    tsne: Any = TSNE(perplexity=min(options.perplexity, (n - 1) / 3), init="pca", random_state=options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        umap: Any = UMAP(n_neighbors=min(options.neighbors, n - 1), random_state=options.seed, n_jobs=1)
        results = {"pca": pca.fit_transform(scaled), "tsne": tsne.fit_transform(scaled), "umap": umap.fit_transform(scaled)}
    return {name: np.asarray(values, dtype=np.float32) for name, values in results.items()}


def draw(table: pd.DataFrame, path: Path, family: str) -> None:
    """A picture of every projection, coloured by series above and by fold below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.4), layout="constrained")
    series = pd.Categorical(table["unique_id"])
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(2, len(series.categories))))
    folds = {"train": "#9aa5b1", "test": "#d1495b"}
    for column, (method, title) in enumerate(titles.items()):
        x, y = table[f"{method}_1"], table[f"{method}_2"]
        axes[0, column].scatter(x, y, s=6, c=colours[series.codes], linewidths=0, alpha=0.8)
        axes[0, column].set_title(title)
        for fold, colour in folds.items():
            mine = table["fold"] == fold
            axes[1, column].scatter(x[mine], y[mine], s=6, c=colour, label=fold, linewidths=0, alpha=0.7)
        for row in (0, 1):
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
    axes[0, 0].set_ylabel("coloured by series")
    axes[1, 0].set_ylabel("coloured by fold")
    axes[1, 2].legend(markerscale=2, frameon=False)
    caution = "Distances between far groups, and sizes of groups, mean little in t-SNE and UMAP."
    figure.suptitle(f"Windows as the {family} encoder sees them. {caution}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
