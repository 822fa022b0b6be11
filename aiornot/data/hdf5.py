"""The image file: contiguous uint8 images that are written in place and read as mapped memory.

Groups ``train``, ``val`` and ``test`` hold ``image`` (N, S, S, 3) uint8, ``label`` (N,) int64 and
``id`` (N,) text. ``aiornot prepare`` writes it, ``training/loader.py`` reads it.
"""

import dataclasses
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiornot.config import InputError
from aiornot.data.splits import SPLITS

SCHEMA_VERSION = 2

CLASSES = ("real", "generated")
"""Names of the labels 0 and 1; the positive class is *generated*."""


@dataclasses.dataclass(frozen=True)
class Slots:
    """Where the images of one split lie in the file: byte offset of the first, count, size."""

    offset: int
    count: int
    size: int

    @property
    def image_bytes(self) -> int:
        return self.size * self.size * 3


def create(
    path: Path,
    *,
    size: int,
    labels: Mapping[str, np.ndarray],
    ids: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Any],
) -> dict[str, Slots]:
    """Lay the file out at its full size with labels and ids in, and every image still zero.

    The datasets are contiguous and allocated at once, so that any process may write an image at
    its offset with ``pwrite`` and readers can map them.

    Returns:
        The slots of each split.

    Raises:
        OSError: The disk has no room; nothing is left behind.
    """
    try:
        _lay_out(path, size=size, labels=labels, ids=ids, attributes=attributes)
        _allocate(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return slots(path)


def _lay_out(
    path: Path,
    *,
    size: int,
    labels: Mapping[str, np.ndarray],
    ids: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Any],
) -> None:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    # Page-aligned images: mapping starts on a page, and two writers never share one.
    access.set_alignment(mmap.PAGESIZE, mmap.PAGESIZE)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)  # the same images make the same file, byte for byte
    handle = h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access)
    with h5py.File(handle) as file:
        file.attrs.update({"schema_version": SCHEMA_VERSION, "classes": json.dumps(CLASSES)})
        file.attrs.update({"size": size, **attributes})
        for split in SPLITS:
            group = file.create_group(split)
            _create_images(group, (len(labels[split]), size, size, 3))
            group.create_dataset("label", data=np.asarray(labels[split], dtype=np.int64))
            group.create_dataset(
                "id", data=np.asarray(ids[split], dtype=object), dtype=h5py.string_dtype()
            )


def _create_images(group: h5py.Group, shape: tuple[int, ...]) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # without it there is no offset yet
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(group.id, b"image", h5py.h5t.NATIVE_UINT8, space, dcpl=layout)


def _allocate(path: Path) -> None:
    """Reserve the blocks now: a full disk shows here and not after an hour of decoding."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def slots(path: Path) -> dict[str, Slots]:
    """Return where each split's images lie.

    Raises:
        InputError: The file is not one of ours, or is shorter than its layout says.
    """
    with open_file(path) as file:
        found = {split: _slots_of(path, file[split]["image"]) for split in SPLITS}
    for split, where in found.items():
        # Reading a mapping beyond the end of a file kills the process with SIGBUS.
        if path.stat().st_size < where.offset + where.count * where.image_bytes:
            raise InputError(f"{path}: the file is cut short in {split!r}; prepare it again")
    return found


def _slots_of(path: Path, images: h5py.Dataset) -> Slots:
    # Without images there is nothing to allocate and no offset.
    offset = images.id.get_offset() if len(images) else 0
    if offset is None or images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"{path}: {images.name} is not contiguous uint8; prepare the file again")
    return Slots(int(offset), int(images.shape[0]), int(images.shape[1]))


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open for reading and check that the file is one of ours.

    Raises:
        InputError: Absent, not HDF5, unfinished, or of another schema version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with 'aiornot prepare'")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}); prepare it again") from None
    with file:
        version = file.attrs.get("schema_version")
        if version != SCHEMA_VERSION or any(split not in file for split in SPLITS):
            raise InputError(
                f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; "
                "prepare the file again"
            )
        yield file


def attributes(path: Path) -> dict[str, Any]:
    """Return what the file says of itself: size, fingerprint, settings, versions."""
    with open_file(path) as file:
        values = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in file.attrs.items()
        }
    return {
        key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()
    }


def amend(path: Path, values: Mapping[str, Any]) -> None:
    """Write attributes that ``create`` was given already anew, in place: no other byte moves.

    That needs a fixed length: numbers, and text as ``np.bytes_`` of the length it had.
    """
    with h5py.File(path, "r+") as file:
        for key, value in values.items():
            file.attrs.modify(key, value)


def is_ours(path: Path) -> bool:
    """Tell whether ``create`` made a file, be it of another schema version."""
    try:
        with h5py.File(path, "r") as file:
            return "schema_version" in file.attrs
    except OSError:
        return False


def read_labels(path: Path, split: str) -> np.ndarray:
    """Return the labels (N,) int64 of a split, 1 = generated."""
    with open_file(path) as file:
        return np.asarray(file[split]["label"][:])


def read_ids(path: Path, split: str) -> list[str]:
    with open_file(path) as file:
        return list(file[split]["id"].asstr()[:])


def map_images(path: Path, split: str) -> np.ndarray:
    """Map the images (N, S, S, 3) uint8 of a split read-only, without copying them.

    Map once per process and keep it: a fresh mapping costs page faults. Do not pickle it, that
    would copy every image.
    """
    where = slots(path)[split]
    shape = (where.count, where.size, where.size, 3)
    if where.count == 0:
        return np.empty(shape, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=where.offset, shape=shape)


def write_image(descriptor: int, where: Slots, slot: int, pixels: np.ndarray) -> None:
    """Write one image (S, S, 3) uint8 at its slot; safe from many processes at once."""
    assert pixels.shape == (where.size, where.size, 3) and pixels.dtype == np.uint8
    assert 0 <= slot < where.count
    view = memoryview(np.ascontiguousarray(pixels).data).cast("B")
    position = where.offset + slot * where.image_bytes
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
