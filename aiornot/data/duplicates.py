"""Near-duplicates: a 128-bit difference hash of each image, and the clusters of close hashes.

``aiornot prepare`` keeps a cluster in one split, ``aiornot audit`` lists them. The hash sees
through another format, quality, size or a slight change of tone; not through mirroring, rotation
or a crop.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from aiornot import storage
from aiornot.data.images import Pixels
from aiornot.data.splits import Rows

HASH_BYTES = 16

DISTANCE = 10
"""Bits of 128 in which the hashes of one image may differ: of distinct demo images the closest two
differ in 33, one and the same saved at half its size in 7 (median); docs/log.md, 2026-11-22."""

MAX_DISTANCE = 32
"""Hashes of two unrelated images differ in half of their bits."""

_CELLS = 9

_SAMPLES = 16
"""Rows of a cell that are looked at in a large image: more cost time and change nothing."""


def perceptual_hash(pixels: Pixels) -> bytes:
    """Return the difference hash: which of 9 x 9 cells are darker than their neighbours?

    64 bits compare across and 64 down, so that a horizon alone does not decide.

    Args:
        pixels: (H, W, 3) RGB.

    Returns:
        16 bytes; N. Krawetz's dHash ("Kind of Like That", 2013), in both directions.
    """
    step = max(1, len(pixels) // (_CELLS * _SAMPLES))
    # Of rows and not of columns: whole rows are copied three times faster.
    grey = Image.fromarray(np.ascontiguousarray(pixels[::step])).convert("L")
    cells = np.asarray(grey.resize((_CELLS, _CELLS), Image.Resampling.BOX))
    across = cells[:-1, :-1] < cells[:-1, 1:]
    down = cells[:-1, :-1] < cells[1:, :-1]
    return np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes()


def clusters(
    contents: Sequence[str], hashes: Sequence[bytes | None], *, distance: int | None = DISTANCE
) -> Rows:
    """Group rows that show the same image; a chain of close hashes is one cluster.

    Args:
        contents: (N,) sha256 of each file; empty where there is none.
        hashes: (N,) perceptual hashes; None where nothing could be decoded.
        distance: Largest number of differing bits; None groups equal files only.

    Returns:
        (N,) the number of the first row of each row's cluster.
    """
    size = len(contents)
    assert len(hashes) == size
    pairs = [_equal(contents)]
    if distance is not None:
        pairs += [_equal(hashes), *_close(hashes, distance)]
    return _first_of_component(np.concatenate(pairs), size)


def groups(clusters: npt.NDArray[np.int64]) -> list[Rows]:
    """Return the rows of every cluster of two or more, the largest first."""
    order = np.argsort(clusters, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: -len(part))


def conflicts(labels: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64]) -> list[Rows]:
    """Return the clusters that carry both labels; one of the two must be wrong."""
    return [group for group in groups(clusters) if len(set(labels[group].tolist())) > 1]


def write_hashes(path: Path, fingerprint: str, hashes: Sequence[bytes | None]) -> None:
    """Keep the hashes of a source, for the next file that is prepared from it."""
    texts = [None if value is None else value.hex() for value in hashes]
    storage.write_text(str(path), json.dumps({"fingerprint": fingerprint, "hashes": texts}))


def read_hashes(path: Path, fingerprint: str) -> list[bytes | None] | None:
    """Return the hashes of exactly this source, None if they are not there."""
    try:
        found = json.loads(path.read_text())
        if found["fingerprint"] != fingerprint:
            return None
        values = [None if text is None else bytes.fromhex(text) for text in found["hashes"]]
        return values if all(v is None or len(v) == HASH_BYTES for v in values) else None
    except (OSError, ValueError, LookupError, TypeError):  # absent, torn, or not ours
        return None


def _equal(values: Sequence[str] | Sequence[bytes | None]) -> Rows:
    """Return (n, 2): first row and row of every repeated value."""
    first: dict[str | bytes, int] = {}
    pairs = [
        (known, row)
        for row, value in enumerate(values)
        if value and (known := first.setdefault(value, row)) != row
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _close(hashes: Sequence[bytes | None], distance: int) -> Iterator[Rows]:
    """Yield (n, 2) pairs of rows that connect all whose hashes differ in ``distance`` bits or less.

    Equal hashes count once. Of ``distance + 1`` disjoint bands of bits, two close hashes share at
    least one: only hashes that share a band are compared.
    """
    first = {value: row for row, value in reversed(list(enumerate(hashes))) if value}
    if len(first) < 2:
        return
    rows = np.fromiter(first.values(), dtype=np.int64)
    bits = np.frombuffer(b"".join(first), dtype=np.uint8).reshape(-1, HASH_BYTES)
    for band in np.array_split(np.arange(HASH_BYTES * 8), distance + 1):
        for group in _same_band(bits, band):
            yield rows[group[_close_in(bits[group], distance)]]


def _same_band(bits: npt.NDArray[np.uint8], band: Rows) -> Iterator[Rows]:
    """Yield the indices of hashes that agree in these bits, in groups of two or more."""
    key = np.packbits(np.unpackbits(bits, axis=1)[:, band], axis=1)
    _, inverse = np.unique(key, axis=0, return_inverse=True)
    yield from groups(inverse)


def _close_in(bits: npt.NDArray[np.uint8], distance: int) -> Rows:
    """Return (n, 2) pairs of indices that connect the close hashes of a group.

    A flood: what is joined is not compared again, so that ten thousand blank pages, all close to
    each other, cost one pass and one pair each.
    """
    words = np.ascontiguousarray(bits).view(np.uint64)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    left = np.arange(len(words))
    while len(left) > 1:
        seed, left = left[0], left[1:]
        reached = [seed]
        while reached and len(left):
            differing = np.bitwise_count(words[reached.pop()] ^ words[left]).sum(axis=1)
            found, left = left[differing <= distance], left[differing > distance]
            pairs.append(np.stack([np.full_like(found, seed), found], axis=1))
            reached += found.tolist()
    return np.concatenate(pairs)


def _first_of_component(pairs: Rows, size: int) -> Rows:
    """Return (size,): the smallest index that is connected with each index, by union-find."""
    parent = list(range(size))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for one, other in pairs.tolist():
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return np.array([root(index) for index in range(size)], dtype=np.int64)
