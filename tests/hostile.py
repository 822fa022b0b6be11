"""Two hundred and more files that nobody should have to decode, made in a second or two."""

import io
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

RNG_SEED = 0
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


def write(folder: Path) -> list[Path]:
    """Write all of them and return their paths; some are no regular files."""
    folder.mkdir()
    paths = []
    for name, content in _contents():
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        path.write_bytes(content)
        paths.append(path)
    return paths + list(_no_files(folder))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def photo(width: int = 60, height: int = 44, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(RNG_SEED)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _contents() -> Iterator[tuple[bytes, bytes]]:
    whole = {name: encode(photo(), name) for name in FORMATS}
    yield from _cut_and_flipped(whole)
    for number, (name, content) in enumerate(whole.items()):
        yield f"lies-{name}.{FORMATS[number - 1].lower()}".encode(), content
    for name, content in {**_bombs(), **_strangers(), **_odd_images()}.items():
        yield f"{name}.png".encode(), content
    for name in _names():
        yield name, whole["PNG"]


def _cut_and_flipped(whole: dict[str, bytes]) -> Iterator[tuple[bytes, bytes]]:
    rng = np.random.default_rng(RNG_SEED)
    for name, content in whole.items():
        for stop in np.linspace(1, len(content) - 40, 14).astype(int):
            yield f"cut-{name}-{stop}.jpg".encode(), content[:stop]
        for number in range(8):
            broken = bytearray(content)
            # Half of them in the header, where sizes and offsets stand.
            places = rng.integers(4, 60 if number % 2 else len(content), size=6)
            for place in places:
                broken[place] ^= int(rng.integers(1, 256))
            yield f"flipped-{name}-{number}.jpg".encode(), bytes(broken)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def _png(width: int, height: int, *chunks: bytes, bits: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    return start + b"".join(chunks) + _chunk(b"IEND", b"")


def _bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(50_000_000), 9)
    jpeg = bytearray(encode(photo(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    jpeg[size : size + 4] = b"\xff\xff\xff\xff"
    gif = bytearray(encode(photo(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(encode(photo(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    jpeg_whole = encode(photo(), "JPEG")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 60_000
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    loop = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"  # its own
    segment_loop = b"\xff\xe1" + struct.pack(">H", len(loop) + 2) + loop
    progressive = encode(photo(900, 900), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    line = zlib.compress(bytes(4000 * (4000 // 8 + 1)), 9)
    return {
        "bomb-png-50000": _png(50_000, 50_000, _chunk(b"IDAT", zeros)),
        "bomb-png-wide": _png(2**31 - 1, 1, _chunk(b"IDAT", zeros[:100])),
        "bomb-png-more-than-said": _png(10, 10, _chunk(b"IDAT", zeros)),
        "bomb-png-less-than-said": _png(9_000, 9_000, _chunk(b"IDAT", zeros[:2000])),
        "bomb-png-text": _png(8, 8, _chunk(b"zTXt", b"key\0\0" + zeros)),
        "bomb-png-profile": _png(8, 8, _chunk(b"iCCP", b"key\0\0" + zeros)),
        "bomb-png-exif": _png(8, 8, _chunk(b"eXIf", bytes(10_000_000))),
        "bomb-png-no-pixels": _png(0, 0),
        "bomb-png-bits": _png(4000, 4000, _chunk(b"IDAT", line), bits=1),
        "bomb-jpeg": bytes(jpeg),
        "bomb-jpeg-exif": jpeg_whole[:2] + segment * 200 + jpeg_whole[2:],
        "bomb-jpeg-exif-loop": jpeg_whole[:2] + segment_loop + jpeg_whole[2:],
        "bomb-jpeg-scans": progressive[:-2] + last_scan[:64] * 5_000 + progressive[-2:],
        "bomb-gif": bytes(gif),
        "bomb-bmp": bytes(bmp),
        "bomb-tiff-loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",  # its directory follows itself
    }


def _strangers() -> dict[str, bytes]:
    return {
        "empty": b"",
        "space": b" \n",
        "zeros": bytes(5000),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
        "zip": b"PK\3\4" + bytes(60),
        "pickle": pickle.dumps({"no": "image"}),
        "script": b"#!/bin/sh\nrm -rf /\n",
        "signature": b"\x89PNG\r\n\x1a\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100),
    }


def _odd_images() -> dict[str, bytes]:
    """Whole images that many a decoder fails on; ours answers with a probability."""
    grey = Image.fromarray(np.arange(44 * 60, dtype=np.uint16).reshape(44, 60) * 20)
    frames = [photo().rotate(90 * turn) for turn in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    tagged = Image.Exif()
    tagged[0x0112] = 6
    found = {
        "odd-1x1": encode(photo(1, 1), "PNG"),
        "odd-1x3000": encode(photo(1, 3000), "PNG"),
        "odd-16-bit": encode(grey, "PNG"),
        "odd-16-bit-tiff": encode(grey, "TIFF"),
        "odd-cmyk": encode(photo(mode="CMYK"), "JPEG"),
        "odd-cmyk-tiff": encode(photo(mode="CMYK"), "TIFF"),
        "odd-progressive": encode(photo(), "JPEG", progressive=True),
        "odd-turned": encode(photo(), "JPEG", exif=tagged),
        "odd-animated-gif": encode(frames[0], "GIF", **more),
        "odd-animated-webp": encode(frames[0], "WEBP", **more),
        "odd-animated-png": encode(frames[0], "PNG", **more),
        "odd-pages": encode(frames[0], "TIFF", **more),
        "odd-mpo": encode(frames[0], "MPO", **more),
        "odd-clear": encode(Image.new("RGBA", (9, 9)), "PNG"),
    }
    for mode in ("1", "L", "LA", "P"):
        found[f"odd-mode-{mode}"] = encode(photo(mode=mode), "PNG")
    return found


def _names() -> list[bytes]:
    return [
        b"new\nline.png",
        b"no-utf8-\xff\xfe.png",
        b"\x1b[31mred\x1b[0m.png",
        b"[bold]markup[0].png",
        b"--help.png",
        b"quote'\"$(id).png",
        b"a" * 240 + b".png",
        " sp\u00e4te\u202egnp.jpg.png".encode(),
    ]


def _no_files(folder: Path) -> Iterator[Path]:
    links = {
        "itself": folder / "itself",
        "there": folder / "back",
        "back": folder / "there",
        "dangling": folder / "nowhere",
        "zero": Path("/dev/zero"),
        "null": Path("/dev/null"),
        "memory": Path("/proc/self/mem"),
        "up": folder,
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
        yield folder / name
    (folder / "folder.jpg").mkdir()
    yield folder / "folder.jpg"
    os.mkfifo(folder / "pipe.jpg")
    yield folder / "pipe.jpg"
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket may have 100 letters
        listener.bind("socket.jpg")
        os.chdir(here)
    yield folder / "socket.jpg"
    with (folder / "sparse.jpg").open("wb") as stream:
        stream.truncate(10**12)
    yield folder / "sparse.jpg"
    yield folder / "absent.jpg"
    yield folder / ("b" * 300)
    yield Path("https://example.com/a.png")
