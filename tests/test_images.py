import concurrent.futures
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from aiornot.config import InputError
from aiornot.data.images import MAX_PIXELS, _jpeg, decode, fit


def photo(height=48, width=64):
    """A smooth image with a little noise, (H, W, 3), so that no two corners look alike."""
    rng = np.random.default_rng(0)
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    colour = np.stack([down * 220, right * 200, (down * right) * 230], axis=-1)
    return (colour + rng.uniform(0, 25, (height, width, 1))).astype(np.uint8)


def encode(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows=b"", *, extra=b""):
    """A PNG written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


JPEG = encode(photo(), "JPEG", quality=90)
PNG = encode(photo(), "PNG")


@pytest.mark.parametrize("shape", [(48, 64), (47, 63), (1, 1), (8, 200)])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"subsampling": "4:4:4"}),
        ("JPEG", {"subsampling": "4:2:2"}),
        ("JPEG", {"subsampling": "4:2:0"}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"keep_rgb": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ],
)
def test_pixels_equal_pillows(kind, options, shape):
    data = encode(photo(*shape), kind, **options)
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (*shape, 3)
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(wanted))
    assert decode(data).shape[:2] == ((64, 48) if orientation > 4 else (48, 64))
    assert decode(data).flags.c_contiguous


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encode(photo(), "PNG", exif=exif)), photo())


def test_orientation_behind_the_pixels_of_a_png_is_found():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = PNG[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + PNG[-12:]
    np.testing.assert_array_equal(decode(data), np.rot90(photo(), -1))


def entry(kind, value):
    """EXIF with nothing but an orientation, of any TIFF type and with any 4 bytes of value."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4sI", 0x0112, kind, 1, value, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no header at all",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20,
        entry(2, b"six\0"),
    ],
)
def test_broken_exif_does_not_lose_the_image(kind, exif):
    assert decode(encode(photo(), kind, exif=exif)).shape == (48, 64, 3)


def test_hand_written_exif_is_read():
    data = encode(photo(), "JPEG", exif=entry(3, b"\0\x06\0\0"))
    assert decode(data).shape == (64, 48, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_greyscale_repeats_in_three_channels(kind):
    pixels = decode(encode(Image.fromarray(photo()).convert("L"), kind))
    assert pixels.shape == (48, 64, 3) and (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_equals_pillows(kind):
    data = encode(Image.fromarray(photo()).convert("CMYK"), kind)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_palette_and_one_bit():
    for mode in ("P", "1"):
        image = Image.fromarray(photo()).convert(mode)
        for kind in ("PNG", "GIF", "BMP", "TIFF"):
            np.testing.assert_array_equal(
                decode(encode(image, kind)), np.asarray(image.convert("RGB"))
            )


def test_alpha_lies_on_white():
    alpha = np.zeros((48, 64, 1), dtype=np.uint8)
    alpha[:, 32:], alpha[:, 48:] = 255, 128
    rgba = np.concatenate([photo(), alpha], axis=-1)
    for data in (encode(rgba, "PNG"), encode(rgba, "WEBP", lossless=True), encode(rgba, "TIFF")):
        pixels = decode(data)
        assert (pixels[:, :32] == 255).all(), "what alpha 0 hides must not show"
        np.testing.assert_array_equal(pixels[:, 32:48], photo()[:, 32:48])
        mixed = photo()[:, 48:] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(pixels[:, 48:] - mixed).max() <= 1


def test_grey_with_alpha_lies_on_white():
    image = Image.fromarray(photo()).convert("LA")
    image.putalpha(Image.fromarray(np.tile(np.repeat([0, 255], 32).astype(np.uint8), (48, 1))))
    pixels = decode(encode(image, "PNG"))
    assert (pixels[:, :32] == 255).all()
    np.testing.assert_array_equal(pixels[:, 32:, 0], np.asarray(image)[:, 32:, 0])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind):
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1] * 4)
    pixels = decode(encode(image, kind, transparency=0))
    assert (pixels[:, 0] == 255).all() and (pixels[:, 1] == (200, 100, 50)).all()


def test_palette_with_alpha_per_colour():
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1] * 4)
    pixels = decode(encode(image, "PNG", transparency=b"\x00\x80"))
    assert (pixels[:, 0] == 255).all()
    assert np.abs(pixels[0, 1] - np.array([227, 177, 152])).max() <= 1


def test_a_transparent_colour_without_palette_is_white():
    rows = b"\0" + bytes([1, 2, 3, 4, 5, 6])
    data = png(2, 1, 8, 2, rows, extra=chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert decode(data).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        grey = decode(encode(ramp, kind))
        np.testing.assert_array_equal(grey[:, :, 0], ramp >> 8)
        assert (grey == grey[:, :, :1]).all()


def test_big_endian_16_bit_tiff():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = Image.frombytes("I;16B", (256, 256), ramp.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(encode(image, "TIFF"))[:, :, 0], ramp >> 8)


def test_16_bit_grey_and_16_bit_colour_agree():
    values = np.linspace(0, 65535, 64).astype(">u2")
    grey = decode(png(64, 1, 16, 0, b"\0" + values.tobytes()))
    colour = decode(png(64, 1, 16, 2, b"\0" + np.repeat(values, 3).tobytes()))
    np.testing.assert_array_equal(grey, colour)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    pixels = decode(data)
    assert pixels.shape == (6, 8, 3)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def test_a_sound_jpeg_with_an_oddity_is_not_refused():
    start_of_scan = JPEG.index(b"\xff\xda")
    odd_header = bytearray(JPEG)
    odd_header[start_of_scan + 11] = 1  # spectral selection, meaningless in a sequential file
    for data in (JPEG[:-2] + b"\0\1\2" + JPEG[-2:], JPEG + b"trailing bytes", bytes(odd_header)):
        np.testing.assert_array_equal(decode(data), by_pillow(data))


def broken_chunk():
    data = bytearray(PNG)
    data[data.index(b"IDAT") + 40] ^= 0x55
    return bytes(data)


def float_tiff(mode):
    return encode(Image.fromarray(photo()).convert("L").convert(mode), "TIFF")


CORRUPT = {
    "none": None,
    "empty": b"",
    "zero bytes": bytes(1000),
    "text": b"this is not an image, it is a sentence",
    "html": b"<!DOCTYPE html><title>404</title>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "wrong magic": b"\x00" + JPEG[1:],
    "jpeg magic alone": JPEG[:3],
    "jpeg header alone": JPEG[: JPEG.index(b"\xff\xda")],
    "jpeg half": JPEG[: len(JPEG) // 2],
    "jpeg last 100": JPEG[:-100],
    "jpeg without end": JPEG[:-2],
    "jpeg with a hole": JPEG[:-300] + JPEG[-2:],
    "progressive half": encode(photo(), "JPEG", progressive=True)[:900],
    "png magic alone": PNG[:8],
    "png header alone": PNG[:33],
    "png half": PNG[: len(PNG) // 2],
    "png broken chunk": broken_chunk(),
    "png of nothing": png(0, 5, 8, 2),
    "png 50000": png(50_000, 50_000, 8, 2, b"\0" * 1000),
    "webp half": encode(photo(), "WEBP")[:200],
    "gif half": encode(photo(), "GIF")[:900],
    "bmp half": encode(photo(), "BMP")[:2000],
    "tiff half": encode(photo(), "TIFF")[:2000],
    "tiff float": float_tiff("F"),
    "tiff 32 bit": float_tiff("I"),
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_a_value_error_with_a_reason(data):
    with pytest.raises(ValueError) as caught:
        decode(data)
    reason = str(caught.value)
    assert 5 < len(reason) < 200 and "\n" not in reason


def test_the_bound_is_checked_before_pixels_are_decoded():
    with pytest.raises(ValueError, match="PNG: 50000 x 50000 pixels, more than the 100,000,000"):
        decode(CORRUPT["png 50000"])
    decode(PNG, max_pixels=48 * 64)
    for data in (JPEG, PNG):
        with pytest.raises(ValueError, match="64 x 48 pixels"):
            decode(data, max_pixels=48 * 64 - 1)


def test_a_jpeg_gives_no_more_pixels_than_its_checked_header_said():
    """Should the two JPEG parsers ever disagree, Pillow's, whose size was checked, decides."""
    with Image.open(io.BytesIO(encode(photo(3, 5), "JPEG"))) as checked:
        assert _jpeg(checked, JPEG).shape == (3, 5, 3)


def test_a_jpeg_of_too_many_scans_is_refused_and_one_in_its_tail_does_not_count():
    stream = io.BytesIO()
    Image.new("RGB", (50, 50)).save(stream, "JPEG", progressive=True)
    whole = stream.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="more than the 1000 scans allowed"):
        decode(whole[:-2] + scan * 1000 + whole[-2:])
    assert np.array_equal(decode(whole[:-2] + scan * 50 + whole[-2:]), decode(whole))
    assert np.array_equal(decode(whole + scan * 1000), decode(whole))  # as a phone's film would be


def test_below_the_bound_pillow_neither_warns_nor_is_changed():
    side = 9_500  # 90 megapixels: above Pillow's warning, below our bound
    assert Image.MAX_IMAGE_PIXELS < side * side < MAX_PIXELS
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="truncated"):
            decode(png(side, side, 1, 0, b"\0" * 1000))
    assert before == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


def test_many_threads_see_the_same_pixels():
    rgba = encode(np.dstack([photo(), photo()[:, :, 0]]), "PNG")
    files = [JPEG, PNG, rgba, encode(photo(), "WEBP"), JPEG[:-100]]

    def outcome(data):
        try:
            return decode(data).tobytes()
        except ValueError as error:
            return str(error)

    alone = [outcome(data) for data in files]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files * 20)) == alone * 20


def decodes_or_refuses(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow on broken metadata
        try:
            # A small bound: a flipped bit in the header may ask for gigabytes.
            pixels = decode(data, max_pixels=20_000)
        except ValueError as error:
            assert str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


MAGICS = [
    b"",
    b"\xff\xd8\xff",
    PNG[:8],
    b"RIFF\x00\x01\x00\x00WEBPVP8 ",
    b"GIF89a",
    b"BM",
    b"II*\0",
]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(MAGICS), st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(magic, data):
    decodes_or_refuses(magic + data)


SOUND = {
    kind: encode(photo(16, 24), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
}


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(list(SOUND.values())),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_never_raise_anything_else(data, flips, keep):
    damaged = bytearray(data)
    for where, bit in flips:
        damaged[int(where * (len(data) - 1))] ^= 1 << bit
    decodes_or_refuses(bytes(damaged))
    decodes_or_refuses(bytes(damaged[: int(keep * len(data))]))


def test_an_image_that_fits_is_never_resampled():
    image = photo(32, 32)
    for geometry in ("resize", "crop"):
        assert fit(image, 32, geometry=geometry) is image


@pytest.mark.parametrize("shape", [(48, 64), (20, 90), (1, 1), (32, 40), (200, 31)])
def test_resize_is_pillows_bicubic(shape):
    wanted = Image.fromarray(photo(*shape)).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit(photo(*shape), 32), np.asarray(wanted))


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["resize", "crop"])
)
def test_fit_always_gives_a_square(height, width, size, geometry):
    pixels = fit(photo(height, width), size, geometry=geometry)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_crop_takes_the_centre():
    np.testing.assert_array_equal(
        fit(photo(48, 65), 32, geometry="crop"), photo(48, 65)[8:40, 16:48]
    )


def test_crop_mirrors_what_is_too_short():
    image = photo(20, 40)
    pixels = fit(image, 32, geometry="crop")
    np.testing.assert_array_equal(pixels[6:26], image[:, 4:36])
    np.testing.assert_array_equal(pixels[:6], image[6:0:-1, 4:36])
    np.testing.assert_array_equal(pixels[26:], image[18:12:-1, 4:36])


def test_crop_of_one_pixel_repeats_it():
    assert (fit(photo(1, 1), 5, geometry="crop") == photo(1, 1)).all()


def test_crop_of_two_pixels_folds_the_mirror():
    column = fit(np.array([[[0] * 3], [[9] * 3]], np.uint8), 6, geometry="crop")[:, 0, 0]
    assert column.tolist() == [0, 9, 0, 9, 0, 9]


def test_an_unusable_geometry_or_size_is_refused():
    with pytest.raises(InputError, match="'stretch' is unknown: use 'resize' or 'crop'"):
        fit(photo(), 32, geometry="stretch")
    with pytest.raises(InputError, match="at least 1"):
        fit(photo(), 0)
