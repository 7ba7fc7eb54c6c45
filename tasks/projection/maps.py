"""Maps of points by PCA, t-SNE and UMAP at several neighbourhood sizes, each with its guards."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.projection.arrangement import distance_correlation, procrustes_similarity
from models.projection.neighbours import CHUNK, chance_preservation, neighbourhoods, squared_distances
from tasks.errors import UserError

METHODS = ("pca", "tsne", "umap")
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
LEAST = 10  # points of a map
MOST_DIMENSIONS = 100  # beyond which PCA goes first
KEPT_VARIANCE = 0.99  # of PCA where it goes first
ITERATIONS = 750  # of t-SNE, 250 of them exaggerated: scikit-learn's 1,000 keep no more neighbours (docs/projection.md)
ASKED = 1000  # points whose neighbourhoods are compared
REDRAWN = 500  # points of the maps that are drawn again to see what is luck
REDRAWS, SHARE = 3, 0.8  # how often, and how much of those points each sees


@dataclass(frozen=True)
class Map:
    """One map: ``coordinates`` float32 ``(n, 2)`` of all points, and guards by name."""

    method: str
    neighbors: int | None
    coordinates: np.ndarray
    guards: dict[str, float]

    @property
    def key(self) -> str:
        """Such as umap_15; pca has no neighbourhood size."""
        return self.method if self.neighbors is None else f"{self.method}_{self.neighbors}"

    @property
    def title(self) -> str:
        """Such as UMAP, 15 neighbours."""
        return TITLES[self.method] if self.neighbors is None else f"{TITLES[self.method]}, {self.neighbors} neighbours"


@dataclass(frozen=True)
class Atlas:
    """Maps of the same points; ``neighborhood`` is the size at which all their guards are measured."""

    maps: tuple[Map, ...]
    neighborhood: int
    dimensions: int
    reduced: int | None  # dimensions that PCA left, None where it did not go first
    metric: str
    notes: tuple[str, ...] = ()


@dataclass
class Space:
    """Where neighbours are sought: rows scaled, and with PCA first where there are many columns. Fitted on some rows.

    ``metric`` cosine scales each row to length 1, after which Euclidean distance ranks neighbours as the cosine does.
    ``standardise`` gives each column variance 1.
    """

    metric: str = "euclidean"
    standardise: bool = False
    reduced: int | None = None
    notes: list[str] = field(default_factory=list)
    _columns: np.ndarray | None = None
    _scaler: Any = None
    _axes: tuple[np.ndarray, np.ndarray] | None = None  # mean (D,) and axes (k, D) of the PCA that goes first

    def fit(self, values: np.ndarray) -> np.ndarray:
        """Learn the space from ``(n, D)`` and return the rows in it, float32."""
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        self._columns = np.ptp(values, axis=0) > 0
        constant = int((~self._columns).sum())
        if constant == values.shape[1]:
            raise UserError(f"all {constant} columns of the embeddings are constant; a map needs rows that differ.")
        if constant:
            self.notes.append(f"{constant} of {values.shape[1]} columns are constant and were left out.")
        rows = self._rows(values)
        if self.standardise:
            self._scaler = StandardScaler().fit(rows)
            rows = self._scaler.transform(rows)
        if rows.shape[1] > MOST_DIMENSIONS:
            pca: Any = PCA(n_components=min(MOST_DIMENSIONS, *rows.shape), svd_solver="covariance_eigh").fit(rows)
            share = np.cumsum(pca.explained_variance_ratio_)
            self.reduced = min(len(share), int(np.searchsorted(share, KEPT_VARIANCE)) + 1)
            self._axes = pca.mean_, pca.components_[: self.reduced]
            kept = f"{share[self.reduced - 1]:.1%} of the variance"
            self.notes.append(f"PCA took {rows.shape[1]} columns to {self.reduced} first: {kept}.")
        return self.place(values)

    def place(self, values: np.ndarray) -> np.ndarray:
        """Rows ``(m, D)`` in the space that was learned, float32."""
        rows = self._rows(values)
        if self._scaler is not None and len(rows):
            rows = self._scaler.transform(rows)
        if self._axes is not None:
            mean, axes = self._axes
            rows = (rows - mean) @ axes.T
        return np.ascontiguousarray(rows, dtype=np.float32)

    def _rows(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=np.float64)[:, self._columns]
        if self.metric == "cosine":
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
            if not (lengths > 0).all():
                row = int(np.flatnonzero(lengths[:, 0] == 0)[0])
                raise UserError(f"row {row} of the embeddings is all zeros, so it has no cosine; use --metric euclidean.")
            values = values / lengths
        return values


def make_atlas(
    fitted: np.ndarray,
    new: np.ndarray | None = None,
    *,
    neighbors: Sequence[int] = (15, 50),
    methods: Sequence[str] = METHODS,
    metric: str = "euclidean",
    standardise: bool = False,
    seed: int = 1,
    guards: bool = True,
) -> Atlas:
    """Draw every map of ``fitted`` ``(n, D)`` and of ``new`` ``(m, D)``, whose rows come after the others'.

    PCA and UMAP learn from ``fitted`` alone and place ``new`` on the map that is there; t-SNE has no such way, so it draws all
    at once. Neighbourhood sizes that the points are too few for are made smaller. The same seed gives the same maps. Raises
    UserError where there are too few points or none differ.
    """
    if len(fitted) < LEAST:
        raise UserError(f"{len(fitted)} row{'s' * (len(fitted) != 1)} of embeddings; a map needs at least {LEAST}.")
    space = Space(metric, standardise)
    old = space.fit(fitted)
    if not np.ptp(old, axis=0).any():
        raise UserError(f"all {len(old)} rows of the embeddings are alike by {metric}; a map needs rows that differ.")
    later = space.place(new) if new is not None else old[:0]
    both = np.concatenate([old, later])
    sizes = sorted({min(size, (len(old) - 1) // 3) for size in neighbors})
    maps = []
    for method, size in itertools.product(methods, sizes):
        if method == "pca" and size != sizes[0]:
            continue
        coordinates = draw(method, size, old, later, seed)
        told = measure(both, coordinates, sizes[0], seed) if guards else {}
        if guards:
            told["stability"] = stability(method, size, old, seed)
        maps.append(Map(method, None if method == "pca" else size, coordinates, told))
    dropped = sorted(set(neighbors) - set(sizes))
    if dropped:
        space.notes.append(f"{len(old)} points are too few for neighbourhoods of {', '.join(map(str, dropped))}.")
    return Atlas(tuple(maps), sizes[0], fitted.shape[1], space.reduced, metric, tuple(space.notes))


def draw(method: str, neighbors: int, old: np.ndarray, later: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates float32 ``(n + m, 2)`` of ``old`` ``(n, D)`` and ``later`` ``(m, D)`` by one method.

    t-SNE's perplexity is the neighbourhood size.
    """
    if method == "pca":
        from sklearn.decomposition import PCA

        pca: Any = PCA(n_components=2, svd_solver="covariance_eigh").fit(old)
        return np.asarray(pca.transform(np.concatenate([old, later])), dtype=np.float32)
    if method == "tsne":
        return draw_tsne(np.concatenate([old, later]), neighbors, seed)
    umap = fit_umap(old, neighbors, seed)
    placed = umap.transform(later) if len(later) else old[:0, :2]
    return np.concatenate([umap.embedding_, placed]).astype(np.float32)


def draw_tsne(values: np.ndarray, perplexity: int, seed: int) -> np.ndarray:
    """t-SNE from PCA, float32 ``(n, 2)``.

    It gets the distances to the nearest neighbours, rounded: its gradient blows up the last bits, which differ from one call to
    the next with where a matrix lies in memory.
    """
    from sklearn.manifold import TSNE

    start = draw("pca", 0, values, values[:0], seed)
    start = (start / (start[:, 0].std() or 1.0) * 1e-4).round(9)
    graph = neighbour_graph(values, min(3 * perplexity + 1, len(values) - 1))
    tsne: Any = TSNE(perplexity=perplexity, init=start, metric="precomputed", random_state=seed, max_iter=ITERATIONS)
    return np.asarray(tsne.fit_transform(graph), dtype=np.float32)


def neighbour_graph(values: np.ndarray, k: int) -> Any:
    """Exact distances of each row ``(n, D)`` to itself and its ``k`` nearest, a sparse ``(n, n)`` matrix."""
    from scipy.sparse import csr_matrix

    points, n = torch.from_numpy(values).to(torch.float64), len(values)
    points = points - points.mean(dim=0)
    indices, distances = np.empty((n, k + 1), dtype=np.int64), np.zeros((n, k + 1))
    for rows in torch.arange(n).split(CHUNK):
        near = squared_distances(points, rows).topk(k, dim=1, largest=False)
        indices[rows], distances[rows, 1:] = np.c_[rows, near.indices], near.values.clamp(min=0).sqrt()
    scale = distances.max() or 1.0
    distances = (distances / scale).round(6)
    return csr_matrix((distances.ravel(), indices.ravel(), np.arange(0, n * (k + 1) + 1, k + 1)), shape=(n, n))


def fit_umap(values: np.ndarray, neighbors: int, seed: int) -> Any:
    """A UMAP fitted on float32 ``(n, D)``, which can place other rows; it starts from PCA, and one seed gives one map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        return UMAP(n_neighbors=neighbors, init="pca", random_state=seed, n_jobs=1).fit(values)


def measure(points: np.ndarray, coordinates: np.ndarray, k: int, seed: int) -> dict[str, float]:
    """Guards of a map: its neighbourhoods at size ``k``, what luck would preserve of them, and its distances."""
    source, mapped = torch.from_numpy(points), torch.from_numpy(coordinates)
    asked = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:ASKED]
    kept = neighbourhoods(source, mapped, k, asked)
    return {
        **{name: float(value) for name, value in kept._asdict().items()},
        "chance": chance_preservation(len(source), k),
        "distance_correlation": distance_correlation(source, mapped, seed),
    }


def stability(method: str, neighbors: int, values: np.ndarray, seed: int) -> float:
    """How alike maps come out that see another four fifths of the points and another seed, aligned by Procrustes.

    Of ``values`` ``(n, D)`` at most ``REDRAWN`` rows are drawn again; 1 is the same map each time.
    """
    rng = np.random.default_rng(seed)
    chosen = values[np.sort(rng.permutation(len(values))[:REDRAWN])]
    rows = [np.sort(rng.permutation(len(chosen))[: max(LEAST, round(SHARE * len(chosen)))]) for _ in range(REDRAWS)]
    size = max(2, min(neighbors, (min(map(len, rows)) - 1) // 3))
    maps = [draw(method, size, chosen[seen], chosen[:0], seed + number) for number, seen in enumerate(rows)]
    found = []
    for (one, a), (other, b) in itertools.combinations(zip(rows, maps, strict=True), 2):
        _, first, second = np.intersect1d(one, other, return_indices=True)
        if len(first) > 2 and np.ptp(a[first], axis=0).any() and np.ptp(b[second], axis=0).any():
            found.append(procrustes_similarity(torch.from_numpy(a[first]), torch.from_numpy(b[second])))
    return float(np.mean(found)) if found else float("nan")
