"""Rectangles drawn per sample: the crop that is kept and the hole that is erased.

Both try ten times and take the first rectangle that fits, as torchvision and timm do, but on the
device: all tries of all samples at once. A box is top, left, height and width in pixels, whole
numbers as float32.
"""

import math

import torch
from torch import Tensor

TRIES = 10
DRAWS = 4 * TRIES
"""Uniform draws one box needs: area, aspect, top and left of every try."""

# RandomResizedCrop of torchvision; the aspect (width / height) is drawn on a log scale.
RATIO = (3 / 4, 4 / 3)
# RandomErasing of timm, share of the image and aspect.
HOLE_AREA = (0.02, 1 / 3)
HOLE_RATIO = (0.3, 1 / 0.3)


def choose_box(tries: Tensor, *, crop_scale: Tensor | None, height: int, width: int) -> Tensor:
    """Choose each sample's crop as torchvision's RandomResizedCrop does.

    Args:
        tries: (N, ``DRAWS``) uniform draws.
        crop_scale: Smallest area as a share of the image, a scalar; None keeps the whole image.

    Returns:
        (N, 4): the first try that fits, else torchvision's fallback, the largest central crop
        with an allowed aspect.
    """
    if crop_scale is None:
        whole = tries.new_zeros((tries.shape[0], 2))
        return torch.cat((whole, whole[:, :1] + height, whole[:, 1:] + width), dim=1)
    share = crop_scale + (1 - crop_scale) * tries[:, :TRIES]
    boxes = _tried_boxes(tries, share=share, ratio=RATIO, height=height, width=width)
    tall, wide = boxes[..., 2], boxes[..., 3]
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    return _first(boxes, fits=fits, otherwise=_central_box(height, width))


def choose_hole(tries: Tensor, *, wanted: Tensor, height: int, width: int) -> Tensor:
    """Choose the rectangle to erase as timm's RandomErasing does; the other samples' is empty.

    Args:
        tries: (N, ``DRAWS``) uniform draws.
        wanted: (N,) bool
    """
    low, high = HOLE_AREA
    share = low + (high - low) * tries[:, :TRIES]
    boxes = _tried_boxes(tries, share=share, ratio=HOLE_RATIO, height=height, width=width)
    fits = (boxes[..., 2] < height) & (boxes[..., 3] < width) & wanted.view(-1, 1)
    return _first(boxes, fits=fits, otherwise=(0.0, 0.0, 0.0, 0.0))


def erase(normal: Tensor, *, hole: Tensor) -> Tensor:
    """Set each sample's hole (N, 4) in a normalised batch to 0, the mean colour.

    0 is also what the model's own padding shows it. timm's other fillings are noise, and noise
    inside a sharp frame is a trace of its own to a detector that looks for traces.
    """
    top, left, tall, wide = (column.view(-1, 1, 1, 1) for column in hole.unbind(1))
    row = torch.arange(normal.shape[2], device=normal.device).view(-1, 1)
    column = torch.arange(normal.shape[3], device=normal.device)
    rows, columns = (row >= top) & (row < top + tall), (column >= left) & (column < left + wide)
    # masked_fill would do the same, and lose the memory format on the way.
    return torch.where(rows & columns, 0.0, normal)


def _tried_boxes(
    tries: Tensor, *, share: Tensor, ratio: tuple[float, float], height: int, width: int
) -> Tensor:
    """Return the box of every try, (N, ``TRIES``, 4), for its ``share`` of the area."""
    _, for_ratio, for_top, for_left = tries.reshape(-1, 4, TRIES).unbind(1)
    low, high = (math.log(bound) for bound in ratio)
    area, aspect = height * width * share, torch.exp(low + (high - low) * for_ratio)
    wide, tall = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
    top, left = whole_number(for_top, height - tall), whole_number(for_left, width - wide)
    return torch.stack((top, left, tall, wide), dim=2)


def _first(boxes: Tensor, *, fits: Tensor, otherwise: tuple[float, float, float, float]) -> Tensor:
    """Return the first box of each sample that fits, (N, 4), or the other one."""
    first = fits.int().argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 4)
    columns = boxes.gather(1, first).squeeze(1).unbind(1)
    # Numbers, not a tensor of them: that would be a copy from the host, which waits for the device.
    found = fits.any(dim=1)
    pairs = zip(columns, otherwise, strict=True)
    return torch.stack([torch.where(found, drawn, other) for drawn, other in pairs], dim=1)


def _central_box(height: int, width: int) -> tuple[float, float, float, float]:
    """Return the largest central (top, left, height, width) whose aspect lies within ``RATIO``."""
    tall, wide = height, width
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return float((height - tall) // 2), float((width - wide) // 2), float(tall), float(wide)


def whole_number(draw: Tensor, largest: Tensor) -> Tensor:
    """Spread uniform draws evenly over 0, 1, ..., largest."""
    # The largest float32 draw is 1 - 2**-24; its product with any whole number below 2**22 still
    # rounds to less than that number (all were tried), so that the floor needs no bound.
    return torch.floor(draw * (largest + 1))
