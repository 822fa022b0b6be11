"""Made-up images by which two machines see whether a model computes the same on both.

``aiornot verify BUNDLE`` compares its logits of them with those that the bundle holds. They are
noise and no one's images, so they need not travel: each machine makes them, to the bit.
"""

import hashlib

import numpy as np

from aiornot.data.images import Pixels

CELLS = (1, 2, 3, 5, 8, 16, 32, 64)
"""Side in pixels of the even squares of each image: fine noise to plain surfaces."""


def make(size: int) -> Pixels:
    """Return the images (len(CELLS), size, size, 3); whole numbers only, so equal everywhere."""
    return np.stack([_noise(size, cell) for cell in CELLS])


def _noise(size: int, cell: int) -> Pixels:
    """Hash each square's place; numpy does not promise that its generators stay as they are."""
    row, column, channel = np.indices((size, size, 3), dtype=np.uint64)
    mixed = row // np.uint64(cell) * np.uint64(0x9E3779B1)
    mixed ^= column // np.uint64(cell) * np.uint64(0x85EBCA77)
    mixed ^= (channel + np.uint64(cell)) * np.uint64(0xC2B2AE3D)
    mixed ^= mixed >> np.uint64(15)
    mixed *= np.uint64(0x2545F4914F6CDD1D)  # wraps around, as meant
    return np.asarray(mixed >> np.uint64(56), dtype=np.uint8)


def digest(pixels: Pixels) -> str:
    """Return the SHA-256 of images in hex."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()
