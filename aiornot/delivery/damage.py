"""What the world does to a picture before a detector sees it: scaled, cropped, blurred, compressed.

``aiornot robustness BUNDLE`` judges with it. Training has its own (``training/degrade.py``), on the
device and for batches; here each image goes through Pillow, which is what the world's programs do,
and through a real JPEG file.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from aiornot.data import images
from aiornot.data.images import Pixels

REFERENCE_SIDE = 1024
"""Of the pictures that the tiers' limits are meant for. A prepared image is smaller and stands for
a whole picture, so a limit is scaled with it: 768 of 1,024 pixels are 48 of 64."""

TIERS = {"web": (768, 60), "hard": (512, 40)}
"""Long side in pixels that is kept at most, and JPEG quality of the file."""

CURVES = {
    "jpeg_quality": (95, 90, 80, 70, 60, 50, 40, 30),
    "blur_sigma": (0.5, 1.0, 1.5, 2.0),
    "rescale": (0.5, 0.75, 1.25, 1.5),
    "crop": (0.9, 0.75, 0.5),
}
"""Strengths of one damage alone: quality, pixels, share of the side, share of the side kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """What happens to each image, real or generated, in this order."""

    crop: float | None = None
    """Share of each side that is kept, of the middle."""
    scale: float | None = None
    """Share of each side to which it is resampled, bicubic."""
    blur: float | None = None
    """Standard deviation of a Gaussian in pixels."""
    quality: int | None = None
    """Of the JPEG file it is saved as, chroma halved, as most programs do."""

    def to_dict(self) -> dict[str, float]:
        """Return what is done, and no more."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def tiers(size: int) -> dict[str, Damage]:
    """Return clean, web and hard for prepared images of a side in pixels."""
    found = {"clean": Damage()}
    for name, (limit, quality) in TIERS.items():
        share = min(1.0, limit / max(size, REFERENCE_SIDE))
        found[name] = Damage(scale=share if share < 1 else None, quality=quality)
    return found


def curves() -> dict[str, dict[float, Damage]]:
    """Return one damage alone at each of its strengths, by its name and strength."""
    make: dict[str, Callable[[float], Damage]] = {
        "jpeg_quality": lambda value: Damage(quality=int(value)),
        "blur_sigma": lambda value: Damage(blur=value),
        "rescale": lambda value: Damage(scale=value),
        "crop": lambda value: Damage(crop=value),
    }
    return {name: {value: make[name](value) for value in CURVES[name]} for name in CURVES}


def apply(damage: Damage, pixels: Pixels) -> Pixels:
    """Return the image (h, w, 3) that is left of (H, W, 3); as it came where nothing is done."""
    image = Image.fromarray(pixels)
    if damage.crop is not None:
        image = image.crop(_middle(image.size, damage.crop))
    if damage.scale is not None:
        width, height = (max(1, round(damage.scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if damage.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(damage.blur))
    if damage.quality is None:
        return np.asarray(image)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=damage.quality)
    return images.decode(file.getvalue())


def _middle(size: tuple[int, int], share: float) -> tuple[int, int, int, int]:
    width, height = (max(1, round(share * side)) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height
