"""How the stand-in's images come about: a scene, a camera, and decoders that leave their trace.

numpy only; ``data/demo.py`` makes labelled images of it, and ``aiornot demo-data OUT`` a dataset.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
"""(height, width, 3), linear in the file's values, 0 to 1."""

GENERATORS: tuple[str, ...] = ("deconv", "nearest", "shuffle", "vae8")


# Scene: what stands before the camera.


def _texture(rng: np.random.Generator, size: int, exponent: float) -> Pixels:
    """Return (size, size, 1) noise of unit variance whose amplitude falls as 1 / f**exponent."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # no mean
    noise = rng.standard_normal((2, size, size // 2 + 1))
    field = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**exponent, s=(size, size))
    scaled: Pixels = (field / field.std()).astype(np.float32)
    return scaled[..., None]


def scene(rng: np.random.Generator, size: int) -> Pixels:
    """Draw (size, size, 3) dead leaves, rendered at twice the size and averaged."""
    canvas_size = 2 * size
    clouds = _texture(rng, canvas_size, rng.uniform(0.9, 1.4))
    grain = _texture(rng, canvas_size, rng.uniform(0.7, 1.2))
    base = rng.uniform(0.2, 0.8, 3).astype(np.float32)
    tint = rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    canvas = base + clouds * (0.12 + tint)
    for _ in range(rng.integers(12, 45)):
        _paint_leaf(rng, canvas, grain, base)
    return np.clip(_shrink(canvas, 2), 0, 1)


def _paint_leaf(rng: np.random.Generator, canvas: Pixels, grain: Pixels, base: Pixels) -> None:
    """Paint one ellipse or box over ``canvas``. Radii follow a power law, as in natural images."""
    size = len(canvas)
    radius = min(size * 0.35, 5.0 * (1 - rng.random()) ** -0.6)
    centre, turn, squeeze = (
        rng.uniform(-0.1, 1.1, 2) * size,
        rng.uniform(0, np.pi),
        rng.uniform(0.45, 1),
    )
    low = np.clip(centre - radius, 0, size).astype(int)
    high = np.clip(centre + radius + 1, 0, size).astype(int)
    box = slice(low[0], high[0]), slice(low[1], high[1])
    y = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(low[1], high[1], dtype=np.float32)[None, :] - np.float32(centre[1])
    along = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    across = (y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn))) / np.float32(squeeze)
    if rng.random() < 0.35:
        inside = np.maximum(abs(along), abs(across)) < 0.8 * radius
    else:
        inside = along**2 + across**2 < radius**2
    colour = np.clip(base + rng.normal(0, 0.25, 3), 0.03, 0.97)
    roughness, shading = rng.uniform(0.01, 0.08), rng.uniform(-0.12, 0.12) / radius
    leaf = colour + grain[box] * roughness + along[..., None] * shading
    canvas[box][inside] = leaf[inside]


# Camera: the same for both classes, so that neither "noisy" nor "periodic" means generated.


def camera(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Photograph a scene of even size: lens blur, sensor noise and, in 7 of 10, a Bayer mosaic."""
    pixels = _blur(pixels, rng.uniform(0.35, 0.75))
    shot, read = rng.uniform(0.004, 0.02), rng.uniform(0.001, 0.006)
    sigma = np.float32(shot) * np.sqrt(np.clip(pixels, 0.02, 1)) + np.float32(read)
    pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * sigma
    if rng.random() < 0.7:
        pixels = _demosaic(pixels, phase=rng.integers(0, 2, 2))
    return np.clip(pixels, 0, 1)


def _demosaic(pixels: Pixels, *, phase: NDArray[np.int64]) -> Pixels:
    """Keep one colour of each pixel, as a Bayer sensor does, and interpolate the other two."""
    height, width, _ = pixels.shape
    seen = np.zeros((2, 2, 3), np.float32)
    seen[0, 0, 0] = seen[0, 1, 1] = seen[1, 0, 1] = seen[1, 1, 2] = 1
    mask = np.tile(np.roll(seen, phase, (0, 1)), (height // 2, width // 2, 1))
    bilinear = [0.5, 1.0, 0.5]
    return _convolve(pixels * mask, bilinear) / _convolve(mask, bilinear)


# Generators: each leaves the trace of one way to up-sample.


def regenerate(rng: np.random.Generator, pixels: Pixels, kind: str) -> Pixels:
    """Encode and decode an image as a generator of ``kind`` would, at full strength.

    Args:
        rng: Draws what differs from one image to the next within a kind.
        pixels: (height, width, 3), 0 to 1, both sides multiples of 8.
        kind: One of ``GENERATORS``.

    Returns:
        The decoded image in the same shape; lost detail is made up, in the same amount.
    """
    assert pixels.shape[0] % 8 == 0 == pixels.shape[1] % 8, pixels.shape
    if kind == "vae8":
        return np.clip(_decode_vae8(rng, pixels), 0, 1)
    decode = {"deconv": _decode_deconv, "nearest": _decode_nearest, "shuffle": _decode_shuffle}[
        kind
    ]
    latent = _shrink(pixels, 2)
    return np.clip(_invent_detail(rng, decode(rng, latent), latent, like=pixels), 0, 1)


def _decode_deconv(rng: np.random.Generator, latent: Pixels) -> Pixels:
    """Transposed convolution: 3 x 3 at stride 2 overlaps unevenly, which leaves a checkerboard."""
    kernel = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]) * rng.normal(1, 0.1, (3, 3))
    sparse = _spread(latent, phase=(0, 0))
    height, width, _ = sparse.shape
    padded = np.pad(sparse, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    decoded = np.zeros_like(sparse)
    for (row, column), weight in np.ndenumerate(kernel):
        decoded += np.float32(weight) * padded[row : row + height, column : column + width]
    return decoded


def _decode_nearest(rng: np.random.Generator, latent: Pixels) -> Pixels:
    """Nearest neighbour, then a small convolution."""
    return _blur(_repeat(latent, 2), 0.5)


def _decode_shuffle(rng: np.random.Generator, latent: Pixels) -> Pixels:
    """Sub-pixel convolution: the four phases of a pixel have unequal sharpness and gain."""
    soft = _blur(latent, 0.6)
    decoded = _spread(latent, phase=(0, 0))
    for row, column in np.ndindex(2, 2):
        sharpness = np.float32(rng.uniform(0.7, 1.3))
        gain = rng.normal(0, 0.025, 3).astype(np.float32)
        decoded[row::2, column::2] = soft + (latent - soft) * sharpness + latent * gain
    return decoded


def _decode_vae8(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Latent grid of 8 x 8 pixels: each block errs in contrast and brightness. The hard one."""
    means = _shrink(pixels, 8)
    contrast = rng.normal(1, 0.12, means.shape).astype(np.float32)
    offset = rng.normal(0, 0.02, means.shape).astype(np.float32)
    detail = _blur(pixels, 0.55) - _repeat(means, 8)
    return _repeat(means + offset, 8) + detail * _repeat(contrast, 8)


def _invent_detail(
    rng: np.random.Generator, decoded: Pixels, latent: Pixels, *, like: Pixels
) -> Pixels:
    """Add detail up to the fine energy of ``like``: "smooth" must not mean generated."""
    edges = latent - _blur(latent, 0.8)
    noise = rng.standard_normal(latent.shape, dtype=np.float32) * edges.std()
    row, column = rng.integers(0, 2, 2)
    detail = _blur(_spread(edges * rng.choice([-1.0, 1.0]) + noise, phase=(row, column)), 0.45)
    wanted, present = ((image - _blur(image, 0.8)).var() for image in (like, decoded))
    missing = np.sqrt(max(wanted - present, 0.0)) / (detail.std() + 1e-8)
    return decoded + detail * np.float32(missing)


# Arithmetic on (height, width, 3).


def _convolve(pixels: Pixels, taps: Sequence[float]) -> Pixels:
    """Convolve both axes with the same odd number of taps; borders are mirrored."""
    radius = len(taps) // 2
    for axis in (0, 1):
        border = [(radius, radius) if side == axis else (0, 0) for side in range(3)]
        padded = np.moveaxis(np.pad(pixels, border, mode="reflect"), axis, 0)
        total = np.zeros_like(np.moveaxis(pixels, axis, 0))
        for start, tap in enumerate(taps):
            total += np.float32(tap) * padded[start : start + len(total)]
        pixels = np.moveaxis(total, 0, axis)
    return pixels


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur; ``sigma`` in pixels."""
    radius = max(1, round(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return _convolve(pixels, list(taps / taps.sum()))


def _shrink(pixels: Pixels, times: int) -> Pixels:
    """Average blocks of ``times`` x ``times``; the sides must be multiples of it."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // times, times, width // times, times, 3)
    means: Pixels = blocks.mean((1, 3), dtype=np.float32)
    return means


def _repeat(pixels: Pixels, times: int) -> Pixels:
    return pixels.repeat(times, 0).repeat(times, 1)


def _spread(pixels: Pixels, *, phase: tuple[int, int]) -> Pixels:
    """Double the size with zeros between; ``phase`` is where in its 2 x 2 a pixel goes."""
    height, width, _ = pixels.shape
    sparse = np.zeros((2 * height, 2 * width, 3), np.float32)
    sparse[phase[0] :: 2, phase[1] :: 2] = pixels
    return sparse
