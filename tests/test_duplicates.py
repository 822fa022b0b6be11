"""Which images are nearly the same: the hash on real variants, the clusters against brute force."""

import io
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components

from aiornot.data import demo, images
from aiornot.data.duplicates import (
    DISTANCE,
    HASH_BYTES,
    clusters,
    conflicts,
    groups,
    perceptual_hash,
    read_hashes,
    write_hashes,
)


def bits_between(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    made = (demo.make_image(index, label=index % 2, size=64)[0] for index in range(40))
    return [images.decode(content) for content in made]


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = (round(side * factor) for side in pixels.shape[:2])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return images.decode(buffer.getvalue())


VARIANTS = {
    "jpeg 60": lambda pixels: as_jpeg(pixels, 60),
    "double": lambda pixels: resized(pixels, 2),
    "sevenfold": lambda pixels: resized(pixels, 7),
    "three quarters": lambda pixels: resized(pixels, 0.75),
    "darker": lambda pixels: (pixels * 0.9).astype(np.uint8),
    "grey": lambda pixels: np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_close_to_its_image(pictures, variant):
    found = [
        bits_between(perceptual_hash(pixels), perceptual_hash(VARIANTS[variant](pixels)))
        for pixels in pictures
    ]
    assert np.mean(np.array(found) <= DISTANCE) >= 0.95, sorted(found)


def test_other_images_are_far(pictures):
    hashes = [perceptual_hash(pixels) for pixels in pictures]
    assert clusters([str(row) for row in range(40)], hashes).tolist() == list(range(40))
    nearest = min(bits_between(a, b) for n, a in enumerate(hashes) for b in hashes[:n])
    assert nearest > 2 * DISTANCE


def test_the_hash_is_frozen():
    """It is kept beside the prepared files; another numpy or Pillow must not change it."""
    pixels = np.random.RandomState(0).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    assert perceptual_hash(pixels).hex() == FROZEN


FROZEN = "88b0171532c643291fe0071d639d86b9"


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2000, 3), (9, 9)])
def test_any_shape_has_a_hash(shape):
    assert perceptual_hash(np.zeros((*shape, 3), np.uint8)) == bytes(HASH_BYTES)


def test_the_direction_of_a_gradient_is_seen():
    ramp = np.repeat(np.arange(90, dtype=np.uint8)[None, :, None] * 2, 90, axis=0).repeat(3, axis=2)
    assert perceptual_hash(ramp).hex() == "ff" * 8 + "00" * 8
    assert perceptual_hash(ramp.transpose(1, 0, 2)).hex() == "00" * 8 + "ff" * 8


def brute_force(hashes: list[bytes | None], distance: int) -> list[int]:
    known = [row for row, value in enumerate(hashes) if value is not None]
    close = np.eye(len(hashes), dtype=bool)
    for a in known:
        for b in known:
            close[a, b] = bits_between(hashes[a], hashes[b]) <= distance
    _, component = connected_components(close, directed=False)
    first: dict[int, int] = {}
    return [first.setdefault(name, row) for row, name in enumerate(component.tolist())]


def sparse_hash(bits: list[int]) -> bytes:
    return sum(1 << bit for bit in set(bits)).to_bytes(HASH_BYTES)


HASHES = st.lists(
    st.one_of(st.none(), st.lists(st.integers(0, 127), max_size=20).map(sparse_hash)), max_size=30
)


@settings(deadline=None, max_examples=200)
@given(HASHES, st.integers(0, 32))
@example([sparse_hash(list(range(10))), bytes(HASH_BYTES)], 10)
@example([sparse_hash(list(range(0, 121, 12))), bytes(HASH_BYTES)], 11)
@example([sparse_hash(list(range(0, 121, 12))), bytes(HASH_BYTES)], 10)
def test_clusters_are_those_of_comparing_all_with_all(hashes, distance):
    contents = [str(row) for row in range(len(hashes))]
    assert clusters(contents, hashes, distance=distance).tolist() == brute_force(hashes, distance)


def test_equal_files_are_together_whatever_their_hashes():
    contents, nothing = ["b", "a", "b", "c", "a"], [None] * 5
    for distance in (None, 0, 10):
        assert clusters(contents, nothing, distance=distance).tolist() == [0, 1, 0, 3, 1]
    assert clusters([], []).tolist() == []


def test_missing_files_are_no_duplicates():
    assert clusters(["", "", ""], [None] * 3).tolist() == [0, 1, 2]


def test_equal_hashes_are_left_alone_where_only_equal_files_count():
    same = [bytes(HASH_BYTES)] * 3
    assert clusters(["a", "b", "c"], same, distance=None).tolist() == [0, 1, 2]
    assert clusters(["a", "b", "c"], same, distance=0).tolist() == [0, 0, 0]


def test_files_and_hashes_chain():
    far = bytes([255] * HASH_BYTES)
    assert clusters(["a", "b", "a"], [bytes(16), far, far]).tolist() == [0, 0, 0]


@pytest.mark.timeout(20)
def test_ten_thousand_blank_pages_are_no_burden():
    """All pairs of them would fill memory."""
    rng = np.random.default_rng(0)
    hashes = [sparse_hash(rng.integers(0, 128, 3).tolist()) for _ in range(10_000)]
    found = clusters([str(row) for row in range(10_000)], hashes)
    assert set(found.tolist()) == {0}


def test_groups_are_the_clusters_of_two_or_more_the_largest_first():
    found = groups(np.array([0, 1, 0, 3, 1, 1]))
    assert [rows.tolist() for rows in found] == [[1, 4, 5], [0, 2]]


def test_conflicts_are_the_clusters_with_both_labels():
    labels, ids = np.array([0, 1, 1, 0, 1, 1]), np.array([0, 1, 0, 3, 1, 1])
    assert [rows.tolist() for rows in conflicts(labels, ids)] == [[0, 2]]


def test_hashes_are_kept_for_their_source_alone(tmp_path):
    path = tmp_path / "hashes.json"
    values = [bytes(range(HASH_BYTES)), None]
    write_hashes(path, "f", values)
    assert read_hashes(path, "f") == values
    assert read_hashes(path, "g") is None
    assert read_hashes(tmp_path / "absent", "f") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": "f"}', "\0", "3"])
def test_torn_hashes_count_as_none(tmp_path, content):
    (tmp_path / "hashes.json").write_text(content)
    assert read_hashes(tmp_path / "hashes.json", "f") is None


def test_hashes_of_a_wrong_length_count_as_none(tmp_path):
    path = tmp_path / "hashes.json"
    path.write_text(json.dumps({"fingerprint": "f", "hashes": ["00"]}))
    assert read_hashes(path, "f") is None
