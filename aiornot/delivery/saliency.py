"""Where a model looks: how its logit changes as one place of the image after the other is covered.

``aiornot app BUNDLE`` paints it over the image. Occlusion asks nothing of the model but its answer,
so it holds for every architecture; a map of the last convolution would need one, and would show
that layer's few large cells.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from aiornot.data.images import Pixels
from aiornot.delivery.bundle import Bundle
from aiornot.training import augment

COARSE, FINE = 6, 12
"""Places per side of a quick map and of a good one."""

LEAST_CELL = 4
"""Pixels of a place per side, at least: a smaller image has fewer places."""

BATCH = 8

FLAT = 0.1
"""A map whose largest change of the logit is below this tells nothing: 2.5 points at the most."""

_SIDE = 384  # a smaller image is enlarged before it is painted on, by whole pixels
_FULL = 0.5  # change of the logit from which the paint is full, 12 points at the most
_STRONGEST = 0.75  # opacity of full paint
_REAL = np.array([37, 99, 168], dtype=np.float32)  # as in delivery/cards.py
_GENERATED = np.array([194, 87, 26], dtype=np.float32)

Progress = Callable[[int, int], None]
"""Called with the places that were covered and how many there are."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Occlusion:
    """The logit of an image, and its logits with one place covered each."""

    logit: float
    covered: np.ndarray
    """(G, G) float64, rows from the top."""

    @property
    def change(self) -> np.ndarray:
        """(G, G): what each place adds to the logit; above 0 it speaks for *generated*."""
        return self.logit - self.covered

    @property
    def is_flat(self) -> bool:
        """Whether no place alone matters."""
        return bool(np.abs(self.change).max() < FLAT)

    def strongest(self) -> tuple[int, int]:
        """Return row and column of the place that matters most."""
        row, column = np.unravel_index(np.abs(self.change).argmax(), self.change.shape)
        return int(row), int(column)


@torch.inference_mode()
def occlude(
    bundle: Bundle,
    pixels: Pixels,
    *,
    grid: int = FINE,
    progress: Progress = lambda done, total: None,
) -> Occlusion:
    """Cover each place of an image and ask the model again, ``grid`` squared times and once more.

    A place fades into the mean colour of the image: texture, contrast and colour go, and no edge
    comes that the model could take for a trace. The fades of all places add up to one.

    Args:
        bundle: From ``bundle.load``.
        pixels: (S, S, 3), as the model sees it.
        grid: Places per side; fewer where they would be smaller than ``LEAST_CELL``.
        progress: Called after each batch.
    """
    size = pixels.shape[0]
    inputs = torch.from_numpy(pixels[None]).to(bundle.device)
    image = augment.normalize(inputs, mean=bundle.mean, std=bundle.std)
    mean = image.mean(dim=(2, 3), keepdim=True)
    fades = torch.from_numpy(_fades(size, min(grid, max(1, size // LEAST_CELL)))).to(image)
    grid = len(fades)
    # (G * G, S, S) would be 150 MB at 512 pixels: the masks of a batch are made when it comes.
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).reshape(-1, 2)
    found = [_ask(bundle, image)]
    for batch in places.split(BATCH):
        rows, columns = fades[batch[:, 0]], fades[batch[:, 1]]
        masks = rows[:, None, :, None] * columns[:, None, None, :]
        found.append(_ask(bundle, torch.lerp(image, mean, masks)))
        progress(sum(map(len, found)) - 1, len(places))
    logits = np.concatenate(found)
    return Occlusion(logit=float(logits[0]), covered=logits[1:].reshape(grid, grid))


def _fades(size: int, grid: int) -> np.ndarray:
    """Return (grid, size) float32: the share of each pixel of a side that belongs to each place.

    Raised cosines two places wide; at every pixel they add up to one.
    """
    cell = size / grid
    offsets = np.arange(size) + 0.5 - (np.arange(grid)[:, None] + 0.5) * cell
    fades = 0.5 + 0.5 * np.cos(np.pi * np.clip(offsets / cell, -1, 1))
    return np.asarray(fades / fades.sum(axis=0), dtype=np.float32)


def _ask(bundle: Bundle, images: torch.Tensor) -> np.ndarray:
    """Return logits (n,) float64 of normalised images (n, 3, S, S)."""
    output: torch.Tensor = bundle.module(images.contiguous(memory_format=torch.channels_last))
    return output.double().flatten().cpu().numpy()


def paint(pixels: Pixels, change: np.ndarray) -> Pixels:
    """Lay a map over a pale image: orange speaks for *generated*, blue for *real*.

    The strongest place has full paint, unless it hardly matters itself.

    Args:
        pixels: (S, S, 3).
        change: (G, G), of an ``Occlusion``.

    Returns:
        (T, T, 3), S enlarged by a whole number where it is small.
    """
    times = max(1, -(-_SIDE // len(pixels)))
    large = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1).astype(np.float32)
    grey = large.mean(axis=2, keepdims=True)
    pale = 0.5 * grey + 0.2 * large + 0.3 * 255
    strength = change / max(_FULL, float(np.abs(change).max()))
    small = Image.fromarray(strength.astype(np.float32))
    smooth = np.asarray(small.resize((len(large), len(large)), Image.Resampling.BICUBIC))
    opacity = _STRONGEST * np.clip(np.abs(smooth), 0, 1)[:, :, None]
    colour = np.where(smooth[:, :, None] > 0, _GENERATED, _REAL)
    return np.asarray(pale * (1 - opacity) + colour * opacity + 0.5, dtype=np.uint8)
