"""Augmentation of a training batch on the device: every sample draws its own parameters.

``aiornot train --set hflip=0.5 --set degrees=10`` switches two of them on; ``TrainConfig`` lists
all of them, and all are off by default.

The order is fixed: crop, rotation, turns and flips (one warp), brightness, contrast, saturation,
hue, sharpness, the degradations (rescale, blur, JPEG), then the one normalisation, and erasing.
torchvision shuffles the colour operations per call, which would be a different graph per sample
here. Nothing reads a value back to the host, so a step never waits for the device, and
``compiled`` yields one graph per batch shape and set of switches, whatever the strengths.

Words: *images* are uint8 (N, H, W, 3) as the file stores them; *pixels* are float32 (N, 3, H, W)
in 0..1; *levels* are pixels times 255, rounded.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch._dynamo.exc as dynamo
from torch import Tensor

from aiornot.config import TrainConfig
from aiornot.training import boxes, colour, degrade, jpeg, warp

# One column of the draw each, after those of the crop.
_SINGLES = ("degrees", "hflip", "vflip", "brightness", "contrast", "saturation", "hue", "sharpness")
# Likewise, before those of the hole; "scale", "sigma" and "quality" are how much, not whether.
_LATER = ("dihedral", "rescale", "scale", "blur", "sigma", "jpeg", "quality", "re_prob")
# The strengths that travel as data: the names are fields of TrainConfig.
_NUMBERS = (
    *(*_SINGLES, "crop_scale", "sharpness_factor"),
    *("rescale", "rescale_min", "blur", "blur_sigma", "jpeg", "jpeg_quality", "re_prob"),
)
# Probabilities: the draw only says yes or no.
_CHANCES = ("hflip", "vflip", "sharpness", "rescale", "blur", "jpeg", "re_prob")
Transform = Callable[..., Tensor]
"""``augment``, or a function that stands in for it."""

_GRAPHS = 64
"""Batch shapes and sets of switches that one process may compile; torch's own limit is 8."""

_REASON = 200  # characters; torch adds pages of advice
_UNCOMPILED = (dynamo.TorchDynamoException, dynamo.FailOnRecompileLimitHit)

_WIDTHS = [boxes.DRAWS, len(_SINGLES), len(_LATER), boxes.DRAWS]

NUM_DRAWS = sum(_WIDTHS)
"""Uniform draws one sample needs, used or not: a switch must not move another one's draw."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strengths:
    """How strongly to augment, from one configuration: see ``strengths``.

    The switches are static: they decide which operations the graph holds. The numbers are data on
    the device: as Python floats every trial would compile a graph of its own.
    """

    numbers: Tensor
    """(17,) float32 on the device, in the order of ``_NUMBERS``."""
    tables: jpeg.Tables
    crop: bool
    rotate: bool
    dihedral: bool
    flip: bool
    colour: bool
    """Brightness, contrast or saturation: the ones that are off get the factor 1, exactly."""
    hue: bool
    sharpness: bool
    rescale: bool
    blur: bool
    jpeg: bool
    erase: bool

    def named(self) -> dict[str, float]:
        """Return the numbers by name, read from the device, with the crop's only if it is on."""
        values = dict(zip(_NUMBERS, self.numbers.tolist(), strict=True))
        if not self.crop:
            del values["crop_scale"]
        return values | {"dihedral": float(self.dihedral)}

    def off(self) -> bool:
        """Return whether nothing is switched on."""
        geometry = self.crop or self.rotate or self.dihedral or self.flip
        colour = self.colour or self.hue or self.sharpness
        return not (geometry or colour or self.degrades() or self.erase)

    def degrades(self) -> bool:
        """Return whether rescaling, blur or JPEG is switched on."""
        return self.rescale or self.blur or self.jpeg


class Parameters(NamedTuple):
    """What one batch drew; every tensor has N rows. None: the operation is switched off."""

    box: Tensor
    """(N, 4) top, left, height and width of the crop, in pixels, whole numbers as float32."""
    angle: Tensor
    """(N,) rotation in degrees, counter-clockwise as in torchvision."""
    hflip: Tensor
    """(N,) bool"""
    vflip: Tensor
    """(N,) bool"""
    eighth: Tensor | None
    """(N,) 0..7 as float32, see ``warp.turn``"""
    brightness: Tensor
    """(N,) factor, 1 changes nothing; so for contrast, saturation and sharpness."""
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    """(N,) shift in turns of the colour circle, -0.5..0.5."""
    sharpness: Tensor
    scale: Tensor | None
    """(N,) share of the side to scale down to, 1 changes nothing."""
    sigma: Tensor | None
    """(N,) standard deviation of the blur in pixels, 0 changes nothing."""
    quality: Tensor | None
    """(N,) of the JPEG, a whole number; infinite changes nothing."""
    hole: Tensor | None
    """(N, 4) the box to erase; empty for most."""


def strengths(config: TrainConfig, *, device: torch.device | str = "cpu") -> Strengths:
    """Read the strengths from a configuration and put the numbers on the device, once per run."""
    numbers = [float(getattr(config, name)) for name in _NUMBERS]
    return Strengths(
        numbers=torch.tensor(numbers, dtype=torch.float32, device=device),
        tables=jpeg.tables(device),
        crop=config.random_resized_crop,
        rotate=config.degrees > 0,
        dihedral=config.dihedral,
        flip=config.hflip > 0 or config.vflip > 0,
        colour=config.brightness > 0 or config.contrast > 0 or config.saturation > 0,
        hue=config.hue > 0,
        sharpness=config.sharpness > 0,
        rescale=config.rescale > 0,
        blur=config.blur > 0,
        jpeg=config.jpeg > 0,
        erase=config.re_prob > 0,
    )


def draw(count: int, *, generator: torch.Generator) -> Tensor:
    """Draw for ``count`` samples, (count, ``NUM_DRAWS``) on the device of the generator."""
    # Two blocks, the columns of the first release before the later ones: longer rows would give
    # every operation other numbers than the same seed gave it before.
    widths = (sum(_WIDTHS[:2]), sum(_WIDTHS[2:]))
    device = generator.device
    blocks = [torch.rand((count, width), generator=generator, device=device) for width in widths]
    return torch.cat(blocks, dim=1)


def augment(
    images: Tensor,
    *,
    draws: Tensor,
    strengths: Strengths,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Augment and normalise one training batch.

    Args:
        images: (N, H, W, 3) uint8.
        draws: (N, ``NUM_DRAWS``) float32, uniform in [0, 1); equal draws give equal batches.
        strengths: What is switched on, and how strongly.
        mean: (3,) mean the model was pretrained with, on the 0..1 scale.
        std: (3,) standard deviation likewise.
        dtype: Of the result. What autocast would make of it is cheaper made here.

    Returns:
        (N, 3, H, W), channels_last; equal to ``normalize`` when everything is off.
    """
    if strengths.off():
        return normalize(images, mean=mean, std=std).to(dtype)
    height, width = images.shape[1:3]
    assert height == width or not strengths.dihedral, "only a square can be turned by a quarter"
    chosen = choose(draws, strengths=strengths, height=height, width=width)
    planes = recolour(move(images, chosen, strengths=strengths), chosen, strengths=strengths)
    if strengths.degrades():
        pixels = degrade.degrade(
            torch.stack(planes, dim=1),
            scale=chosen.scale,
            sigma=chosen.sigma,
            quality=chosen.quality,
            tables=strengths.tables,
        )
        planes = _planes(pixels)
    normal = _joined(planes, mean=mean, std=std)
    if chosen.hole is not None:
        normal = boxes.erase(normal, hole=chosen.hole)
    return normal.to(dtype)


@functools.cache
def compiled(*, backend: str | Callable[..., Any] = "inductor") -> Transform:
    """Return ``augment``, compiled at its first call for each batch shape and set of switches.

    One for all runs of a process: a trial finds what an earlier one compiled. Where it cannot be
    compiled (no C++ compiler, no Triton) it warns once and goes on without.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    fast = torch.compile(augment, backend=backend, fullgraph=True, dynamic=False)
    broken = False

    def transform(images: Tensor, **how: Any) -> Tensor:
        nonlocal broken
        if not broken:
            try:
                return fast(images, **how)
            except _UNCOMPILED as error:
                broken = True
                reason = " ".join(str(error).split())[:_REASON]
                logging.getLogger(__name__).warning("augmentation is not compiled: %s", reason)
        return augment(images, **how)

    return transform


def transform(device: torch.device, *, compile: bool | None = None) -> Transform:
    """Return what to augment with: compiled or not; unsaid, on a GPU only."""
    wanted = device.type == "cuda" if compile is None else compile
    return compiled() if wanted else augment


def normalize(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise a batch for evaluation; shapes and units are those of ``augment``."""
    return _standardise(_to_pixels(_channels_first(images)), mean=mean, std=std)


def choose(draws: Tensor, *, strengths: Strengths, height: int, width: int) -> Parameters:
    """Turn uniform draws (N, ``NUM_DRAWS``) into each sample's own parameters."""
    for_box, singles, later, for_hole = draws.split(_WIDTHS, dim=1)
    columns = (*singles.unbind(1), *later.unbind(1))
    draw = dict(zip((*_SINGLES, *_LATER), columns, strict=True))
    limit = dict(zip(_NUMBERS, strengths.numbers.unbind(0), strict=True))
    on = {name: draw[name] < limit[name] for name in _CHANCES}
    crop_scale = limit["crop_scale"] if strengths.crop else None
    smallest, worst = limit["rescale_min"], limit["jpeg_quality"]
    scale = smallest + (1 - smallest) * draw["scale"]
    sigma = limit["blur_sigma"] * draw["sigma"]
    quality = worst + boxes.whole_number(draw["quality"], 100 - worst)
    hole = None
    if strengths.erase:
        hole = boxes.choose_hole(for_hole, wanted=on["re_prob"], height=height, width=width)
    return Parameters(
        box=boxes.choose_box(for_box, crop_scale=crop_scale, height=height, width=width),
        angle=_within(draw["degrees"], limit["degrees"]),
        hflip=on["hflip"],
        vflip=on["vflip"],
        eighth=torch.floor(8 * draw["dihedral"]) if strengths.dihedral else None,
        brightness=_factor(draw["brightness"], limit["brightness"]),
        contrast=_factor(draw["contrast"], limit["contrast"]),
        saturation=_factor(draw["saturation"], limit["saturation"]),
        hue=_within(draw["hue"], limit["hue"]),
        sharpness=torch.where(on["sharpness"], limit["sharpness_factor"], 1.0),
        scale=torch.where(on["rescale"], scale, 1.0) if strengths.rescale else None,
        sigma=torch.where(on["blur"], sigma, 0.0) if strengths.blur else None,
        quality=torch.where(on["jpeg"], quality, torch.inf) if strengths.jpeg else None,
        hole=hole,
    )


def move(images: Tensor, chosen: Parameters, *, strengths: Strengths) -> colour.Planes:
    """Apply crop, rotation, turns and flips to (N, H, W, 3) uint8 images; return their planes."""
    stored = _channels_first(images)
    hflip, vflip, eighth = chosen.hflip, chosen.vflip, chosen.eighth
    if strengths.crop or strengths.rotate:
        box, angle = chosen.box, chosen.angle
        red, green, blue = warp.warp(
            stored, box=box, angle=angle, eighth=eighth, hflip=hflip, vflip=vflip
        )
        return _to_pixels(red), _to_pixels(green), _to_pixels(blue)
    # Exact to the bit, and on uint8 a quarter of the traffic; a warp rounds coordinates.
    if eighth is not None:
        stored = warp.turn(stored, eighth=eighth)
    if strengths.flip:
        stored = warp.flip(stored, horizontal=hflip, vertical=vflip)
    return _planes(_to_pixels(stored))


def recolour(planes: colour.Planes, chosen: Parameters, *, strengths: Strengths) -> colour.Planes:
    """Apply the colour operations, in the order of the module docstring."""
    if strengths.colour:
        planes = colour.adjust_brightness(planes, factor=chosen.brightness)
        planes = colour.adjust_contrast(planes, factor=chosen.contrast)
        planes = colour.adjust_saturation(planes, factor=chosen.saturation)
    if strengths.hue:
        planes = colour.shift_hue(planes, shift=chosen.hue)
    if strengths.sharpness:
        planes = colour.adjust_sharpness(planes, factor=chosen.sharpness)
    return planes


def _within(draw: Tensor, limit: Tensor) -> Tensor:
    """Spread uniform draws over [-limit, limit]; exactly 0 for the limit 0."""
    return limit * (2 * draw - 1)


def _factor(draw: Tensor, limit: Tensor) -> Tensor:
    """Spread uniform draws over [1 - limit, 1 + limit], never below 0."""
    return (1 + _within(draw, limit)).clamp(min=0)


def _channels_first(images: Tensor) -> Tensor:
    """View (N, H, W, 3) as (N, 3, H, W): already channels_last, nothing is copied."""
    return images.permute(0, 3, 1, 2)


def _to_pixels(stored: Tensor) -> Tensor:
    return stored.to(torch.float32) / 255


def _planes(pixels: Tensor) -> colour.Planes:
    red, green, blue = pixels.unbind(1)
    return red, green, blue


def _standardise(pixels: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise with the model's mean and std; this and its twin for planes are all that do."""
    normal = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return normal.contiguous(memory_format=torch.channels_last)


def _joined(planes: colour.Planes, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise planes and join them, (N, 3, H, W), channels_last."""
    centres, widths = mean.unbind(), std.unbind()
    normal = [(plane - m) / s for plane, m, s in zip(planes, centres, widths, strict=True)]
    return torch.stack(normal, dim=3).permute(0, 3, 1, 2)
