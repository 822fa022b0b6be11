"""The image file: what is written in place is read back as mapped memory."""

import errno
import mmap
import multiprocessing
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.data.splits import SPLITS

SIZE = 40  # an image of 4,800 bytes: larger than a page, and no multiple of one
COUNTS = {"train": 50, "val": 7, "test": 20}


def make(path: Path, *, counts: dict[str, int] = COUNTS, size: int = SIZE) -> dict[str, hdf5.Slots]:
    return hdf5.create(
        path,
        size=size,
        labels={split: np.arange(count) % 2 for split, count in counts.items()},
        ids={
            split: [f"{split}-\u00e9-{row}" for row in range(count)]
            for split, count in counts.items()
        },
        attributes={"fingerprint": "f", "rejected": 3, "share": 0.5},
    )


def noise(split: str, slot: int, *, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng([SPLITS.index(split), slot])
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def fill(path: Path, slots: dict[str, hdf5.Slots], *, first: int = 0, step: int = 1) -> None:
    """Write every ``step``-th image, the last one first."""
    with path.open("r+b") as file:
        for split, where in slots.items():
            for slot in reversed(range(first, where.count, step)):
                hdf5.write_image(file.fileno(), where, slot, noise(split, slot))


@pytest.fixture
def path(tmp_path) -> Path:
    """A file with all its images in."""
    fill(tmp_path / "made.h5", make(tmp_path / "made.h5"))
    return tmp_path / "made.h5"


def test_a_pixel_in_is_a_pixel_out(path):
    for split, count in COUNTS.items():
        images = hdf5.map_images(path, split)
        assert images.shape == (count, SIZE, SIZE, 3) and images.dtype == np.uint8
        for slot in range(count):
            np.testing.assert_array_equal(images[slot], noise(split, slot))


def test_h5py_reads_the_same_pixels(path):
    with h5py.File(path) as file:
        for split in SPLITS:
            np.testing.assert_array_equal(file[split]["image"][:], hdf5.map_images(path, split))


def test_labels_ids_and_attributes_come_back(path):
    for split, count in COUNTS.items():
        labels = hdf5.read_labels(path, split)
        np.testing.assert_array_equal(labels, np.arange(count) % 2)
        assert labels.dtype == np.int64
        assert hdf5.read_ids(path, split) == [f"{split}-\u00e9-{row}" for row in range(count)]
    found = hdf5.attributes(path)
    assert found["fingerprint"] == "f" and found["rejected"] == 3 and found["share"] == 0.5
    assert found["size"] == SIZE and found["classes"] == '["real", "generated"]'


def test_images_are_contiguous_and_start_on_a_page(path):
    with h5py.File(path) as file:
        for split, where in hdf5.slots(path).items():
            images = file[split]["image"]
            assert images.chunks is None and images.compression is None
            assert where.offset == images.id.get_offset()
            assert where.offset % mmap.PAGESIZE == 0
            assert (where.count, where.size) == (COUNTS[split], SIZE)


def test_a_mapping_cannot_be_written(path):
    images = hdf5.map_images(path, "val")
    assert not images.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_any_layout_of_memory_may_be_written(tmp_path):
    slots = make(tmp_path / "made.h5")
    turned = noise("val", 0).transpose(1, 0, 2)
    with (tmp_path / "made.h5").open("r+b") as file:
        hdf5.write_image(file.fileno(), slots["val"], 6, turned)
        hdf5.write_image(file.fileno(), slots["val"], 0, turned[:, ::-1])
    images = hdf5.map_images(tmp_path / "made.h5", "val")
    np.testing.assert_array_equal(images[6], turned)
    np.testing.assert_array_equal(images[0], turned[:, ::-1])


@pytest.mark.parametrize("slot", [-1, COUNTS["val"]])
def test_a_slot_outside_of_the_split_is_not_written(tmp_path, slot):
    slots = make(tmp_path / "made.h5")
    before = (tmp_path / "made.h5").read_bytes()
    with (tmp_path / "made.h5").open("r+b") as file, pytest.raises(AssertionError):
        hdf5.write_image(file.fileno(), slots["val"], slot, noise("val", 0))
    assert (tmp_path / "made.h5").read_bytes() == before


def test_two_processes_may_write_at_once(tmp_path):
    """Every other image each, so that they meet in every page between two images."""
    slots = make(tmp_path / "made.h5")
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(
            target=fill, args=(tmp_path / "made.h5", slots), kwargs={"first": n, "step": 2}
        )
        for n in (0, 1)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    fill(tmp_path / "alone.h5", make(tmp_path / "alone.h5"))
    assert (tmp_path / "made.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()


def test_the_same_images_make_the_same_file(tmp_path):
    """No time of day is in it: HDF5 notes seconds in each object unless told otherwise."""
    for name in ("one.h5", "two.h5"):
        fill(tmp_path / name, make(tmp_path / name))
        time.sleep(1.1)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_a_split_may_be_empty(tmp_path):
    slots = make(tmp_path / "made.h5", counts=COUNTS | {"val": 0})
    fill(tmp_path / "made.h5", slots)
    assert slots["val"].count == 0
    assert hdf5.map_images(tmp_path / "made.h5", "val").shape == (0, SIZE, SIZE, 3)
    assert hdf5.read_ids(tmp_path / "made.h5", "val") == []
    np.testing.assert_array_equal(
        hdf5.map_images(tmp_path / "made.h5", "test")[19], noise("test", 19)
    )


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        assert length > sum(COUNTS.values()) * SIZE**2 * 3
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "made.h5")
    assert list(tmp_path.iterdir()) == []


def test_the_room_is_reserved_at_once(tmp_path):
    make(tmp_path / "made.h5", size=128)
    found = (tmp_path / "made.h5").stat()
    assert found.st_blocks * 512 >= found.st_size > sum(COUNTS.values()) * 128**2 * 3


def refusal(path: Path) -> str:
    """Return the sentence, which must be the same whichever way one looks into the file."""
    sentences = set()
    for look in (hdf5.slots, hdf5.attributes, lambda path: hdf5.map_images(path, "val")):
        with pytest.raises(InputError) as raised:
            look(path)
        sentences.add(str(raised.value))
    assert len(sentences) == 1
    return sentences.pop()


def test_a_file_that_is_absent_is_refused(tmp_path):
    expected = f"{tmp_path}/no.h5: no such file; make it with 'aiornot prepare'"
    assert refusal(tmp_path / "no.h5") == expected
    assert refusal(tmp_path).startswith(f"{tmp_path}: no such file")


@pytest.mark.parametrize("content", [b"", b"PAR1 and no HDF5", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, content):
    (tmp_path / "made.h5").write_bytes(content)
    assert refusal(tmp_path / "made.h5").startswith(f"{tmp_path}/made.h5 cannot be read as HDF5")
    assert not hdf5.is_ours(tmp_path / "made.h5")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused(path, share):
    """Reading the mapping of one would kill the process with SIGBUS."""
    os.truncate(path, int(share * path.stat().st_size))
    assert "prepare it again" in refusal(path)


@pytest.mark.parametrize("version", [0, 99])
def test_another_schema_version_is_refused(path, version):
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = version
    assert f"schema version {version}, this program reads 2" in refusal(path)
    assert hdf5.is_ours(path)


def test_a_strangers_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "made.h5", "w") as file:
        file["train"] = np.zeros(3)
    assert "schema version None" in refusal(tmp_path / "made.h5")
    assert not hdf5.is_ours(tmp_path / "made.h5")


def test_chunked_images_are_refused(path):
    with h5py.File(path, "r+") as file:
        del file["val"]["image"]
        file["val"].create_dataset(
            "image", data=np.zeros((7, 8, 8, 3), np.uint8), chunks=(1, 8, 8, 3)
        )
    with pytest.raises(InputError, match=r"made\.h5: /val/image is not contiguous uint8"):
        hdf5.slots(path)
