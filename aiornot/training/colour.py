"""Colour operations on a batch on the device, torchvision's, each sample by its own factor.

*Pixels* are float32 (N, 3, H, W) in 0..1, not yet normalised: after normalisation the clamps
would cut off most of the values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def adjust_brightness(pixels: Tensor, *, factor: Tensor) -> Tensor:
    """Multiply each sample by its factor (N,): 0 is black, 1 changes nothing."""
    return (pixels * _each(factor)).clamp(0, 1)


def adjust_contrast(pixels: Tensor, *, factor: Tensor) -> Tensor:
    """Blend each sample with its own mean grey by its factor (N,): 0 is grey, 1 nothing."""
    return _blend(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), factor=factor)


def adjust_saturation(pixels: Tensor, *, factor: Tensor) -> Tensor:
    """Blend each sample with its grey image by its factor (N,): 0 is colourless, 1 nothing."""
    return _blend(pixels, _grey(pixels), factor=factor)


def shift_hue(pixels: Tensor, *, shift: Tensor) -> Tensor:
    """Turn each sample's hue by its shift (N,), in turns of the colour circle."""
    red, green, blue = pixels.unbind(1)
    value, chroma = pixels.amax(1), pixels.amax(1) - pixels.amin(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    from_green = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixths = torch.where(value == red, (green - blue) / safe, from_green)
    sixths = sixths + 6 * shift.view(-1, 1, 1)
    # HSV to RGB without branches; grey pixels have chroma 0 and stay what they are.
    around = [torch.remainder(sixths + start, 6) for start in (5, 3, 1)]
    falls = [torch.minimum(place, 4 - place).clamp(0, 1) for place in around]
    return torch.stack([value - chroma * fall for fall in falls], dim=1)


def adjust_sharpness(pixels: Tensor, *, factor: Tensor) -> Tensor:
    """Blend each sample with its blur by its factor (N,): 0 is blurred, 1 nothing, 2 sharper."""
    # torchvision's kernel is 1/13 everywhere and 5/13 in the middle: a mean of nine, plus four.
    blurred = (9 * F.avg_pool2d(pixels, 3, stride=1, padding=1) + 4 * pixels) / 13
    blended = _blend(pixels, blurred, factor=factor)
    return torch.where(_inner(pixels), blended, pixels)


def _inner(pixels: Tensor) -> Tensor:
    """Mark (H, W) all but the one-pixel border, which torchvision leaves unsharpened."""
    row = torch.arange(pixels.shape[2], device=pixels.device).view(-1, 1)
    column = torch.arange(pixels.shape[3], device=pixels.device)
    return (row > 0) & (row < len(row) - 1) & (column > 0) & (column < len(column) - 1)


def _blend(pixels: Tensor, other: Tensor, *, factor: Tensor) -> Tensor:
    # This form, not other + factor * (pixels - other), is exact for the factor 1.
    return (pixels * _each(factor) + other * _each(1 - factor)).clamp(0, 1)


def _grey(pixels: Tensor) -> Tensor:
    """Return luma (N, 1, H, W) with torchvision's weights, ITU-R BT.601."""
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _each(values: Tensor) -> Tensor:
    """View one value per sample, (N,), so that it broadcasts over (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)
