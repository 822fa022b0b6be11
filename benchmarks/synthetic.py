"""Images that a model can learn to tell apart, made in seconds at any size, as a prepared file.

Rings are generated, discs of the same area and brightness are real, both on correlated noise: no
flip, crop or change of colour gives the class away. ``train_step.py`` and ``gpu_throughput.py``
train on it; what they time does not depend on what the images show.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from aiornot.data import hdf5

CHUNK = 64
MOTIFS = 6
CONTRAST = 0.25
NOISE = ((4, 0.12), (16, 0.08), (64, 0.05))
"""Cells along a side of the background, and their standard deviation."""
HOLE = 0.714
"""Inner over outer radius of a ring, which leaves it half of the disc's area."""


def write(
    path: Path,
    *,
    size: int,
    train: int,
    val: int,
    device: torch.device,
    seed: int = 0,
    wrong: float = 0.0,
) -> Path:
    """Write a prepared file whose classes alternate; returns ``path``.

    Args:
        path: Of the file to make.
        size: Side of the images in pixels.
        train: Number of training images.
        val: Number of validation images.
        device: Where to draw; the images are the same on each kind of device only.
        seed: Of images and wrong labels.
        wrong: Share of the training labels that are turned round; validation's are all true.
    """
    shows = {split: np.arange(n) % 2 for split, n in (("train", train), ("val", val), ("test", 2))}
    turned = np.random.default_rng(seed).random(train) < wrong
    labels = shows | {"train": shows["train"] ^ turned}
    ids = {split: [f"{split}-{row}" for row in range(len(shows[split]))] for split in shows}
    # As far as a search and a bundle ask.
    attributes = {"source": "synthetic", "settings": "{}", "fingerprint": f"synthetic {seed}"}
    attributes |= {"geometry": "resize", "resample": "bicubic"}
    slots = hdf5.create(path, size=size, labels=labels, ids=ids, attributes=attributes)
    generator = torch.Generator(device).manual_seed(seed)
    with path.open("r+b") as file:
        for split, where in slots.items():
            for start in range(0, where.count, CHUNK):
                rings = torch.from_numpy(shows[split][start : start + CHUNK]).bool().to(device)
                for row, image in enumerate(draw(rings, size, generator).cpu().numpy(), start):
                    hdf5.write_image(file.fileno(), where, row, image)
    return path


def draw(rings: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one image per element of ``rings`` (N,) bool; returns (N, size, size, 3) uint8."""
    shape = (len(rings), size, size)
    motifs = torch.zeros(shape, device=rings.device)
    place = (torch.arange(size, device=rings.device) + 0.5) / size
    ring = rings.view(-1, 1, 1)
    for _ in range(MOTIFS):
        x, y, drawn = torch.rand(
            (3, len(rings), 1, 1), generator=generator, device=rings.device
        ).unbind(0)
        away = torch.hypot(place.view(1, 1, -1) - x, place.view(1, -1, 1) - y) / (
            0.03 + 0.03 * drawn
        )
        inside = (away < 1) & ~(ring & (away <= HOLE))
        motifs += inside * torch.where(ring, 1 / (1 - HOLE**2), 1.0)
    pixels = _background(shape, generator) + CONTRAST * motifs.unsqueeze(1)
    return (pixels.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _background(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Make noise (N, 3, size, size) of several grains around .45."""
    count, size, _ = shape
    total = torch.full((count, 3, size, size), 0.45, device=generator.device)
    for cells, deviation in NOISE:
        grain = torch.randn((count, 3, cells, cells), generator=generator, device=generator.device)
        total += deviation * F.interpolate(grain, size=(size, size), mode="bilinear")
    return total
