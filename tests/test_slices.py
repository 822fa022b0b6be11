"""Slices: read from the source's own column, kept out of the image file, never those of another."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import prepare

from aiornot.config import InputError
from aiornot.data import demo, shards, slices

KINDS = ["camera", "vae8", None, "deconv"]


def write_source(folder, kinds, *, first=0):
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"val-{first + n}", "image": {"bytes": b"x%d" % n, "path": None}, "label": n % 2}
        | ({} if kind is False else {"generator": kind})
        for n, kind in enumerate(kinds)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{first}.parquet", row_group_size=3)


def test_each_row_has_the_generator_of_its_shard(tmp_path):
    write_source(tmp_path / "source", KINDS)
    write_source(tmp_path / "source", [False, False], first=4)  # a shard without the column
    rows = shards.read_rows(str(tmp_path / "source"))
    assert slices.read_column(rows) == ["camera", "vae8", "", "deconv", "", ""]


def test_slices_are_found_by_id_and_only_those_of_the_same_source(tmp_path):
    write_source(tmp_path / "source", KINDS)
    rows = shards.read_rows(str(tmp_path / "source"))
    data = prepare(tmp_path / "tiny.h5", fingerprint=rows.fingerprint)
    assert slices.generators(data, "val") is None
    assert slices.write(data, rows)
    found = slices.generators(data, "val")
    assert len(found) == 64 and found[:4] == ["camera", "vae8", "", "deconv"] and not any(found[4:])
    inode = slices.path_of(data).stat().st_ino
    assert slices.write(data, rows) and slices.path_of(data).stat().st_ino == inode
    other = prepare(tmp_path / "tiny.h5")  # prepared again, from another source
    assert slices.generators(other, "val") is None
    slices.path_of(data).write_text("{")
    assert slices.generators(data, "val") is None


def test_a_source_without_the_column_leaves_no_file_not_even_an_older_one(tmp_path):
    write_source(tmp_path / "source", [False] * 4)
    data = tmp_path / "tiny.h5"
    slices.path_of(data).write_text('{"fingerprint": "older", "generator": {}}')
    assert not slices.write(data, shards.read_rows(str(tmp_path / "source")))
    assert not slices.path_of(data).exists()


def test_demo_data_tells_its_generators(tmp_path):
    demo.write(tmp_path / "demo", num_images=20, size=16)
    rows = shards.read_rows(str(tmp_path / "demo"))
    kinds = np.array(slices.read_column(rows))
    assert set(kinds[rows.labels == 0]) == {"camera"} and "camera" not in kinds[rows.labels == 1]


def test_a_source_that_changed_is_refused(tmp_path):
    write_source(tmp_path / "source", KINDS)
    rows = shards.read_rows(str(tmp_path / "source"))
    (tmp_path / "source/0.parquet").write_bytes(b"cut short")
    with pytest.raises(InputError, match="cannot be read"):
        slices.write(tmp_path / "tiny.h5", rows)
