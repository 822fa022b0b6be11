"""JPEG on the device: a batch as libjpeg, and so Pillow, would give it back, without the file.

Colours, 4:2:0 chroma, the 8 x 8 cosine transform, Annex K tables scaled by the quality, and back.
Entropy coding loses nothing and is left out. Whole numbers are kept as float32, which holds all
that occur here exactly; but for the transform, where libjpeg rounds its constants to 13 bits,
every step is equal to libjpeg's to the bit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aiornot.data.jpeg_tables import CHROMINANCE, LUMINANCE

BLOCK = 8


class Tables(NamedTuple):
    """Constants on the device, made once per run: making them in a step would wait for it."""

    steps: Tensor
    """(2, 64) quantisation steps at quality 50, of luminance and of chrominance."""
    basis: Tensor
    """(64, 64) the orthonormal cosine transform of a block, one row per coefficient."""


def tables(device: torch.device | str = "cpu") -> Tables:
    """Put the constants on the device."""
    place = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(place.view(-1, 1) * (2 * place + 1) * (math.pi / 16)) / 2
    waves[0] = 1 / math.sqrt(8)
    return Tables(
        steps=torch.tensor((LUMINANCE, CHROMINANCE), dtype=torch.float32, device=device),
        basis=torch.kron(waves, waves).to(torch.float32).to(device),
    )


def compress(levels: Tensor, *, quality: Tensor, tables: Tables) -> Tensor:
    """Encode and decode each sample at its quality, 4:2:0.

    Args:
        levels: (N, 3, H, W) float32, whole grey levels 0..255.
        quality: (N,) 1..100, or infinite: such a sample stays what it is, exactly.
        tables: Those of the device.

    Returns:
        Whole grey levels in the same shape.
    """
    height, width = levels.shape[2:]
    steps = scaled_steps(tables.steps, quality=quality)
    luma, chroma = _to_ycc(_pad(levels, rows=2, columns=2 * BLOCK))
    luma = _quantise(luma, steps=steps[:, 0], basis=tables.basis)
    chroma = _quantise(_halve(chroma), steps=steps[:, 1], basis=tables.basis)
    # What lies beyond the image was only there to fill the blocks: the edge must not see it.
    chroma = _double(chroma[..., : math.ceil(height / 2), : math.ceil(width / 2)])
    decoded = _to_rgb(luma[..., :height, :width], chroma[..., :height, :width])
    return torch.where(torch.isfinite(quality).view(-1, 1, 1, 1), decoded, levels)


def scaled_steps(steps: Tensor, *, quality: Tensor) -> Tensor:
    """Scale the tables (2, 64) to each sample's quality, (N, 2, 64), as libjpeg does."""
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    return torch.floor((steps * percent.view(-1, 1, 1) + 50) / 100).clamp(1, 255)


def _pad(planes: Tensor, *, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column until the sides are multiples of these."""
    height, width = planes.shape[2:]
    below, right = -height % rows, -width % columns
    return F.pad(planes, (0, right, 0, below), mode="replicate") if below or right else planes


def _to_ycc(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return luma (N, 1, H, W) and chroma (N, 2, H, W), whole numbers 0..255.

    libjpeg's fixed-point constants: all sums stay below 2**24, so that float32 is exact.
    """
    red, green, blue = levels.unbind(1)
    luma = _shifted(19595 * red + 38470 * green + 7471 * blue + 32768)
    # One less than a half: a tie rounds down here and up above.
    centre = (128 << 16) + 32767
    cb = _shifted(32768 * blue - 11059 * red - 21709 * green + centre)
    cr = _shifted(32768 * red - 27439 * green - 5329 * blue + centre)
    return luma.unsqueeze(1), torch.stack((cb, cr), dim=1)


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """Undo ``_to_ycc``, again with libjpeg's constants."""
    y, (cb, cr) = luma[:, 0], (chroma - 128).unbind(1)
    red = y + _shifted(91881 * cr + 32768)
    green = y + _shifted(32768 - 22554 * cb - 46802 * cr)
    blue = y + _shifted(116130 * cb + 32768)
    return torch.stack((red, green, blue), dim=1).clamp(0, 255)


def _shifted(sums: Tensor) -> Tensor:
    """Return sums >> 16."""
    return torch.floor(sums / 65536)


def _halve(planes: Tensor) -> Tensor:
    """Average 2 x 2 pixels; a tie goes down in even columns and up in odd ones, as in libjpeg."""
    halves = F.avg_pool2d(planes, 2)
    return torch.floor(halves + _alternating(halves.shape[3], 0.25, 0.5, like=halves))


def _double(planes: Tensor) -> Tensor:
    """Double both sides, 3/4 of the nearer and 1/4 of the further: "fancy upsampling"."""
    doubled = F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.floor(doubled + _alternating(doubled.shape[3], 1 / 2, 7 / 16, like=doubled))


def _alternating(length: int, even: float, odd: float, *, like: Tensor) -> Tensor:
    return torch.where(torch.arange(length, device=like.device) % 2 == 0, even, odd)


def _quantise(planes: Tensor, *, steps: Tensor, basis: Tensor) -> Tensor:
    """Transform the blocks of planes (N, C, H, W), round to multiples of the steps, and return.

    Args:
        steps: (N, 64)
        basis: (64, 64)
    """
    planes = _pad(planes, rows=BLOCK, columns=BLOCK)
    count, channels, height, width = planes.shape
    rows, columns = height // BLOCK, width // BLOCK
    cut = (planes - 128).reshape(count, channels * rows, BLOCK, columns, BLOCK)
    blocks = cut.transpose(2, 3).reshape(count, -1, BLOCK * BLOCK)
    step = steps.unsqueeze(1)
    # libjpeg's transform returns whole eighths.
    scaled = torch.floor(8 * (blocks @ basis.T) + 0.5) / (8 * step)
    # Ties go away from zero, not to even: coefficients that are multiples of 1/8 tie often.
    kept = torch.sign(scaled) * torch.floor(scaled.abs() + 0.5) * step
    cut = (kept @ basis).view(count, channels * rows, columns, BLOCK, BLOCK).transpose(2, 3)
    return torch.floor(cut.reshape(planes.shape) + 128.5).clamp(0, 255)
