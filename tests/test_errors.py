"""Errors: the right images in the right order, slices that add up, no image unless asked for."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CPU, prepare
from PIL import Image

from aiornot.config import InputError
from aiornot.data import hdf5, shards, slices
from aiornot.delivery import bundle, errors, errors_page, manifest


@pytest.fixture
def copy(delivered, tmp_path):
    return shutil.copytree(delivered.folder, tmp_path / "bundle")


@pytest.fixture(scope="module")
def found(delivered, tmp_path_factory):
    folder = shutil.copytree(delivered.folder, tmp_path_factory.mktemp("errors") / "bundle")
    return errors.measure(folder, data=delivered.data, split="val", device=CPU, with_images=True)


def test_the_most_confident_errors_come_first(found, delivered):
    loaded = bundle.load(delivered.folder, device=CPU)
    logits, labels = bundle.score(loaded, data=delivered.data, split="val")
    probabilities = loaded.calibration.probabilities(logits)
    called = probabilities >= loaded.calibration.threshold
    ids = hdf5.read_ids(delivered.data, "val")
    for kind, wrong, order in (
        ("false_positives", called & (labels == 0), -probabilities),
        ("false_negatives", ~called & (labels == 1), probabilities),
    ):
        rows = [row for row in np.argsort(order, kind="stable") if wrong[row]]
        listed = found.report["worst"][kind]
        assert rows and [row["id"] for row in listed] == [ids[row] for row in rows]
        assert [row["probability"] for row in listed] == pytest.approx(probabilities[rows])
        unsure = loaded.calibration.unsure_at(probabilities[rows])
        assert [row["unsure"] for row in listed] == unsure.tolist()
        count = found.report[kind]
        assert count["errors"] == len(rows) and count["images"] == 32
        low, high = count["interval"]
        assert low < count["share"] < high


def test_slices_add_up_to_the_whole(found):
    report = found.report
    assert set(report["slices"]) == {"brightness", "detail"}
    for rows in report["slices"].values():
        assert len(rows) == 4
        for kind in ("false_positives", "false_negatives"):
            for key in ("errors", "images"):
                assert sum(row[kind][key] for row in rows) == report[kind][key]


def test_no_image_leaves_unless_it_is_asked_for(found, delivered, copy, tmp_path):
    without = errors.measure(copy, data=delivered.data, split="val", device=CPU)
    assert without.thumbnails == {}
    drop = {"time"}
    assert {k: v for k, v in without.report.items() if k not in drop} == {
        k: v for k, v in found.report.items() if k not in drop
    }
    path = errors_page.write(str(tmp_path / "out"), without)
    page = (tmp_path / "out/errors.html").read_text()
    assert path.endswith("errors.html") and "data:image" not in page and "No image is here" in page
    assert json.loads((tmp_path / "out/errors.json").read_text()) == without.report
    shown = errors_page.page(found)
    number = sum(found.report[kind]["errors"] for kind in errors_page.KINDS)
    assert shown.count("data:image/jpeg") == number == len(found.thumbnails)
    assert "mind its terms" in shown
    row = found.report["worst"]["false_positives"][0]["row"]
    small = np.asarray(Image.open(io.BytesIO(found.thumbnails[row])), dtype=float)
    stored = hdf5.map_images(delivered.data, "val")[row]
    assert abs(small.mean() - stored.mean()) < 3


def test_a_hostile_id_is_text(found):
    report = json.loads(json.dumps(found.report))
    report["worst"]["false_positives"][0]["id"] = "<script>alert(1)</script>"
    for thumbnails in ({}, found.thumbnails):
        page = errors_page.page(dataclasses.replace(found, report=report, thumbnails=thumbnails))
        assert "<script" not in page and "&lt;script&gt;" in page


def test_errors_are_counted_on_each_value():
    values = ["b", "a", "b", "a", "b"]
    labels = np.array([0, 0, 1, 1, 0]).astype(bool)
    called = np.array([1, 0, 0, 1, 0]).astype(bool)
    first, second = errors.sliced(values, labels, called)
    assert (first["value"], second["value"]) == ("a", "b")
    assert first["false_positives"]["errors"] == first["false_negatives"]["errors"] == 0
    assert (second["false_positives"]["errors"], second["false_positives"]["images"]) == (1, 2)
    assert (second["false_negatives"]["errors"], second["false_negatives"]["images"]) == (1, 1)


def test_rare_values_are_put_together():
    values = [f"kind {n}" for n in range(20)] + [f"kind {n}" for n in range(11)]
    labels = np.zeros(31, dtype=bool)
    rows = errors.sliced(values, labels, ~labels)
    assert len(rows) == errors.MOST_VALUES + 1 and rows[-1]["value"] == errors.OTHERS
    assert sum(row["false_positives"]["images"] for row in rows) == 31


def test_bins_are_named_by_their_bounds_and_sorted_by_them():
    values = errors.bins([100, 49, 70, 50, 999.5], [50, 100.5])
    assert values == ["50 to 100.5", "below 50", "50 to 100.5", "50 to 100.5", "100.5 and more"]
    rows = errors.sliced(values, np.zeros(5, dtype=bool), np.zeros(5, dtype=bool))
    assert [row["value"] for row in rows] == ["below 50", "50 to 100.5", "100.5 and more"]
    assert set(errors.quarters(np.full(9, 3.0))) == {"3 and more"}  # all alike


def source_of(folder, data):
    """Write parquet whose rows are the val images: real as small JPEG, generated as large PNG."""
    rows = []
    for number, (name, label) in enumerate(
        zip(hdf5.read_ids(data, "val"), hdf5.read_labels(data, "val"), strict=True)
    ):
        buffer = io.BytesIO()
        image = Image.new("RGB", (300, 200) if label else (100, 50), (number, 0, 0))
        image.save(buffer, "PNG" if label else "JPEG", quality=85)
        content = {"bytes": buffer.getvalue(), "path": None}
        kind = "vae8" if label else "camera"
        rows.append({"id": name, "image": content, "label": int(label), "generator": kind})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return shards.read_rows(str(folder))


def test_the_source_tells_format_size_and_quality(copy, tmp_path):
    rows = source_of(tmp_path / "source", prepare(tmp_path / "tiny.h5"))
    data = prepare(tmp_path / "tiny.h5", fingerprint=rows.fingerprint)
    slices.write(data, rows)
    found = errors.measure(
        copy, data=data, split="val", device=CPU, source=str(tmp_path / "source")
    )
    values = {name: [row["value"] for row in rows] for name, rows in found.report["slices"].items()}
    assert values["format"] == ["JPEG", "PNG"]
    assert values["long side"] == ["below 128", "256 to 512"]
    assert values["JPEG quality"] == ["80 to 90", "no JPEG"]
    assert values["generator"] == ["camera", "vae8"]
    worst = found.report["worst"]["false_positives"][0]
    assert (worst["format"], worst["generator"]) == ("JPEG", "camera")


def test_another_source_is_refused_before_the_seal_is_broken(copy, delivered, tmp_path):
    source_of(tmp_path / "source", delivered.data)
    with pytest.raises(InputError, match="prepared from something else"):
        errors.measure(
            copy,
            data=delivered.data,
            split="test",
            device=CPU,
            source=str(tmp_path / "source"),
        )
    assert not (copy / manifest.EVALUATIONS).exists()
