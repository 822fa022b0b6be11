"""The example of a user's own set: photographs, as ``datasets`` writes them."""

import io
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aiornot.data import splits

SCRIPT = Path(__file__).parents[1] / "examples" / "photos.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def shards(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths: list[Path] = script["write"](tmp_path_factory.mktemp("photos"), num_images=24, seed=0)
    return paths


def test_there_are_two_shards_of_half_the_images_each(shards: list[Path]) -> None:
    names = [path.name for path in shards]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert [pq.read_metadata(path).num_rows for path in shards] == [12, 12]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == names


def test_datasets_knows_the_column_as_an_image(shards: list[Path]) -> None:
    features = datasets.Features.from_arrow_schema(pq.read_schema(shards[0]))
    assert list(features) == ["id", "image", "label"]
    assert features["image"] == datasets.Image()
    assert features["label"].names == ["real", "generated"]


def test_both_classes_come_as_large_jpeg_and_png(shards: list[Path]) -> None:
    kinds: Counter[tuple[int, str | None]] = Counter()
    for path in shards:
        for row in pq.read_table(path).to_pylist():
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            assert image.size == (512, 512) and image.mode == "RGB"
            kinds[row["label"], image.format] += 1
    assert kinds == {(0, "JPEG"): 6, (0, "PNG"): 6, (1, "JPEG"): 6, (1, "PNG"): 6}


def test_a_seed_gives_the_same_rows_again(script: dict[str, Any]) -> None:
    first, second, other = (script["make_rows"](num_images=20, seed=seed) for seed in (0, 0, 1))
    assert first == second != other


def test_no_tile_of_a_photograph_is_in_two_splits(shards: list[Path]) -> None:
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    tiles = [row["image"]["path"].split("-tile-")[1][:2] for row in rows]
    plan = splits.plan(np.array([row["label"] for row in rows]))
    sets = [{tiles[row] for row in members} for members in plan.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))
