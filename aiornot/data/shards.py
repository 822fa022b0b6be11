"""Parquet shards of labelled images as a source: schema, rows, and the bytes of a row group.

``aiornot prepare SOURCE`` reads through this room; nothing here decodes an image.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aiornot import storage
from aiornot.config import InputError
from aiornot.data.demo import NOTE_KEY

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The cheap columns of all rows of the source."""

    ids: list[str]
    labels: np.ndarray
    hashes: list[str]
    blocks: list["Block"]
    note: str
    """What the source says of itself, e.g. that it is synthetic; kept wherever scores are kept."""

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row in zip(self.ids, self.labels.tolist(), self.hashes, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Block:
    """One row group of one shard; ``first`` is the number of its first row in the source."""

    path: str
    group: int
    first: int
    count: int


def read_rows(source: str, *, progress: Progress = lambda what, done, total: None) -> Rows:
    """Read ids, labels and the hash of every image's bytes; no image is decoded.

    Raises:
        InputError: As ``prepare``.
    """
    paths = storage.find(source, suffix=".parquet")
    blocks = _blocks(paths)
    total = sum(block.count for block in blocks)
    if total == 0:
        raise InputError(f"{source}: the parquet files hold no rows")
    ids: list[str] = []
    labels: list[int] = []
    hashes: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(_read_block, blocks):
            ids += found[0]
            labels += found[1]
            hashes += found[2]
            progress("reading", len(ids), total)
    return Rows(ids, np.asarray(labels, dtype=np.int64), hashes, blocks, _note(paths[0]))


def _blocks(paths: list[str]) -> list[Block]:
    blocks: list[Block] = []
    first = 0
    for path in paths:
        with open_file(path) as file:
            _check_schema(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                blocks.append(Block(path, group, first, count))
                first += count
    return blocks


def _note(path: str) -> str:
    with open_file(path) as file:
        return str((file.schema_arrow.metadata or {}).get(NOTE_KEY, b"").decode())


def open_file(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_input(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from None


def _check_schema(path: str, schema: pa.Schema) -> None:
    for name in ("id", "image", "label"):
        if name not in schema.names:
            raise InputError(
                f"{path}: no column {name!r} (found {', '.join(schema.names)}); expected "
                "id: string, image: struct<bytes: binary, path: string>, label: 0 or 1"
            )
    image = schema.field("image").type
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
        raise InputError(
            f"{path}: column 'image' is {image}, expected struct<bytes: binary, path: string>"
        )
    if not pa.types.is_integer(label := schema.field("label").type):
        raise InputError(f"{path}: column 'label' is {label}, expected whole numbers 0 and 1")


def _read_block(block: Block) -> tuple[list[str], list[int], list[str]]:
    with open_file(block.path) as file:
        table = file.read_row_group(block.group, columns=["id", "image.bytes", "label"])
    labels = table.column("label")
    if labels.null_count:
        raise InputError(f"{block.path}, row group {block.group}: a label is missing")
    ids = [str(value) for value in table.column("id").to_pylist()]
    hashes = [hashlib.sha256(data or b"").hexdigest() for data in image_bytes(table)]
    return ids, labels.to_pylist(), hashes


def image_bytes(table: pa.Table) -> Iterator[bytes | None]:
    # Chunk by chunk: combining them overflows 32-bit offsets above 2 GiB (Arrow issue 25822).
    for chunk in table.column("image").chunks:
        for value in chunk.field("bytes"):
            yield value.as_py()
