"""Bytes to pixels: the one decoder, shared by prepare and predict so that both see the same image.

``aiornot prepare data/*.parquet --out data/`` stores what ``fit(decode(data), size)`` returns.
"""

import dataclasses
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from aiornot.config import InputError

Pixels = npt.NDArray[np.uint8]
Geometry = Literal["resize", "crop"]
Resample = Literal["bicubic", "fast"]

# 100 megapixels decode to 300 MB. Larger than any camera's photo, smaller than a worker's memory.
MAX_PIXELS = 100_000_000

# A scan of a progressive JPEG passes over all pixels again: thousands of them, a few bytes each,
# would keep a core busy for hours. Encoders write about ten. This many are allowed of the largest
# image, and more of smaller ones.
MAX_SCANS = 20

# Only these: Pillow knows forty more, some of which start other programs (EPS runs Ghostscript)
# or have no signature to be known by (TGA).
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
"""Pillow's name of each, and how its files are called."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""What is taken from a folder; a file that is named is read whatever it is called."""

# What libjpeg says when pixels are lost. Its other remarks ("3 extraneous bytes before marker",
# "Invalid SOS parameters") are about oddities of sound files, which cameras do write.
_PIXELS_LOST = ("remature end", "bad Huffman code", "bad arithmetic code", "found marker")


def decode(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image file as it is meant to be seen; safe to call from many threads.

    EXIF orientation is applied, transparency lies on white, animations give their first frame.
    For images without either, the pixels equal Pillow's ``open(...).convert("RGB")``.

    Args:
        data: The whole file.
        max_pixels: Largest width times height, read from the header before a pixel is decoded.

    Returns:
        (H, W, 3) RGB, C-contiguous and writable.

    Raises:
        ValueError: It cannot be decoded; the message is a short reason fit for a list.
    """
    with _opened(data, max_pixels) as (image, content, _):
        pixels = _rgb(image, content)
        # Asked for last: in a PNG the orientation may stand behind the pixels, and Pillow has
        # turned a TIFF (and forgotten its orientation) by the time it is loaded.
        return np.ascontiguousarray(_upright(pixels, _orientation(image)))


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels."""

    format: str
    """One of ``FORMATS``."""
    mode: str
    """Pillow's word for the kind of pixels: RGB, RGBA, L, P, CMYK, ..."""
    width: int
    """In pixels, as stored: EXIF may turn the image."""
    height: int
    tables: tuple[tuple[int, ...], ...]
    """The quantisation tables of a JPEG, 64 numbers each, row by row; else none."""
    subsampling: str | None
    """Of the chroma of a JPEG: 4:4:4, 4:2:2, 4:2:0 or other; none where it is grey."""
    exif: bool
    icc: bool
    """Whether there is a colour profile."""


def header(data: bytes | None, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read what stands before the pixels, with the bounds of ``decode``; safe in many threads.

    Args:
        data: The whole file.
        max_pixels: Largest width times height.

    Raises:
        ValueError: Not an image that ``decode`` would open; the message is a short reason.
    """
    with _opened(data, max_pixels) as (image, _, name):
        tables = getattr(image, "quantization", {})
        return Header(
            format=name,
            mode=image.mode,
            width=image.width,
            height=image.height,
            tables=tuple(tuple(tables[key]) for key in sorted(tables)),
            subsampling=_subsampling(image) if name == "JPEG" else None,
            exif=any(key in image.info for key in ("exif", "Raw profile type exif")),
            icc=bool(image.info.get("icc_profile")),
        )


@contextmanager
def _opened(
    data: bytes | None, max_pixels: int
) -> Iterator[tuple[ImageFile.ImageFile, bytes, str]]:
    """Give an image of bounded size whose header is read, its bytes and the name of its format.

    Whatever goes wrong, here or with what is done to it, is a ValueError with a short reason.
    """
    if not data:
        raise ValueError("empty: there are no bytes")
    name = _format(data)
    try:
        with _open(data, name) as image:
            _check_size(image, max_pixels)
            if name == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
                _check_scans(data, image)
            yield image, data, name
    # On strangers' bytes Pillow raises SyntaxError, struct.error, IndexError, OSError and more.
    except Exception as error:
        raise ValueError(f"{name}: {_reason(error)}") from error


def _subsampling(image: Image.Image) -> str | None:
    if image.mode == "L":
        return None
    known = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
    return known.get(JpegImagePlugin.get_sampling(image), "other")


def fit(
    pixels: Pixels, size: int, *, geometry: Geometry = "resize", resample: Resample = "bicubic"
) -> Pixels:
    """Bring an image to ``size`` x ``size``; returned as it is when it already fits.

    Args:
        pixels: (H, W, 3).
        size: Pixels per side.
        geometry: ``resize`` squeezes the whole image. ``crop`` takes the centre and never
            resamples, which would blur the traces a detector looks for; a side that is too short
            is continued by its mirror image.
        resample: ``bicubic`` is Pillow's filter to the bit; ``fast`` is the same filter computed
            by PyTorch, a few grey levels off (benchmarks/prepare.py says how many) and cheaper.

    Returns:
        (size, size, 3).

    Raises:
        InputError: ``size``, ``geometry`` or ``resample`` is not usable.
    """
    if size < 1:
        raise InputError(f"image size {size} must be at least 1 pixel")
    if geometry not in ("resize", "crop"):
        raise InputError(f"geometry {geometry!r} is unknown: use 'resize' or 'crop'")
    if resample not in ("bicubic", "fast"):
        raise InputError(f"resample {resample!r} is unknown: use 'bicubic' or 'fast'")
    if pixels.shape[:2] == (size, size):
        return pixels
    if geometry == "crop":
        return _crop(pixels, size)
    if resample == "fast":
        return _resize_fast(pixels, size)
    return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def _resize_fast(pixels: Pixels, size: int) -> Pixels:
    import torch  # only here: it takes seconds, which a decoder need not pay

    # (1, 3, H, W) that lies in memory as it came, which is what torch's uint8 kernels want.
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.squeeze(0).permute(1, 2, 0).numpy())


def _format(data: bytes) -> str:
    """Name the format by its signature alone: file names lie, and rows of a table have none."""
    Image.init()  # registers Pillow's formats, once per process, as Image.open does
    for name in FORMATS:
        _, accept = Image.OPEN.get(name, (None, None))
        # A text instead of True says that this Pillow was built without the format.
        if accept is not None and accept(data[:16]) is True:
            return name
    raise ValueError(f"not an image: starts with {data[:8]!r}, known are {', '.join(FORMATS)}")


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header.

    Not ``Image.open``: that warns above its own bound of 89 megapixels, and a warning can only be
    silenced for the whole process (``catch_warnings`` is not thread-safe, ``MAX_IMAGE_PIXELS`` is
    the host's). Here our bound is the only one.
    """
    opener, _ = Image.OPEN[name]
    return opener(io.BytesIO(data), "")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels, more than the {max_pixels:,} allowed")
    if not width * height:
        raise ValueError(f"{width} x {height} pixels, nothing to see")


# Within a scan, 0xFF stands before 0x00 or a restart marker only.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


def _check_scans(data: bytes, image: Image.Image) -> None:
    """Walk from marker to marker to the end of the image: what lies behind it may hold anything."""
    allowed = MAX_SCANS * MAX_PIXELS // max(image.width * image.height, MAX_PIXELS // 50)
    place, scans = 2, 0
    while (found := _MARKER.search(data, place)) and found[1] != b"\xd9":
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        scans += found[1] == b"\xda"
        if scans > allowed:
            raise ValueError(f"more than the {allowed} scans allowed")


def _rgb(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    if image.format == "JPEG" and image.mode == "RGB":
        return _jpeg(image, data)
    if image.mode.startswith(("I", "F")):
        return _from_16_bit(image)
    return np.array(_on_white(image) if image.has_transparency_data else image.convert("RGB"))


def _jpeg(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    """Decode with libjpeg-turbo: the same pixels as Pillow's, at less cost, and strict.

    Pillow accepts a file with a hole in the middle and paints the rest grey; this does not.
    """
    try:
        # A hostile file may show two parsers two sizes; only Pillow's has been checked.
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (width, height) == image.size:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
    except ValueError as error:
        if any(words in str(error) for words in _PIXELS_LOST):
            raise
    return np.array(image.convert("RGB"))


def _from_16_bit(image: Image.Image) -> Pixels:
    """Keep the high byte, as Pillow does for 16-bit colour; its ``convert`` would clip to white."""
    # "I" has 32 bits and no fixed range, but is also what some versions make of a 16-bit PNG.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        raise ValueError(f"mode {image.mode!r} has no fixed range: save it with 8 or 16 bits")
    grey = (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _on_white(image: Image.Image) -> Image.Image:
    """Show transparency as browsers and viewers do, on a white page.

    ``convert("RGB")`` alone would bring up the colours hidden below alpha 0, which no one has
    seen, which differ by the program that wrote the file, and from which a model would learn that.
    """
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Read EXIF orientation, 1 to 8; broken EXIF is no reason to lose the image."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation; one outside 2 to 8 changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _crop(pixels: Pixels, size: int) -> Pixels:
    """Cut the centre, then continue what is too short; one row or column is simply repeated."""
    top, left = (max(side - size, 0) // 2 for side in pixels.shape[:2])
    pixels = pixels[top : top + size, left : left + size]
    for axis, side in enumerate(pixels.shape[:2]):
        before = (size - side) // 2
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[axis] = (before, size - side - before)
        # A mirror without its edge needs two pixels; numpy folds it as often as needed.
        pixels = np.pad(pixels, margins, mode="reflect" if side > 1 else "edge")
    return np.ascontiguousarray(pixels)


def _reason(error: Exception) -> str:
    """One short line, whatever a library wrote."""
    return " ".join(str(error).split())[:160] or type(error).__name__
