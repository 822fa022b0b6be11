"""The Python of a model card: what loads a bundle and predicts with timm, torch and Pillow alone.

Tests take it out of a card and run it where aiornot cannot be imported.
"""

LOADING = """\
import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageOps

folder = Path(".")
said = json.loads((folder / "bundle.json").read_text())
prepared, calibration = said["preprocessing"], said["calibration"]
# Without pretrained=True timm builds the architecture and leaves its weights random.
model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()

image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
pixels, size = np.array(image.convert("RGB")), prepared["size"]
# PREPARE
mean, std = (torch.tensor(prepared[name]).view(3, 1, 1) for name in ("mean", "std"))
inputs = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
with torch.inference_mode():
    logit = model(inputs[None])
probability = torch.sigmoid(logit / calibration["temperature"]).item()
print(probability, said["classes"][probability >= calibration["threshold"]])
"""
"""``# PREPARE`` stands for one of ``PREPARING``."""

_BICUBIC = """\
if pixels.shape[:2] != (size, size):
    pixels = np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
"""
_FAST = """\
if pixels.shape[:2] != (size, size):
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    planes = torch.nn.functional.interpolate(planes, (size, size), mode="bicubic", antialias=True)
    pixels = planes[0].permute(1, 2, 0).contiguous().numpy()
"""
_CROP = """\
top, left = (max(side - size, 0) // 2 for side in pixels.shape[:2])
pixels = pixels[top : top + size, left : left + size]
for axis, side in enumerate(pixels.shape[:2]):
    margins = [(0, 0), (0, 0), (0, 0)]
    margins[axis] = ((size - side) // 2, size - side - (size - side) // 2)
    pixels = np.pad(pixels, margins, mode="reflect" if side > 1 else "edge")
"""
PREPARING = {
    ("resize", "bicubic"): _BICUBIC,
    ("resize", "fast"): _FAST,
    ("crop", "bicubic"): _CROP,
    ("crop", "fast"): _CROP,
}
"""Text by geometry and resampling: ``data/images.py`` in a few lines."""
