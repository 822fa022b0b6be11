"""Geometry of a batch on the device: crop, rotation, turns and flips in one interpolation.

Flips and quarter turns alone are moves of whole pixels, exact to the bit, on data of any type.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def flip(stored: Tensor, *, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Flip the samples of a batch (N, C, H, W) of any type that (N,) bool tensors name."""
    stored = torch.where(_each(horizontal), stored.flip(3), stored)
    return torch.where(_each(vertical), stored.flip(2), stored)


def turn(stored: Tensor, *, eighth: Tensor) -> Tensor:
    """Give each sample of a batch (N, C, S, S) of any type one of a square's eight symmetries.

    Args:
        eighth: (N,) 0..7; 0 changes nothing, 5, for example, is a quarter turn clockwise.
    """
    horizontal, vertical, transposed = _moves(eighth)
    stored = torch.where(_each(transposed), stored.transpose(2, 3), stored)
    return flip(stored, horizontal=horizontal, vertical=vertical)


def _moves(eighth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N,) bool: who is flipped horizontally, vertically, and transposed before that.

    Each of the eight combinations is another of the eight symmetries.
    """
    horizontal, vertical, transposed = (eighth // power % 2 == 1 for power in (1, 2, 4))
    return horizontal, vertical, transposed


def warp(
    pixels: Tensor,
    *,
    box: Tensor,
    angle: Tensor,
    eighth: Tensor | None,
    hflip: Tensor,
    vflip: Tensor,
) -> Tensor:
    """Crop to the box at full size, rotate about the centre, turn, flip; in one interpolation.

    What the rotation brings in from outside the cropped frame is black. Three interpolations
    would blur three times, which a detector of generated images can ill afford.

    Args:
        pixels: (N, C, H, W) float32.
        box: (N, 4) top, left, height and width in pixels.
        angle: (N,) degrees, counter-clockwise as in torchvision.
        eighth: See ``turn``; None turns none.
        hflip: (N,) bool
        vflip: (N,) bool
    """
    height, width = pixels.shape[2:]
    swap = None
    if eighth is not None:
        across, down, swap = _moves(eighth)
        hflip, vflip = hflip ^ across, vflip ^ down
    # The last operation is undone first.
    x, y = _flipped_grid(height, width, hflip=hflip, vflip=vflip)
    if swap is not None:
        swap = swap.view(-1, 1, 1)
        x, y = torch.where(swap, y, x), torch.where(swap, x, y)
    x, y = _rotated(x, y, angle=angle, height=height, width=width)
    inside = (x.abs() <= 1) & (y.abs() <= 1)
    top, left, tall, wide = (column.view(-1, 1, 1) for column in box.unbind(1))
    grid = torch.stack(
        (
            x * (wide / width) + ((2 * left + wide) / width - 1),
            y * (tall / height) + ((2 * top + tall) / height - 1),
        ),
        dim=3,
    )
    # "border": a centre half a pixel outside the image takes the edge pixel, not half black.
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved * inside.unsqueeze(1)


def _flipped_grid(
    height: int, width: int, *, hflip: Tensor, vflip: Tensor
) -> tuple[Tensor, Tensor]:
    """Return where output pixels lay before the flips: x (N, 1, W) and y (N, H, 1).

    The image's edges are at -1 and 1. float32: float16 coordinates cost up to 4 of 255 levels.
    """
    x = (torch.arange(width, device=hflip.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=hflip.device) * 2 + 1) / height - 1
    x = x.view(1, 1, -1) * torch.where(hflip, -1.0, 1.0).view(-1, 1, 1)
    y = y.view(1, -1, 1) * torch.where(vflip, -1.0, 1.0).view(-1, 1, 1)
    return x, y


def _rotated(
    x: Tensor, y: Tensor, *, angle: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Map coordinates in the rotated frame back into the cropped one, each (N, H, W)."""
    radians = torch.deg2rad(angle).view(-1, 1, 1)
    cos, sin = torch.cos(radians), torch.sin(radians)
    # A rotation is one in pixels: the units of x and y differ unless the image is square.
    return cos * x - sin * y * (height / width), sin * x * (width / height) + cos * y


def _each(values: Tensor) -> Tensor:
    """View one value per sample, (N,), so that it broadcasts over (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)
