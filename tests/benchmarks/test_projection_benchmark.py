"""The projection benchmark at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.projection import data, main


def test_it_measures_both_on_the_same_data(tmp_path: Path) -> None:
    main(["--rows", "300", "--columns", "16", "--methods", "ours_umap", "umap_learn", "--json", str(tmp_path / "pr.json")])
    found = json.loads((tmp_path / "pr.json").read_text(encoding="utf-8"))
    assert set(found["methods"]) == {"ours_umap", "umap_learn"}
    for figures in found["methods"].values():
        assert figures["seconds"] > 0 and 0.8 < figures["trustworthiness"] <= 1
    np.testing.assert_array_equal(data(50, 16), data(50, 16))
