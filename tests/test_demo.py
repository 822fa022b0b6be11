"""The stand-in dataset: deterministic, fair to both classes, and read by ``datasets``."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aiornot.config import InputError
from aiornot.data import demo, synthesis

NUM_PROBED = 300
LABELS = np.arange(NUM_PROBED) % 2


def read_rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def open_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def probe_auroc(features: list[list[float]]) -> float:
    """AUROC of a cross-validated logistic probe for LABELS."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    scores = cross_val_predict(probe, features, LABELS, cv=5, method="decision_function")
    return float(roc_auc_score(LABELS, scores))


def metadata(content: bytes) -> list[float]:
    image = open_image(content)
    num_pixels = image.width * image.height
    return [image.width, image.height, len(content) / num_pixels, image.format == "PNG"]


def thumbnail(content: bytes) -> list[float]:
    small = open_image(content).resize((8, 8), Image.Resampling.BOX)
    return [float(value) for value in np.asarray(small).ravel()]


def trace(content: bytes) -> list[float]:
    """Share of the finest detail at the frequencies where up-sampling by 2 leaves its replicas."""
    grey = np.asarray(open_image(content)).mean(axis=2)
    around = sum(np.roll(grey, shift, axis) for shift in (-1, 1) for axis in (0, 1)) / 4
    power = np.abs(np.fft.fft2((grey - around)[1:-1, 1:-1])) ** 2
    half = len(power) // 2
    peaks = [power[half, 0], power[0, half], power[half, half]]
    lines = [power[half, 1:half].mean(), power[1:half, half].mean()]
    return [float(value) for value in np.log(np.array(peaks + lines) / power.mean() + 1e-9)]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [demo.make_image(index, label=int(LABELS[index]))[0] for index in range(NUM_PROBED)]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("demo") / "set"
    return demo.write(out, num_images=30, size=32, workers=1)


def test_an_image_depends_on_its_seed_and_index_only() -> None:
    first = demo.make_image(7, label=1)
    assert first == demo.make_image(7, label=1)
    assert first != demo.make_image(8, label=1)
    assert first != demo.make_image(7, label=1, seed=1)


def test_the_two_labels_of_an_index_differ_by_the_trace_only() -> None:
    (real, camera), (generated, kind) = (demo.make_image(3, label=label) for label in (0, 1))
    assert camera == demo.CAMERA and kind in synthesis.GENERATORS
    assert real != generated
    difference = np.subtract(thumbnail(real), thumbnail(generated))
    assert np.abs(difference).mean() < 5  # of 255


def test_a_harder_trace_is_a_fainter_one() -> None:
    def change(difficulty: float) -> float:
        pair = [demo.make_image(3, label=label, difficulty=difficulty)[0] for label in (0, 1)]
        real, generated = (np.asarray(open_image(content), np.float32) for content in pair)
        return float(np.abs(real - generated).mean())

    assert change(0.0) > change(0.5) > change(1.0)


@pytest.mark.parametrize("kind", synthesis.GENERATORS)
def test_a_generator_takes_oblong_images_and_keeps_their_look(kind: str) -> None:
    rows, columns = np.mgrid[0:48, 0:80].astype(np.float32) / 80
    pixels = np.stack([rows, columns, np.full_like(rows, 0.5)], axis=2)
    decoded = synthesis.regenerate(np.random.default_rng(0), pixels, kind)
    assert decoded.shape == pixels.shape and decoded.dtype == np.float32
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert 0 < np.abs(decoded - pixels).mean() < 0.1


def test_only_the_named_generators_are_used() -> None:
    kinds = {demo.make_image(i, label=1, size=16, generators=("vae8",))[1] for i in range(8)}
    assert kinds == {"vae8"}


def test_size_and_format_do_not_tell_the_class(images: list[bytes]) -> None:
    shapes = [{tuple(metadata(content)[:2]) for content in images[label::2]} for label in (0, 1)]
    assert shapes == [{(64, 64)}, {(64, 64)}]
    assert {open_image(content).format for content in images} == {"JPEG"}
    assert probe_auroc([metadata(content) for content in images]) < 0.7


def test_the_format_bias_tells_the_class() -> None:
    biased = [
        demo.make_image(index, label=int(LABELS[index]), bias="format", size=16)[0]
        for index in range(NUM_PROBED)
    ]
    assert probe_auroc([metadata(content) for content in biased]) > 0.99


def test_the_class_is_in_the_trace_and_not_in_the_content(images: list[bytes]) -> None:
    assert probe_auroc([trace(content) for content in images]) > 0.7
    assert probe_auroc([thumbnail(content) for content in images]) < 0.6


def test_an_image_is_the_same_in_a_larger_set(tmp_path: Path, small_set: list[Path]) -> None:
    larger = read_rows(demo.write(tmp_path / "set", num_images=40, size=32, workers=1))
    smaller = read_rows(small_set)
    same_label = [(a, b) for a, b in zip(smaller, larger, strict=False) if a["label"] == b["label"]]
    assert same_label and all(a == b for a, b in same_label)


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    counts: list[int] = []
    knobs: dict[str, Any] = {"num_images": 250, "size": 16}
    alone = demo.write(tmp_path / "alone", workers=1, **knobs)
    together = demo.write(tmp_path / "together", workers=2, progress=counts.append, **knobs)
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in together]
    assert sum(counts) == 250 and len(counts) > 1


def test_labels_are_balanced_and_shuffled(small_set: list[Path]) -> None:
    labels = [row["label"] for row in read_rows(small_set)]
    assert sum(labels) == 15
    assert labels not in ([0, 1] * 15, [0] * 15 + [1] * 15)


def test_the_files_have_the_columns_and_row_groups_promised(tmp_path: Path) -> None:
    paths = demo.write(tmp_path / "set", num_images=250, num_shards=1, size=16, workers=1)
    assert [path.name for path in paths] == ["train-00000-of-00001.parquet"]
    file = pq.ParquetFile(paths[0])
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert groups == [100, 100, 50]
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    assert columns == {
        "id": "string",
        "image": "struct<bytes: binary, path: string>",
        "label": "int64",
        "generator": "string",
    }


def test_datasets_reads_it_back_as_images(tmp_path: Path, small_set: list[Path]) -> None:
    loaded = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in small_set], cache_dir=str(tmp_path)
    )["train"]
    assert loaded.features == {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["real", "generated"]),
        "generator": datasets.Value("string"),
    }
    row = loaded[0]
    assert row["image"].size == (32, 32) and row["image"].mode == "RGB"
    assert (row["generator"] == demo.CAMERA) == (row["label"] == 0)


def test_a_finished_set_is_not_written_again(small_set: list[Path]) -> None:
    def refuse(num_images: int) -> None:
        raise AssertionError("an image was made")

    before = [path.stat().st_mtime_ns for path in small_set]
    again = demo.write(small_set[0].parent, num_images=30, size=32, workers=1, progress=refuse)
    assert again == small_set
    assert [path.stat().st_mtime_ns for path in again] == before


def test_a_lost_shard_is_made_again(tmp_path: Path, small_set: list[Path]) -> None:
    paths = demo.write(tmp_path / "set", num_images=30, size=32, workers=1)
    paths[1].unlink()
    demo.write(tmp_path / "set", num_images=30, size=32, workers=1)
    assert read_rows(paths) == read_rows(small_set)


def test_a_folder_with_other_settings_is_refused(small_set: list[Path]) -> None:
    with pytest.raises(InputError, match="num_images=30, not 31; give another folder"):
        demo.write(small_set[0].parent, num_images=31, size=32)


def test_a_strangers_parquet_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.parquet").write_bytes(b"precious")
    with pytest.raises(InputError, match="not a demo dataset; give another folder"):
        demo.write(tmp_path, num_images=30)
    assert (tmp_path / "train-00000-of-00002.parquet").read_bytes() == b"precious"


def test_torn_settings_and_a_file_in_place_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / demo.SETTINGS_FILE).write_text('{"recipe"')
    with pytest.raises(InputError, match="cannot be read"):
        demo.write(tmp_path, num_images=30)
    with pytest.raises(InputError, match="is a file; give a folder"):
        demo.write(tmp_path / demo.SETTINGS_FILE, num_images=30)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"difficulty": 1.5}, "difficulty=1.5 must lie between"),
        ({"difficulty": float("nan")}, "difficulty=nan must lie between"),
        ({"size": 60}, "size=60 must be a multiple of 8"),
        ({"size": 8}, "at least 16"),
        ({"generators": ("deconf",)}, "did you mean 'deconv'"),
        ({"generators": ()}, "name at least one"),
        ({"bias": "formats"}, "did you mean 'format'"),
        ({"seed": -1}, "seed=-1"),
        ({"num_images": 0}, "num_images=0 must be 1 or more"),
        ({"num_images": 2, "num_shards": 3}, "num_shards=3 must lie between 1 and num_images=2"),
        ({"workers": 0}, "workers=0 must be 1 or more"),
    ],
)
def test_a_bad_knob_is_refused_before_anything_is_written(
    tmp_path: Path, knobs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        demo.write(tmp_path / "set", **knobs)
    assert not (tmp_path / "set").exists()


def stop_after(num_images: int) -> Callable[[int], None]:
    """Return a progress function that fails, as Ctrl-C would, once so many images are done."""
    done = 0

    def progress(new: int) -> None:
        nonlocal done
        done += new
        if done >= num_images:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_write_leaves_no_final_file(tmp_path: Path, workers: int) -> None:
    with pytest.raises(KeyboardInterrupt):  # in the second of two shards
        demo.write(tmp_path, num_images=220, size=16, workers=workers, progress=stop_after(120))
    assert list(tmp_path.iterdir()) == []
    demo.write(tmp_path, num_images=4, size=16, workers=1)
    assert json.loads((tmp_path / demo.SETTINGS_FILE).read_text())["num_images"] == 4
