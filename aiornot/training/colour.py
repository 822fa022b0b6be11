"""Colour operations on a batch on the device, torchvision's, each sample by its own factor.

*Planes* are the three channels of pixels in 0..1, (N, H, W) float32 each, not yet normalised:
after normalisation the clamps would cut off most of the values. Channels apart, and not in one
tensor, since what looks at several of them then compiles to one pass over the memory; a channel
that looks at another one in a tensor makes the compiler write all of it first.
"""

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Planes: TypeAlias = tuple[Tensor, Tensor, Tensor]


def adjust_brightness(planes: Planes, *, factor: Tensor) -> Planes:
    """Multiply each sample by its factor (N,): 0 is black, 1 changes nothing."""
    red, green, blue = ((plane * _each(factor)).clamp(0, 1) for plane in planes)
    return red, green, blue


def adjust_contrast(planes: Planes, *, factor: Tensor) -> Planes:
    """Blend each sample with its own mean grey by its factor (N,): 0 is grey, 1 nothing."""
    mean = _grey(planes).mean(dim=(1, 2), keepdim=True)
    red, green, blue = (_blend(plane, mean, factor=_each(factor)) for plane in planes)
    return red, green, blue


def adjust_saturation(planes: Planes, *, factor: Tensor) -> Planes:
    """Blend each sample with its grey image by its factor (N,): 0 is colourless, 1 nothing."""
    grey = _grey(planes)
    red, green, blue = (_blend(plane, grey, factor=_each(factor)) for plane in planes)
    return red, green, blue


def shift_hue(planes: Planes, *, shift: Tensor) -> Planes:
    """Turn each sample's hue by its shift (N,), in turns of the colour circle."""
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma == 0, 1.0, chroma)
    from_green = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixths = torch.where(value == red, (green - blue) / safe, from_green)
    sixths = sixths + 6 * _each(shift)
    # HSV to RGB without branches; grey pixels have chroma 0 and stay what they are.
    around = (torch.remainder(sixths + start, 6) for start in (5, 3, 1))
    falls = (torch.minimum(place, 4 - place).clamp(0, 1) for place in around)
    red, green, blue = (value - chroma * fall for fall in falls)
    return red, green, blue


def adjust_sharpness(planes: Planes, *, factor: Tensor) -> Planes:
    """Blend each sample with its blur by its factor (N,): 0 is blurred, 1 nothing, 2 sharper."""
    inner = _inner(planes[0])
    red, green, blue = (
        torch.where(inner, _blend(plane, _blurred(plane), factor=_each(factor)), plane)
        for plane in planes
    )
    return red, green, blue


def _blurred(plane: Tensor) -> Tensor:
    # torchvision's kernel is 1/13 everywhere and 5/13 in the middle: a mean of nine, plus four.
    mean = F.avg_pool2d(plane.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    return (9 * mean + 4 * plane) / 13


def _inner(plane: Tensor) -> Tensor:
    """Mark (H, W) all but the one-pixel border, which torchvision leaves unsharpened."""
    row = torch.arange(plane.shape[1], device=plane.device).view(-1, 1)
    column = torch.arange(plane.shape[2], device=plane.device)
    return (row > 0) & (row < len(row) - 1) & (column > 0) & (column < len(column) - 1)


def _blend(plane: Tensor, other: Tensor, *, factor: Tensor) -> Tensor:
    # This form, not other + factor * (plane - other), is exact for the factor 1.
    return (plane * factor + other * (1 - factor)).clamp(0, 1)


def _grey(planes: Planes) -> Tensor:
    """Return luma (N, H, W) with torchvision's weights, ITU-R BT.601."""
    red, green, blue = planes
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _each(values: Tensor) -> Tensor:
    """View one value per sample, (N,), so that it broadcasts over a plane (N, H, W)."""
    return values.view(-1, 1, 1)
