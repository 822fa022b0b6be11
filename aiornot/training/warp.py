"""Geometry of a batch on the device: crop, rotation, turns and flips in one interpolation.

Flips and quarter turns alone are moves of whole pixels, exact to the bit, on data of any type.
"""

from collections.abc import Sequence

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
    stored: Tensor,
    *,
    box: Tensor,
    angle: Tensor,
    eighth: Tensor | None,
    hflip: Tensor,
    vflip: Tensor,
) -> list[Tensor]:
    """Crop to the box at full size, rotate about the centre, turn, flip; in one interpolation.

    What the rotation brings in from outside the cropped frame is black. Three interpolations
    would blur three times, which a detector of generated images can ill afford.

    Args:
        stored: (N, C, H, W) of any type.
        box: (N, 4) top, left, height and width in pixels.
        angle: (N,) degrees, counter-clockwise as in torchvision.
        eighth: See ``turn``; None turns none.
        hflip: (N,) bool
        vflip: (N,) bool

    Returns:
        The C channels, (N, H, W) float32 each, in the units of ``stored``.
    """
    height, width = stored.shape[2:]
    swap = None
    if eighth is not None:
        across, down, swap = _moves(eighth)
        hflip, vflip = hflip ^ across, vflip ^ down
    matrix = _undoing(angle=angle, hflip=hflip, vflip=vflip, swap=swap).view(-1, 4, 1, 1)
    # In pixels from the centre. float32: float16 coordinates cost up to 4 of 255 levels.
    x = (torch.arange(width, device=box.device) - (width - 1) / 2).view(1, 1, -1)
    y = (torch.arange(height, device=box.device) - (height - 1) / 2).view(1, -1, 1)
    right = matrix[:, 0] * x + matrix[:, 1] * y
    down = matrix[:, 2] * x + matrix[:, 3] * y
    inside = (right.abs() <= width / 2) & (down.abs() <= height / 2)
    top, left, tall, wide = (side.view(-1, 1, 1) for side in box.unbind(1))
    column = right * (wide / width) + (left + (wide - 1) / 2)
    row = down * (tall / height) + (top + (tall - 1) / 2)
    # Eager, the library's kernel is the faster one by far, and compiled, it is the slower one.
    sample = _gathered if torch.compiler.is_compiling() else _interpolated
    return [plane * inside for plane in sample(stored, column=column, row=row)]


def _undoing(*, angle: Tensor, hflip: Tensor, vflip: Tensor, swap: Tensor | None) -> Tensor:
    """Return the matrices (N, 4), row by row, from places in the result to those in the crop.

    The last operation is undone first: the flips, the transposition, the rotation.
    """
    radians = torch.deg2rad(angle)
    cos, sin = torch.cos(radians), torch.sin(radians)
    across, along = torch.where(hflip, -1.0, 1.0), torch.where(vflip, -1.0, 1.0)
    # Stacked, they are memory to the compiler: it would compute them again for every pixel.
    matrix = torch.stack((cos * across, -sin * along, sin * across, cos * along), dim=1)
    if swap is None:
        return matrix
    swapped = torch.stack((-sin * across, cos * along, cos * across, sin * along), dim=1)
    return torch.where(swap.view(-1, 1), swapped, matrix)


def _interpolated(stored: Tensor, *, column: Tensor, row: Tensor) -> Sequence[Tensor]:
    """Interpolate each channel at columns and rows (N, H, W); beyond the edge is the edge."""
    height, width = stored.shape[2:]
    grid = torch.stack(((2 * column + 1) / width - 1, (2 * row + 1) / height - 1), dim=3)
    # "border": a centre half a pixel outside the image takes the edge pixel, not half black.
    pixels = stored.to(torch.float32)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False).unbind(1)


def _gathered(stored: Tensor, *, column: Tensor, row: Tensor) -> Sequence[Tensor]:
    """Do the same, from the stored type.

    The compiler makes one kernel of the three channels, which shares all but the reading of the
    pixels; from ``grid_sample`` it made one that found each channel's place anew.
    """
    height, width = stored.shape[2:]
    # Stacked, they are memory to the compiler, and not a part of all twelve addresses.
    column, row = torch.stack((column.clamp(0, width - 1), row.clamp(0, height - 1))).unbind()
    left, top = column.floor(), row.floor()
    right, low = column - left, row - top
    x, y = left.to(torch.int32), top.to(torch.int32)
    next_x, next_y = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    image = torch.arange(len(stored), device=stored.device, dtype=torch.int32).view(-1, 1, 1)

    def mixed(plane: Tensor) -> Tensor:
        # Each corner once: what is used twice and costs much, the compiler writes to memory.
        upper = plane[image, y, x] * ((1 - low) * (1 - right))
        upper = upper + plane[image, y, next_x] * ((1 - low) * right)
        lower = plane[image, next_y, x] * (low * (1 - right))
        return upper + lower + plane[image, next_y, next_x] * (low * right)

    return [mixed(plane) for plane in stored.unbind(1)]


def _each(values: Tensor) -> Tensor:
    """View one value per sample, (N,), so that it broadcasts over (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)
