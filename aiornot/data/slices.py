"""Which generator made which image, where the source tells: to judge a model, never to train one.

``aiornot prepare`` writes ``<profile>.slices.json`` beside the images, and not into their file:
what trains reads the images alone, so that no such column can leak into a model.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import hdf5, shards

COLUMN = "generator"
"""Of the source, optional: text or numbers."""


def path_of(data: Path) -> Path:
    """Return where the slices of a prepared file are."""
    return data.with_suffix(".slices.json")


def write(data: Path, rows: shards.Rows) -> bool:
    """Write the slices of a prepared file, if its source has any; nothing is written twice.

    Args:
        data: The prepared file.
        rows: Its source.

    Returns:
        Whether there are any.

    Raises:
        InputError: The source is damaged since ``rows`` were read.
    """
    path = path_of(data)
    if _named(path, rows.fingerprint) is not None:
        return True
    path.unlink(missing_ok=True)
    named = dict(zip(rows.ids, read_column(rows), strict=True))
    if not any(named.values()):
        return False
    content = {"fingerprint": rows.fingerprint, COLUMN: named}
    storage.write_text(str(path), json.dumps(content, indent=1) + "\n")
    return True


def read_column(rows: shards.Rows) -> list[str]:
    """Return the generator of every row of a source, empty where it does not tell."""
    return [name for block in rows.blocks for name in _names(block)]


def made_by(rows: shards.Rows, generator: str) -> npt.NDArray[np.bool_]:
    """Return (N,) true for the generated rows of a generator.

    Raises:
        InputError: There are none such.
    """
    names = np.where(rows.labels == 1, read_column(rows), "")
    found = np.asarray(names == generator)
    if not generator or not found.any():
        known = ", ".join(sorted(set(names.tolist()) - {""})) or f"no column {COLUMN!r}"
        raise InputError(f"--hold-out {generator}: no generated image is of it; there is {known}")
    return found


def _names(block: shards.Block) -> Iterator[str]:
    with shards.open_file(block.path) as file:
        if not _has_column(file):
            yield from [""] * block.count
            return
    for batch in shards.read(block, [COLUMN]):
        for value in batch.column(COLUMN).to_pylist():
            yield "" if value is None else str(value)


def _has_column(file: pq.ParquetFile) -> bool:
    return COLUMN in file.schema_arrow.names


def generators(data: Path, split: str) -> list[str] | None:
    """Return the generator of each image (N,) of a split, empty where unknown.

    Returns:
        None where the source of this file did not tell.
    """
    named = _named(path_of(data), str(hdf5.attributes(data).get("fingerprint")))
    if named is None:
        return None
    return [named.get(name, "") for name in hdf5.read_ids(data, split)]


def _named(path: Path, fingerprint: str) -> dict[str, str] | None:
    """Return generators by id, None if the file is not there, damaged, or of another source."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content[COLUMN]) if content["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
