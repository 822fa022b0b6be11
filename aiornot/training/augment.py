"""Augmentation of a training batch on the device: every sample draws its own parameters.

``aiornot train --set hflip=0.5 --set degrees=10`` switches two of them on; ``TrainConfig`` lists
all of them, and all are off by default.

The order is fixed: crop, rotation, flips (one warp), brightness, contrast, saturation, hue,
sharpness, and then the one normalisation. torchvision shuffles the colour operations per call,
which would be a different graph per sample here. Nothing reads a value back to the host, so a
step never waits for the device, and ``torch.compile(augment, fullgraph=True, dynamic=False)``
yields one graph per batch shape and set of switches, whatever the strengths.

Words: *images* are uint8 (N, H, W, 3) as the file stores them; *pixels* are float32 (N, 3, H, W)
in 0..1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aiornot.config import TrainConfig

# RandomResizedCrop of torchvision: ten tries, aspect (width / height) drawn on a log scale.
TRIES = 10
RATIO = (3 / 4, 4 / 3)

# One column of the draw each, after the four of every try.
_SINGLES = ("degrees", "hflip", "vflip", "brightness", "contrast", "saturation", "hue", "sharpness")
# The strengths that travel as data: the names are fields of TrainConfig.
_NUMBERS = (*_SINGLES, "crop_scale", "sharpness_factor")

NUM_DRAWS = 4 * TRIES + len(_SINGLES)
"""Uniform draws one sample needs, used or not: a switch must not move another one's draw."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strengths:
    """How strongly to augment, from one configuration: see ``strengths``.

    The switches are static: they decide which operations the graph holds. The numbers are data on
    the device: as Python floats every trial would compile a graph of its own.
    """

    numbers: Tensor
    """(10,) float32 on the device, in the order of ``_NUMBERS``."""
    crop: bool
    rotate: bool
    flip: bool
    colour: bool
    """Brightness, contrast or saturation: the ones that are off get the factor 1, exactly."""
    hue: bool
    sharpness: bool

    def off(self) -> bool:
        """Return whether nothing is switched on."""
        geometry = self.crop or self.rotate or self.flip
        return not (geometry or self.colour or self.hue or self.sharpness)


class Parameters(NamedTuple):
    """What one batch drew; every tensor has N rows."""

    box: Tensor
    """(N, 4) top, left, height and width of the crop, in pixels, whole numbers as float32."""
    angle: Tensor
    """(N,) rotation in degrees, counter-clockwise as in torchvision."""
    hflip: Tensor
    """(N,) bool"""
    vflip: Tensor
    """(N,) bool"""
    brightness: Tensor
    """(N,) factor, 1 changes nothing; so for contrast, saturation and sharpness."""
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    """(N,) shift in turns of the colour circle, -0.5..0.5."""
    sharpness: Tensor


def strengths(config: TrainConfig, *, device: torch.device | str = "cpu") -> Strengths:
    """Read the strengths from a configuration and put the numbers on the device, once per run."""
    numbers = [float(getattr(config, name)) for name in _NUMBERS]
    return Strengths(
        numbers=torch.tensor(numbers, dtype=torch.float32, device=device),
        crop=config.random_resized_crop,
        rotate=config.degrees > 0,
        flip=config.hflip > 0 or config.vflip > 0,
        colour=config.brightness > 0 or config.contrast > 0 or config.saturation > 0,
        hue=config.hue > 0,
        sharpness=config.sharpness > 0,
    )


def augment(
    images: Tensor, *, draws: Tensor, strengths: Strengths, mean: Tensor, std: Tensor
) -> Tensor:
    """Augment and normalise one training batch.

    Args:
        images: (N, H, W, 3) uint8.
        draws: (N, ``NUM_DRAWS``) float32, uniform in [0, 1); equal draws give equal batches.
        strengths: What is switched on, and how strongly.
        mean: (3,) mean the model was pretrained with, on the 0..1 scale.
        std: (3,) standard deviation likewise.

    Returns:
        (N, 3, H, W) float32, channels_last; equal to ``normalize`` when everything is off.
    """
    if strengths.off():
        return normalize(images, mean=mean, std=std)
    height, width = images.shape[1:3]
    chosen = choose(draws, strengths=strengths, height=height, width=width)
    pixels = recolour(move(images, chosen, strengths=strengths), chosen, strengths=strengths)
    return _standardise(pixels, mean=mean, std=std)


def normalize(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise a batch for evaluation; shapes and units are those of ``augment``."""
    return _standardise(_to_pixels(_channels_first(images)), mean=mean, std=std)


def choose(draws: Tensor, *, strengths: Strengths, height: int, width: int) -> Parameters:
    """Turn uniform draws (N, ``NUM_DRAWS``) into each sample's own parameters."""
    limit = dict(zip(_NUMBERS, strengths.numbers.unbind(0), strict=True))
    draw = dict(zip(_SINGLES, draws[:, 4 * TRIES :].unbind(1), strict=True))
    scale = limit["crop_scale"] if strengths.crop else None
    return Parameters(
        box=choose_box(draws[:, : 4 * TRIES], crop_scale=scale, height=height, width=width),
        angle=_within(draw["degrees"], limit["degrees"]),
        hflip=draw["hflip"] < limit["hflip"],
        vflip=draw["vflip"] < limit["vflip"],
        brightness=_factor(draw["brightness"], limit["brightness"]),
        contrast=_factor(draw["contrast"], limit["contrast"]),
        saturation=_factor(draw["saturation"], limit["saturation"]),
        hue=_within(draw["hue"], limit["hue"]),
        sharpness=torch.where(
            draw["sharpness"] < limit["sharpness"], limit["sharpness_factor"], 1.0
        ),
    )


def move(images: Tensor, chosen: Parameters, *, strengths: Strengths) -> Tensor:
    """Apply crop, rotation and flips to (N, H, W, 3) uint8 images; return pixels."""
    stored = _channels_first(images)
    if strengths.crop or strengths.rotate:
        return warp(_to_pixels(stored), chosen)
    if strengths.flip:
        # Exact to the bit, and on uint8 a quarter of the traffic; a warp rounds coordinates.
        return _to_pixels(flip(stored, horizontal=chosen.hflip, vertical=chosen.vflip))
    return _to_pixels(stored)


def recolour(pixels: Tensor, chosen: Parameters, *, strengths: Strengths) -> Tensor:
    """Apply the colour operations to pixels, in the order of the module docstring."""
    if strengths.colour:
        pixels = adjust_brightness(pixels, factor=chosen.brightness)
        pixels = adjust_contrast(pixels, factor=chosen.contrast)
        pixels = adjust_saturation(pixels, factor=chosen.saturation)
    if strengths.hue:
        pixels = shift_hue(pixels, shift=chosen.hue)
    if strengths.sharpness:
        pixels = adjust_sharpness(pixels, factor=chosen.sharpness)
    return pixels


def choose_box(tries: Tensor, *, crop_scale: Tensor | None, height: int, width: int) -> Tensor:
    """Choose each sample's crop as torchvision's RandomResizedCrop does.

    Args:
        tries: (N, 4 * ``TRIES``) uniform draws: area, aspect, top and left of every try.
        crop_scale: Smallest area as a share of the image, a scalar; None keeps the whole image.

    Returns:
        (N, 4) top, left, height and width in pixels: the first try that fits, else torchvision's
        fallback, the largest central crop with an allowed aspect.
    """
    if crop_scale is None:
        whole = tries.new_zeros((tries.shape[0], 2))
        return torch.cat((whole, whole[:, :1] + height, whole[:, 1:] + width), dim=1)
    boxes, fits = _tried_boxes(tries, crop_scale=crop_scale, height=height, width=width)
    first = fits.int().argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 4)
    columns = boxes.gather(1, first).squeeze(1).unbind(1)
    # Numbers, not a tensor of them: that would be a copy from the host, which waits for the device.
    fallback = _central_box(height, width)
    found = fits.any(dim=1)
    pairs = zip(columns, fallback, strict=True)
    return torch.stack([torch.where(found, drawn, other) for drawn, other in pairs], dim=1)


def _tried_boxes(
    tries: Tensor, *, crop_scale: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return the box of every try, (N, ``TRIES``, 4), and whether it fits, (N, ``TRIES``)."""
    for_area, for_ratio, for_top, for_left = tries.reshape(-1, 4, TRIES).unbind(1)
    low, high = (math.log(bound) for bound in RATIO)
    area = height * width * (crop_scale + (1 - crop_scale) * for_area)
    ratio = torch.exp(low + (high - low) * for_ratio)
    wide, tall = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    top, left = _whole_number(for_top, height - tall), _whole_number(for_left, width - wide)
    return torch.stack((top, left, tall, wide), dim=2), fits


def _central_box(height: int, width: int) -> tuple[float, float, float, float]:
    """Return the largest central (top, left, height, width) whose aspect lies within ``RATIO``."""
    tall, wide = height, width
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return float((height - tall) // 2), float((width - wide) // 2), float(tall), float(wide)


def _whole_number(draw: Tensor, largest: Tensor) -> Tensor:
    """Spread uniform draws evenly over 0, 1, ..., largest."""
    # The largest float32 draw is 1 - 2**-24; its product with any whole number below 2**22 still
    # rounds to less than that number (all were tried), so that the floor needs no bound.
    return torch.floor(draw * (largest + 1))


def _within(draw: Tensor, limit: Tensor) -> Tensor:
    """Spread uniform draws over [-limit, limit]; exactly 0 for the limit 0."""
    return limit * (2 * draw - 1)


def _factor(draw: Tensor, limit: Tensor) -> Tensor:
    """Spread uniform draws over [1 - limit, 1 + limit], never below 0."""
    return (1 + _within(draw, limit)).clamp(min=0)


def warp(pixels: Tensor, chosen: Parameters) -> Tensor:
    """Crop to the box at full size, rotate about the centre, flip; all in one interpolation.

    What the rotation brings in from outside the cropped frame is black. Three interpolations
    would blur three times, which a detector of generated images can ill afford.
    """
    height, width = pixels.shape[2:]
    x, y = _rotated_grid(chosen, height=height, width=width)
    inside = (x.abs() <= 1) & (y.abs() <= 1)
    top, left, tall, wide = (_each(column)[..., 0] for column in chosen.box.unbind(1))
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


def _rotated_grid(chosen: Parameters, *, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Map every output pixel back into the cropped frame, whose edges are at -1 and 1.

    float32 throughout: float16 coordinates cost up to 4 of 255 levels.

    Returns:
        x and y, each (N, H, W).
    """
    device = chosen.angle.device
    x = (torch.arange(width, device=device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device) * 2 + 1) / height - 1
    # The flip is applied last, so it is undone first.
    x = x.view(1, 1, -1) * torch.where(chosen.hflip, -1.0, 1.0).view(-1, 1, 1)
    y = y.view(1, -1, 1) * torch.where(chosen.vflip, -1.0, 1.0).view(-1, 1, 1)
    radians = torch.deg2rad(chosen.angle).view(-1, 1, 1)
    cos, sin = torch.cos(radians), torch.sin(radians)
    # A turn is a turn in pixels: the units of x and y differ unless the image is square.
    return cos * x - sin * y * (height / width), sin * x * (width / height) + cos * y


def flip(stored: Tensor, *, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Flip the samples of a batch (N, C, H, W) of any type that (N,) bool tensors name."""
    stored = torch.where(_each(horizontal), stored.flip(3), stored)
    return torch.where(_each(vertical), stored.flip(2), stored)


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


def _channels_first(images: Tensor) -> Tensor:
    """View (N, H, W, 3) as (N, 3, H, W): already channels_last, nothing is copied."""
    return images.permute(0, 3, 1, 2)


def _to_pixels(stored: Tensor) -> Tensor:
    return stored.to(torch.float32) / 255


def _standardise(pixels: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise with the model's mean and std; the only place that does."""
    normal = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return normal.contiguous(memory_format=torch.channels_last)
