"""Maps of a project and of a user's matrix: what stays together, what the guards say, what is written, what is refused."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.errors import UserError
from tasks.params import Params
from tasks.projection.maps import Atlas, make_atlas
from tasks.projection.page import View, pack_colour, pack_sparks, render_map, unit_square
from tasks.projection.points import Colour, Points
from tasks.projection.run import guard_metrics, project
from tasks.summary import PROJECTION


def clusters(n: int = 60, groups: int = 4, dims: int = 20, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Groups of ``n`` points each, ten standard deviations apart, and which group each is of."""
    rng = np.random.default_rng(seed)
    centres = 10 * np.linalg.qr(rng.normal(size=(dims, dims)))[0][:groups]
    return np.concatenate([rng.normal(size=(n, dims)) + centre for centre in centres]), np.repeat(np.arange(groups), n)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    values, _ = clusters()
    return make_atlas(values, values[::10], neighbors=(15,), seed=3)


def test_known_clusters_stay_together(atlas: Atlas) -> None:
    _, group = clusters()
    for each in atlas.maps:
        if each.method == "pca":
            continue  # four groups need three axes
        points = each.coordinates[: len(group)]
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        assert (group[distance.argmin(axis=1)] == group).mean() > 0.99, each.key


def test_new_points_land_on_those_they_equal(atlas: Atlas) -> None:
    for each in atlas.maps:
        old, new = each.coordinates[:240], each.coordinates[240:]
        moved = np.linalg.norm(new - old[::10], axis=1)
        assert np.median(moved) < 0.05 * np.ptp(old, axis=0).max(), each.key
        if each.method == "pca":
            np.testing.assert_allclose(new, old[::10], atol=1e-4)


def test_one_seed_gives_one_map(atlas: Atlas) -> None:
    values, _ = clusters()
    again = make_atlas(values, values[::10], neighbors=(15,), seed=3, guards=False)
    for one, other in zip(atlas.maps, again.maps, strict=True):
        np.testing.assert_array_equal(one.coordinates, other.coordinates)


def test_guards_fall_on_noise(atlas: Atlas) -> None:
    rng = np.random.default_rng(8)
    noise = {each.key: each.guards for each in make_atlas(rng.normal(size=(240, 100)), neighbors=(15,), seed=3).maps}
    for each in atlas.maps:
        if each.method != "pca":
            assert each.guards["trustworthiness"] > noise[each.key]["trustworthiness"] + 0.1, each.key
            assert each.guards["distance_correlation"] > noise[each.key]["distance_correlation"] + 0.2, each.key
        assert each.guards["stability"] > noise[each.key]["stability"], each.key


def test_pca_goes_first_above_a_hundred_columns_and_sizes_follow_the_points() -> None:
    rng = np.random.default_rng(1)
    values = np.c_[rng.normal(size=(60, 5)) @ rng.normal(size=(5, 150)), np.ones(60)]
    atlas = make_atlas(values, neighbors=(15, 50), methods=("pca",))
    assert atlas.reduced == 5
    assert atlas.notes[0] == "1 of 151 columns are constant and were left out."
    assert atlas.notes[1].startswith("PCA took 150 columns to 5 first")
    assert atlas.notes[2] == "60 points are too few for neighbourhoods of 50."


def test_ten_points_are_drawn_and_nine_are_refused() -> None:
    values = np.random.default_rng(6).normal(size=(10, 4))
    atlas = make_atlas(values, values[:1], neighbors=(15, 50))
    assert [each.key for each in atlas.maps] == ["pca", "tsne_3", "umap_3"]
    assert all(np.isfinite(each.coordinates).all() and each.coordinates.shape == (11, 2) for each in atlas.maps)
    with pytest.raises(UserError, match=re.escape("9 rows of embeddings; a map needs at least 10.")):
        make_atlas(values[:9])
    with pytest.raises(UserError, match=re.escape("all 10 rows of the embeddings are alike by cosine")):
        make_atlas(np.outer(np.arange(1.0, 11.0), [1.0, 2.0, 2.0]), metric="cosine")


def test_cosine_forgets_the_length_of_rows() -> None:
    values, _ = clusters(10)
    stretched = values * np.random.default_rng(2).uniform(0.1, 9, (len(values), 1))
    one, other = (make_atlas(each, methods=("pca",), metric="cosine", guards=False) for each in (values, stretched))
    np.testing.assert_allclose(one.maps[0].coordinates, other.maps[0].coordinates, atol=1e-5)


@pytest.fixture(scope="module")
def projected(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("projected") / "project"
    shutil.copytree(evaluated_project, root)
    project(Params.load(root=root), root)
    return root


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_project_writes_its_maps_and_marks_the_test_windows(projected: Path) -> None:
    table = pd.read_parquet(projected / PROJECTION / "coordinates.parquet")
    assert len(table) == 60 and set(table["fold"]) == {"train", "test"}
    assert table[["pca_x", "tsne_5_y", "umap_5_x"]].notna().all(axis=None)
    assert table.loc[table["fold"] == "test", ["error", "epistemic", "ood_score"]].notna().all(axis=None)
    assert table.loc[table["fold"] == "train", "error"].isna().all()
    view = data_of((projected / PROJECTION / "map.html").read_text(encoding="utf-8"))["views"][0]
    flags = np.frombuffer(base64.b64decode(view["flags"]), dtype="u1")
    np.testing.assert_array_equal(flags & 1 == 1, table["fold"] == "test")
    np.testing.assert_array_equal(flags & 2 == 2, table["is_ood"])
    assert [colour["title"] for colour in view["colours"]] == [
        "Series", "Hour", "Fold", "Error", "Epistemic uncertainty", "OOD score"
    ]  # fmt: skip
    assert view["colours"][1]["names"] == [str(hour) for hour in sorted(int(name) for name in view["colours"][1]["names"])]
    metrics = guard_metrics(projected)
    assert 0 <= metrics["projection/umap_5/trustworthiness"] <= 1


def test_the_page_loads_nothing_and_escapes_what_it_shows() -> None:
    values, group = clusters(5)
    atlas = make_atlas(values, methods=("pca",), guards=False)
    names = np.array(["</script><b>&"] * len(values), dtype=object)
    points = Points(values, names, (Colour("Group", group.astype(str).astype(object)),), group < 0, group < 0)
    page = render_map("<i>", "about", [View("Rows", points, atlas)])
    assert page == render_map("<i>", "about", [View("Rows", points, atlas)])
    assert not re.search(r"https?://|<link(?![^>]*href=\"data:,\")|<b>", page)
    assert data_of(page)["views"][0]["labels"] == list(names)


def test_numbers_are_packed_without_losing_order_or_gaps() -> None:
    packed = pack_colour(Colour("x", np.array([3.0, np.nan, -1.0, 1.0])))
    codes = np.frombuffer(base64.b64decode(packed["values"]), dtype="<u2")
    assert codes.tolist() == [65534, 65535, 0, 32767] and (packed["min"], packed["max"]) == (-1.0, 3.0)
    many = pack_colour(Colour("x", np.array([f"n{i}" for i in range(100)] + ["n7"] * 5, dtype=object)))
    assert len(many["names"]) == 60 and many["names"][-1] == "41 others"
    assert many["names"][np.frombuffer(base64.b64decode(many["values"]), dtype="<u2")[100]] == "n7"
    square = unit_square(np.array([[0.0, 0.0], [2.0, 1.0]]))
    assert square.tolist() == [[0, 49151], [65535, 16384]]  # proportions kept, y downwards
    sparks = pack_sparks(np.array([[np.nan, 1.0, 3.0], [np.nan] * 3, [2.0] * 3], dtype=np.float32))
    assert list(base64.b64decode(sparks["values"])) == [255, 0, 254, 255, 255, 255, 0, 0, 0]


def test_a_matrix_of_ones_own_is_drawn_from_the_command_line(weatherglass: Callable[..., Any], tmp_path: Path) -> None:
    values, group = clusters(15)
    np.save(tmp_path / "X.npy", values[:50])
    np.save(tmp_path / "new.npy", values[50:])
    pd.DataFrame({"y": group, "text": [f"<row {i}>" for i in range(len(group))]}).to_csv(tmp_path / "y.csv", index=False)
    ended = weatherglass(tmp_path, "project", "--embeddings", "X.npy", "--labels", "y.csv", "--new", "new.npy",
                         "--method", "pca", "--method", "umap", "--neighbors", "10", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    assert list(json.loads(ended.out)["maps"]) == ["pca", "umap_10"]
    view = data_of((tmp_path / "projection/map.html").read_text(encoding="utf-8"))["views"][0]
    assert view["n"] == 60 and view["colours"][0]["names"] == ["0", "1", "2", "3"]
    assert len(pd.read_parquet(tmp_path / "projection/coordinates.parquet")) == 60


@pytest.mark.parametrize(
    ("values", "labels", "told"),
    [
        (
            np.r_[np.ones((11, 3)), [[1, np.nan, 2]]],
            None,
            "row 11, column 1 of X.npy is NaN; all must be finite.",
        ),
        (np.ones((1, 3)), None, "X.npy has 1 row; a map takes 10 to 100,000."),
        (np.ones((20, 3)), None, "all 3 columns of the embeddings are constant; a map needs rows that differ."),
        (np.eye(20), "y\n1\n2\n", "y.csv has 2 labels below its header and there are 20 points; they must be as many."),
        (np.arange(20.0), None, "X.npy is 20; it must be a matrix with a row a point and at least 2 columns."),
        (np.array([["a", "b"]] * 20), None, "X.npy holds no array of numbers; write a matrix by numpy.save."),
        (np.array([[{}]] * 20, dtype=object), None, "X.npy is no .npy file of numbers; write it by numpy.save."),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(
    weatherglass: Callable[..., Any], tmp_path: Path, values: np.ndarray, labels: str | None, told: str
) -> None:
    np.save(tmp_path / "X.npy", values, allow_pickle=True)
    more: list[str] = []
    if labels is not None:
        (tmp_path / "y.csv").write_text(labels, encoding="utf-8")
        more = ["--labels", "y.csv"]
    ended = weatherglass(tmp_path, "project", "--embeddings", "X.npy", *more)
    assert (ended.code, ended.out, ended.err) == (2, "", f"weatherglass: {told}\n")
    assert not (tmp_path / "projection").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{neighbors: [15, 15]}", "projection.neighbors is [15, 15]; name each size once."),
        ("{family: wavenet}", "projection.family is wavenet, which is not among the families at work"),
        ("{neighbors: [1]}", "projection.neighbors"),
    ],
)
def test_params_of_the_maps_are_checked(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "params.yaml").write_text(f"projection: {text}", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(told)):
        Params.load(root=tmp_path)


def test_what_bundles_of_before_hold_is_read() -> None:
    old = Params.model_validate({"projection": {"points": 500, "neighbors": 15, "perplexity": 30.0, "seed": 2}})
    assert old.projection == Params().projection.model_copy(update={"points": 500, "neighbors": (15,), "seed": 2})
