"""What each file of a source shows besides its image: format, size, compression, hashes.

``aiornot audit SOURCE`` looks at every file once, in threads, and keeps some hundred bytes of each.
"""

import dataclasses
import io
import os
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from aiornot.data import duplicates, images, shards
from aiornot.data.jpeg_tables import LUMINANCE

GREY_SIDE = 8
"""Pixels per side of the grey thumbnail: content, and no trace of a generator."""

THUMBNAIL_SIDE = 160
_THUMBNAIL_QUALITY = 80


@dataclasses.dataclass(frozen=True, slots=True)
class Traits:
    """What is kept of one readable file."""

    format: str
    mode: str
    width: int
    """In pixels, as stored."""
    height: int
    num_bytes: int
    quality: int | None
    """1 to 100 of a JPEG, estimated from its luminance table."""
    luminance: int | None
    """Sum of the first quantisation table of a JPEG."""
    chrominance: int | None
    """Sum of its second table, if it has one."""
    subsampling: str | None
    exif: bool
    icc: bool
    hash: bytes
    """``duplicates.perceptual_hash``."""
    grey: bytes
    """``GREY_SIDE`` x ``GREY_SIDE`` uint8."""

    @property
    def aspect(self) -> float:
        return self.width / self.height

    @property
    def bytes_per_pixel(self) -> float:
        return self.num_bytes / (self.width * self.height)


@dataclasses.dataclass(frozen=True)
class Seen:
    """All files of a source, in the order of its rows."""

    traits: list[Traits | None]
    """None where the image cannot be read."""
    reasons: dict[int, str]
    """Why, by row."""
    thumbnails: dict[int, bytes]
    """JPEG files by row, of the rows that were asked for and can be read."""


def read(
    rows: shards.Rows,
    *,
    thumbnails: Collection[int] = (),
    progress: shards.Progress = lambda what, done, total: None,
) -> Seen:
    """Look at every file; one that cannot be read is an entry of ``reasons``.

    Args:
        rows: The source.
        thumbnails: Rows whose image is wanted, small.
        progress: Called as the work proceeds.

    Raises:
        InputError: The source is damaged since ``rows`` were read.
    """
    seen = Seen([], {}, {})
    wanted = frozenset(thumbnails)
    for row, found in enumerate(_looked(rows, wanted)):
        if isinstance(found, str):
            seen.reasons[row] = found
            seen.traits.append(None)
        else:
            seen.traits.append(found[0])
            if found[1] is not None:
                seen.thumbnails[row] = found[1]
        progress("looking at images", row + 1, len(rows.ids))
    return seen


_Found = tuple[Traits, bytes | None] | str


def _looked(rows: shards.Rows, wanted: frozenset[int]) -> Iterator[_Found]:
    """Yield in order what the threads find; few files wait at any time."""
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[Future[_Found]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for row, data in enumerate(_files(rows)):
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_look_or_reason, data, row in wanted))
        while waiting:
            yield waiting.popleft().result()


def _files(rows: shards.Rows) -> Iterator[bytes | None]:
    for block in rows.blocks:
        for batch in shards.read(block, ["image.bytes"]):
            yield from shards.image_bytes(batch)


def _look_or_reason(data: bytes | None, with_thumbnail: bool) -> _Found:
    try:
        return look(data, with_thumbnail=with_thumbnail)
    except ValueError as error:
        return str(error)


def look(data: bytes | None, *, with_thumbnail: bool = False) -> tuple[Traits, bytes | None]:
    """Return the traits of one file, and its image as a small JPEG if that is wanted.

    Raises:
        ValueError: It cannot be decoded; the message is a short reason.
    """
    header = images.header(data)
    pixels = images.decode(data)
    assert data is not None, "decode refuses a file without bytes"
    image = Image.fromarray(pixels)
    grey = image.resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX).convert("L")
    sums = [sum(table) for table in header.tables]
    traits = Traits(
        format=header.format,
        mode=header.mode,
        width=header.width,
        height=header.height,
        num_bytes=len(data),
        quality=quality_of(header.tables[0]) if header.tables else None,
        luminance=sums[0] if sums else None,
        chrominance=sums[1] if len(sums) > 1 else None,
        subsampling=header.subsampling,
        exif=header.exif,
        icc=header.icc,
        hash=duplicates.perceptual_hash(pixels),
        grey=grey.tobytes(),
    )
    return traits, thumbnail(image) if with_thumbnail else None


def quality_of(table: tuple[int, ...]) -> int:
    """Estimate libjpeg's quality, 1 to 100, as that whose luminance table is nearest.

    Exact for what libjpeg wrote (Pillow, most programs); cameras and Photoshop have tables of
    their own, for which it is the quality of about the same strength.

    Args:
        table: 64 numbers, row by row.
    """
    return int(np.abs(_scaled_tables() - np.array(table)).sum(axis=1).argmin()) + 1


def _scaled_tables() -> npt.NDArray[np.int64]:
    """Return (100, 64): libjpeg's luminance tables of quality 1 to 100."""
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled: npt.NDArray[np.int64] = (np.array(LUMINANCE) * percent + 50) // 100
    return scaled.clip(1, 255)


def thumbnail(image: Image.Image) -> bytes:
    """Return an image as a small JPEG file, for a page."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()
