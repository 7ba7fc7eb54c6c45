"""Ensembles of regression trees as tensors: no pickle to store them, any device to run them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TreeEnsemble"]

CELLS = 2**21
"""(row, tree) pairs that are walked down at a time, which bounds the memory."""


class TreeEnsemble(nn.Module):
    """Sum of regression trees, ``(N, F) -> (N,)``; without trees, `offset`.

    Nodes of all trees lie end to end. An inner node sends a row to `left` where its ``feature`` is at most `threshold`,
    or is NaN and `nan_left` holds, else to `right`; a leaf has itself on both sides and its `value`. Buffers are float64
    and int64, and take the sizes of whatever state is loaded.

    Attributes
    ----------
    root : (trees,) first node of each tree
    depth : (1,) most steps from a root to a leaf
    offset : (1,) what the sum starts from
    exponential : (1,) 1 where the result is the exponential of the sum (a logarithmic link), else 0
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    nan_left: Tensor
    value: Tensor
    depth: Tensor
    offset: Tensor
    exponential: Tensor

    def __init__(self) -> None:
        super().__init__()
        empty, zero = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        for name in ("root", "feature", "left", "right", "nan_left"):
            self.register_buffer(name, empty.clone())
        for name in ("threshold", "value"):
            self.register_buffer(name, empty.double())
        self.register_buffer("depth", zero.clone())
        self.register_buffer("exponential", zero.clone())
        self.register_buffer("offset", zero.double())

    @classmethod
    def from_sklearn(cls, model: Any) -> TreeEnsemble:
        """Take the trees of a fitted HistGradientBoostingRegressor without categorical features.

        Raises ValueError where a tree splits on a category.
        """
        import numpy as np

        trees = [predictor.nodes for (predictor,) in model._predictors]
        ensemble = cls()
        starts = np.cumsum([0, *(len(nodes) for nodes in trees)])
        nodes = np.concatenate(trees)
        if nodes["is_categorical"].any():
            raise ValueError("a tree splits on a category; give categories as numbers")
        leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        first = np.repeat(starts[:-1], [len(tree) for tree in trees])
        arrays = {
            "root": starts[:-1],
            "feature": np.where(leaf, 0, nodes["feature_idx"]),
            "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
            "left": np.where(leaf, own, first + nodes["left"]),
            "right": np.where(leaf, own, first + nodes["right"]),
            "nan_left": nodes["missing_go_to_left"],
            "value": np.where(leaf, nodes["value"], 0.0),
            "depth": nodes["depth"].max(keepdims=True),
            "offset": np.ravel(model._baseline_prediction),
            "exponential": np.array([model.loss in ("gamma", "poisson")]),
        }
        for name, array in arrays.items():
            setattr(ensemble, name, torch.from_numpy(np.ascontiguousarray(array)).to(getattr(ensemble, name).dtype))
        return ensemble

    def forward(self, rows: Tensor) -> Tensor:
        """``(N, F)`` -> ``(N,)`` float64."""
        total = self.offset.expand(len(rows)).clone()
        if len(self.root):
            size = max(1, CELLS // len(self.root))
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                total[part] += self._walk(rows[part].double())
        return torch.where(self.exponential.bool(), total.exp(), total)

    def _walk(self, rows: Tensor) -> Tensor:
        node, gaps = self.root.expand(len(rows), -1), bool(rows.isnan().any())
        children = torch.stack([self.left, self.right], dim=1).flatten()
        for _ in range(int(self.depth)):
            seen = rows.gather(1, self.feature[node])
            right = seen > self.threshold[node]
            if gaps:
                right |= seen.isnan() & (self.nan_left[node] == 0)
            node = children[2 * node + right]
        return self.value[node].sum(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.named_buffers(recurse=False)):
            if (found := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(found, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
