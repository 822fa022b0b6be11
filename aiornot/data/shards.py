"""Parquet shards of labelled images as a source: schema, rows, and the bytes of a row group.

``aiornot prepare SOURCE`` reads through this room; nothing here decodes an image.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aiornot import storage
from aiornot.config import InputError
from aiornot.data.demo import NOTE_KEY

BATCH = 64
"""Rows read at once. A row group may hold the whole set, and Arrow fails above 2 GiB of images."""

TASK_ROWS = 512
"""Rows of one task at most. A shard may be one row group of ten thousand: one core would decode
it alone, and a kill would lose it whole. The rows before a task's own are read again to skip them,
which costs a tenth of decoding them; from a remote store it would cost the network, so there a task
has its row group to itself."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The cheap columns of all rows of the source."""

    ids: list[str]
    labels: np.ndarray
    hashes: list[str]
    """Of the image's bytes; empty where there are none."""
    blocks: list["Block"]
    note: str
    """What the source says of itself, e.g. that it is synthetic; kept wherever scores are kept."""

    @cached_property
    def fingerprint(self) -> str:
        """Of ids, labels and images, in their order; how they are cut into shards is not in it."""
        digest = hashlib.sha256()
        for row in zip(self.ids, self.labels.tolist(), self.hashes, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Outline:
    """What the footers of the shards say; no row is read for it."""

    blocks: list["Block"]
    note: str
    """As in ``Rows``."""
    labelled: bool
    """Whether any shard has labels."""
    footprint: str
    """Hash of the sizes of all columns: another source has another one."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of one row group of one shard; ``first`` is the number of its first in the source."""

    path: str
    group: int
    first: int
    count: int
    skip: int = 0
    """Rows of the row group before its first."""


def read_rows(source: str, *, progress: Progress = lambda what, done, total: None) -> Rows:
    """Read ids, labels and the hash of every image's bytes; no image is decoded.

    Raises:
        InputError: As ``prepare``.
    """
    found = outline(source)
    blocks, total = found.blocks, sum(block.count for block in found.blocks)
    ids: list[str] = []
    labels: list[int] = []
    hashes: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for columns in pool.map(_read_block, blocks):
            ids += columns[0]
            labels += columns[1]
            hashes += columns[2]
            progress("reading", len(ids), total)
    if not any(hashes):
        raise InputError(
            f"{source}: column 'image' holds no bytes in any row; write the images into it"
        )
    return Rows(ids, np.asarray(labels, dtype=np.int64), hashes, blocks, found.note)


def outline(source: str, *, labels: bool = True) -> Outline:
    """Return the row groups of all shards of a source, after a look at each schema.

    Args:
        source: As ``prepare`` takes it.
        labels: Whether a shard without labels is refused.

    Raises:
        InputError: Nothing readable there, a wrong schema, or no rows.
    """
    blocks: list[Block] = []
    notes: list[str] = []
    labelled = False
    first, digest = 0, hashlib.sha256()
    for path in storage.find(source, suffix=".parquet"):
        with open_file(path) as file:
            schema = file.schema_arrow
            labelled |= _check_schema(path, schema, labels=labels)
            notes.append((schema.metadata or {}).get(NOTE_KEY, b"").decode())
            for group in range(file.num_row_groups):
                found = file.metadata.row_group(group)
                blocks.append(Block(path, group, first, found.num_rows))
                first += found.num_rows
                digest.update(json.dumps(_sizes(found)).encode())
    if first == 0:
        raise InputError(f"{source}: the parquet files hold no rows")
    note = "; ".join(dict.fromkeys(note for note in notes if note))
    return Outline(blocks, note, labelled, digest.hexdigest()[:32])


def _sizes(group: pq.RowGroupMetaData) -> list[Any]:
    columns = [group.column(number) for number in range(group.num_columns)]
    sizes = [(column.path_in_schema, column.total_compressed_size) for column in columns]
    return [group.num_rows, *sizes]


def cut(blocks: Iterable[Block]) -> Iterator[Block]:
    """Cut local row groups into blocks of at most TASK_ROWS rows."""
    for block in blocks:
        most = block.count if storage.is_remote(block.path) else TASK_ROWS
        for skip in range(0, block.count, most):
            count = min(most, block.count - skip)
            yield dataclasses.replace(block, first=block.first + skip, count=count, skip=skip)


def open_file(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_input(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_schema(path: str, schema: pa.Schema, *, labels: bool) -> bool:
    """Refuse a schema that is not ours; return whether there are labels."""
    labelled = "label" in schema.names
    for name in ("id", "image", *(["label"] if labels else [])):
        if name not in schema.names:
            raise InputError(
                f"{path}: no column {name!r} (found {', '.join(schema.names)}); expected "
                "id: string, image: struct<bytes: binary, path: string>"
                + (", label: 0 or 1" if labels else "")
            )
    if not _is_text_or_number(kind := schema.field("id").type):
        raise InputError(f"{path}: column 'id' is {kind}, expected string")
    image = schema.field("image").type
    if not (pa.types.is_struct(image) and _holds_bytes(image)):
        raise InputError(
            f"{path}: column 'image' is {image}, expected struct<bytes: binary, path: string>"
        )
    if labelled and not pa.types.is_integer(label := schema.field("label").type):
        raise InputError(f"{path}: column 'label' is {label}, expected whole numbers 0 and 1")
    return labelled


def _is_text_or_number(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.types.is_integer(kind) or any(test(kind) for test in tests)


def _holds_bytes(image: pa.StructType) -> bool:
    index = image.get_field_index("bytes")
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return index >= 0 and any(test(image.field(index).type) for test in tests)


def read(block: Block, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read the rows of a block, a few at a time.

    Raises:
        InputError: It is damaged.
    """
    start, stop = block.skip, block.skip + block.count
    with open_file(block.path) as file:
        try:
            for batch in file.iter_batches(BATCH, row_groups=[block.group], columns=columns):
                if start < batch.num_rows:
                    yield batch.slice(max(start, 0), stop - max(start, 0))
                start, stop = start - batch.num_rows, stop - batch.num_rows
                if stop <= 0:
                    return
        except (pa.ArrowException, OSError) as error:
            place = f"{block.path}, row group {block.group}"
            raise InputError(f"{place} cannot be read: {_one_line(error)}") from None


def _read_block(block: Block) -> tuple[list[str], list[int], list[str]]:
    ids: list[str] = []
    labels: list[int] = []
    hashes: list[str] = []
    for batch in read(block, ["id", "image.bytes", "label"]):
        for name in ("id", "label"):
            if batch.column(name).null_count:
                raise InputError(f"{block.path}, row group {block.group}: a {name} is missing")
        ids += _ids(block, batch.column("id"))
        labels += batch.column("label").to_pylist()
        hashes += [hashlib.sha256(data).hexdigest() if data else "" for data in image_bytes(batch)]
    return ids, labels, hashes


def _ids(block: Block, column: pa.Array) -> list[str]:
    try:
        ids = [str(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        ids = ["\0"]
    if any("\0" in text for text in ids):  # HDF5 ends a text there
        raise InputError(f"{block.path}, row group {block.group}: an id is not text")
    return ids


def image_bytes(batch: pa.RecordBatch) -> Iterator[bytes | None]:
    for value in batch.column("image").field("bytes"):
        yield value.as_py()
