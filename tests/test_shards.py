"""Parquet as strangers write it: read, or refused in one sentence that names file and column."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aiornot.config import InputError
from aiornot.data import shards
from aiornot.data.demo import NOTE_KEY

IDS = [f"row-{number}" for number in range(10)]
LABELS = [number % 2 for number in range(10)]
BYTES = [bytes([number]) * (number + 1) for number in range(10)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(contents: Sequence[bytes | None] = BYTES) -> pa.Array:
    return pa.array([{"bytes": content, "path": "x"} for content in contents], IMAGE)


def write(path: Path, *, group: int = 4, metadata: dict | None = None, **columns: Any) -> str:
    """Write a shard; a column that is given as None is left out."""
    given = {"id": IDS, "image": images(), "label": LABELS} | columns
    table = pa.table({name: values for name, values in given.items() if values is not None})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return str(path)


def refusal(source: str) -> str:
    with pytest.raises(InputError) as raised:
        shards.read_rows(source)
    return str(raised.value)


def test_rows_are_read_in_the_order_of_the_shards(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / f"{number}.parquet", id=[f"{number}-{name}" for name in IDS])
    seen = []
    rows = shards.read_rows(str(tmp_path), progress=lambda *now: seen.append(now))
    assert rows.ids == [f"{number}-{name}" for number in (0, 1, 2) for name in IDS]
    assert rows.labels.tolist() == LABELS * 3 and rows.labels.dtype == np.int64
    assert rows.hashes == [hashlib.sha256(content).hexdigest() for content in BYTES] * 3
    assert [block.count for block in rows.blocks] == [4, 4, 2] * 3
    assert [block.first for block in rows.blocks] == [0, 4, 8, 10, 14, 18, 20, 24, 28]
    assert seen[-1] == ("reading", 30, 30)


def test_images_are_read_a_few_rows_at_a_time(tmp_path):
    """Arrow cannot read 2 GiB of images at once, and pandas writes all rows as one row group."""
    count = 2 * shards.BATCH + 3
    contents = [number.to_bytes(2, "big") for number in range(count)]
    path = write(tmp_path / "a.parquet", group=count, id=None, label=None, image=images(contents))
    batches = list(shards.read(shards.Block(path, 0, 0, count), ["image.bytes"]))
    assert max(batch.num_rows for batch in batches) <= shards.BATCH
    assert [data for batch in batches for data in shards.image_bytes(batch)] == contents


@pytest.mark.parametrize("group", [shards.TASK_ROWS, shards.TASK_ROWS + 1, 2500])
def test_a_large_row_group_is_cut_into_blocks_that_hold_its_rows(tmp_path, group):
    """Else one core would decode it alone, and a kill would lose all of it."""
    count = 2600
    contents = [number.to_bytes(2, "big") for number in range(count)]
    path = write(tmp_path / "a.parquet", group=group, id=None, label=None, image=images(contents))
    groups = [min(group, count - first) for first in range(0, count, group)]
    whole = [shards.Block(path, n, n * group, size) for n, size in enumerate(groups)]
    blocks = list(shards.cut(whole))
    assert max(block.count for block in blocks) <= shards.TASK_ROWS
    assert sum(block.count for block in blocks) == count
    for block in blocks:
        found = [
            data
            for batch in shards.read(block, ["image.bytes"])
            for data in shards.image_bytes(batch)
        ]
        assert found == contents[block.first : block.first + block.count]


def test_a_remote_row_group_is_fetched_once():
    block = shards.Block("s3://bucket/a.parquet", 0, 0, 10 * shards.TASK_ROWS)
    assert list(shards.cut([block])) == [block]


def test_extra_columns_are_kept_out(tmp_path):
    plain = shards.read_rows(write(tmp_path / "a.parquet"))
    extra = shards.read_rows(write(tmp_path / "b.parquet", generator=["x"] * 10, year=LABELS))
    assert extra.fingerprint == plain.fingerprint


@pytest.mark.parametrize("column", ["id", "image", "label"])
def test_a_missing_column_is_refused(tmp_path, column):
    sentence = refusal(write(tmp_path / "a.parquet", **{column: None}))
    found = ", ".join(name for name in ("id", "image", "label") if name != column)
    assert sentence.startswith(f"{tmp_path}/a.parquet: no column {column!r} (found {found})")


def test_the_shard_with_the_mistake_is_named(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", label=None)
    assert refusal(str(tmp_path)).startswith(f"{tmp_path}/b.parquet: no column 'label'")


@pytest.mark.parametrize(
    "column, values, found",
    [
        ("image", BYTES, "binary"),
        ("image", ["a.jpg"] * 10, "string"),
        ("image", [{"path": "a.jpg"}] * 10, "struct<path: string>"),
        ("image", [{"bytes": "text"}] * 10, "struct<bytes: string>"),
        ("image", [{"bytes": [1, 2]}] * 10, "struct<bytes: list<element: int64>>"),
        ("image", [[[0, 0, 0]]] * 10, "list<element: list<element: int64>>"),
        ("label", [0.0, 1.0] * 5, "double"),
        ("label", [True, False] * 5, "bool"),
        ("label", ["real", "fake"] * 5, "string"),
        ("label", pa.array(["0", "1"] * 5).dictionary_encode(), "dictionary<"),
        ("id", BYTES, "binary"),
        ("id", [0.5] * 10, "double"),
        ("id", [{"a": 1}] * 10, "struct<a: int64>"),
        ("id", pa.nulls(10), "null"),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path, column, values, found):
    sentence = refusal(write(tmp_path / "a.parquet", **{column: values}))
    assert sentence.startswith(f"{tmp_path}/a.parquet: column {column!r} is {found}")
    assert ", expected " in sentence and "\n" not in sentence


@pytest.mark.parametrize("column, values", [("label", LABELS), ("id", IDS)])
def test_a_missing_value_is_refused(tmp_path, column, values):
    path = write(tmp_path / "a.parquet", **{column: [*values[:5], None, *values[6:]]})
    assert refusal(path) == f"{path}, row group 1: a {column} is missing"


@pytest.mark.parametrize("nothing", [None, b""])
def test_images_that_are_elsewhere_are_refused(tmp_path, nothing):
    """``datasets`` can write paths alone."""
    path = write(tmp_path / "a.parquet", image=images([nothing] * 10))
    expected = f"{path}: column 'image' holds no bytes in any row; write the images into it"
    assert refusal(path) == expected


def test_a_missing_image_is_a_row_like_any_other(tmp_path):
    """It is rejected when it is decoded, and listed with the others."""
    contents = [None, b"", *BYTES[2:]]
    rows = shards.read_rows(write(tmp_path / "a.parquet", image=images(contents)))
    assert rows.ids == IDS
    none = pa.array([None, *images().to_pylist()[1:]], IMAGE)
    assert shards.read_rows(write(tmp_path / "b.parquet", image=none)).ids == IDS


@pytest.mark.parametrize("name", ["a\0b", b"\xff\xfe"])
def test_an_id_that_hdf5_cannot_hold_is_refused(tmp_path, name):
    column = pa.array([name] * 10, pa.binary() if isinstance(name, bytes) else pa.string())
    path = write(tmp_path / "a.parquet", id=column.view(pa.string()))
    assert refusal(path) == f"{path}, row group 0: an id is not text"


def test_a_shard_without_rows_adds_none(tmp_path):
    write(tmp_path / "a.parquet")
    write(
        tmp_path / "b.parquet",
        id=pa.array([], pa.string()),
        image=images([]),
        label=pa.array([], pa.int64()),
    )
    assert shards.read_rows(str(tmp_path)).ids == IDS


def test_a_source_without_rows_is_refused(tmp_path):
    empty = {
        "id": pa.array([], pa.string()),
        "image": images([]),
        "label": pa.array([], pa.int64()),
    }
    path = write(tmp_path / "a.parquet", **empty)
    assert refusal(path) == f"{path}: the parquet files hold no rows"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 cut short", b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    sentence = refusal(str(tmp_path))
    assert sentence.startswith(f"{tmp_path}/a.parquet cannot be read as parquet: ")
    assert "\n" not in sentence


def test_a_shard_that_is_damaged_inside_is_refused(tmp_path):
    path = Path(write(tmp_path / "a.parquet", image=images([bytes(1000)] * 10)))
    with path.open("r+b") as file:
        file.seek(4)
        file.write(bytes(100))
    sentence = refusal(str(path))
    assert sentence.startswith(f"{path}, row group 0 cannot be read: ")
    assert "\n" not in sentence


def test_one_byte_of_one_image_changes_the_fingerprint(tmp_path):
    plain = shards.read_rows(write(tmp_path / "a.parquet")).fingerprint
    changed = images([*BYTES[:9], BYTES[9][:-1] + b"x"])
    assert shards.read_rows(write(tmp_path / "a.parquet", image=changed)).fingerprint != plain
    assert shards.read_rows(write(tmp_path / "a.parquet")).fingerprint == plain


@pytest.mark.parametrize("column, values", [("label", LABELS[::-1]), ("id", IDS[::-1])])
def test_labels_and_ids_are_in_the_fingerprint(tmp_path, column, values):
    plain = shards.read_rows(write(tmp_path / "a.parquet")).fingerprint
    changed = shards.read_rows(write(tmp_path / "b.parquet", **{column: values}))
    assert changed.fingerprint != plain


@pytest.mark.parametrize("group, cuts", [(1, [0, 10]), (10, [0, 3, 4, 10]), (4, [0, 0, 9, 10])])
def test_how_rows_are_cut_is_not_in_the_fingerprint(tmp_path, group, cuts):
    plain = shards.read_rows(write(tmp_path / "plain.parquet")).fingerprint
    for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        part = {"id": pa.array(IDS[start:stop], pa.string()), "image": images(BYTES[start:stop])}
        label = pa.array(LABELS[start:stop], pa.int64())
        write(tmp_path / f"part-{number}.parquet", group=group, label=label, **part)
    assert shards.read_rows(f"{tmp_path}/part-*").fingerprint == plain


@pytest.mark.parametrize(
    "column, values",
    [
        ("id", pa.array(IDS, pa.large_string())),
        ("id", pa.array(IDS, pa.string_view())),
        ("id", pa.array(IDS).dictionary_encode()),
        ("label", pa.array(LABELS, pa.uint8())),
        ("label", pa.array(LABELS, pa.int32())),
        *(
            (
                "image",
                pa.array([{"bytes": b} for b in BYTES], pa.struct({"bytes": kind, "path": path})),
            )
            for kind in (pa.large_binary(), pa.binary_view())
            for path in (pa.large_string(), pa.string_view(), pa.null())
        ),
    ],
    ids=lambda value: getattr(value, "type", value),
)
def test_the_types_of_other_writers_are_read(tmp_path, column, values):
    plain = shards.read_rows(write(tmp_path / "a.parquet")).fingerprint
    # In one row group: Arrow 26 cannot cut a view that lies in a struct.
    other = shards.read_rows(write(tmp_path / "b.parquet", group=10, **{column: values}))
    assert other.fingerprint == plain


def test_numbers_may_be_ids(tmp_path):
    rows = shards.read_rows(write(tmp_path / "a.parquet", id=list(range(10))))
    assert rows.ids == [str(number) for number in range(10)]


def test_the_parquet_of_datasets_is_read(tmp_path):
    kinds = {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["real", "generated"]),
    }
    values = {"id": IDS, "image": images().to_pylist(), "label": LABELS}
    written = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
    written.to_parquet(tmp_path / "a.parquet")
    rows = shards.read_rows(str(tmp_path / "a.parquet"))
    plain = shards.read_rows(write(tmp_path / "b.parquet"))
    assert rows.fingerprint == plain.fingerprint
    assert rows.note == ""


def test_the_parquet_of_pandas_is_read(tmp_path):
    values = {"id": IDS, "image": images().to_pylist(), "label": LABELS}
    pa.Table.from_pydict(values).to_pandas().to_parquet(tmp_path / "a.parquet")
    rows = shards.read_rows(str(tmp_path / "a.parquet"))
    assert rows.fingerprint == shards.read_rows(write(tmp_path / "b.parquet")).fingerprint


def test_the_note_of_any_shard_is_kept(tmp_path):
    """Real images beside synthetic ones must not hide that some are synthetic."""
    for number, note in enumerate(["", "synthetic", "", "synthetic", "borrowed"]):
        metadata = {NOTE_KEY: note} if note else None
        write(tmp_path / f"{number}.parquet", metadata=metadata)
    assert shards.read_rows(str(tmp_path)).note == "synthetic; borrowed"
