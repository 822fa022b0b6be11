"""The picture of what was seen inside a step: a row per layer, strips of magnitudes and a bar.

Drawn with Pillow: matplotlib takes a fifth of a second for such a figure, which is as much as
three steps of a small model on a CPU.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aiornot.config import TICKS
from aiornot.training.watch import BINS, EDGES, Findings, Histogram, Watch, save

ROWS = 64
"""Of more layers than these only some are shown, evenly chosen."""

TARGET = 1e-3
"""What the ratio of an update to its weights should be about; ten times off is marked."""

_UNSHOWN = ("Norm", "Drop", "Flatten")
"""Modules whose outputs are in the file only: there would be two rows for each layer."""

# Pixels.
_ROW, _TOP, _BOTTOM, _GAP = 18, 84, 36, 32
_STRIP, _SHARES, _BARS = 264, 46, 210

_INK, _FAINT, _GRID, _RED = "#1c2733", "#75828f", "#d5dce4", "#c8102e"
_NEAR, _FAR = "#4a8fb5", "#e0a030"
_SHADES = np.array([(238, 242, 246), (190, 213, 235), (107, 160, 209), (39, 94, 156), (10, 38, 84)])
_COLOURS = 160

_TAIL = 1e-3
"""Bins at either end that hold a smaller share of every row are not shown."""

_LEAST, _MOST = -6, 0
"""Of the bars, log10."""


def watch(ticks: frozenset[int], folder: Path) -> Watch:
    """Return a watch that leaves a file and a picture of each of its ticks in a folder."""

    def keep(findings: Findings) -> None:
        draw(findings, save(findings, folder).with_suffix(".png"))

    return Watch(ticks=ticks, keep=keep)


def draw(findings: Findings, path: Path) -> None:
    """Write the picture as a PNG."""
    rows, total = chosen(findings)
    font = _font(12.5)
    names = int(max(map(font.getlength, rows), default=0)) + _GAP
    second = names + _STRIP + _SHARES + _GAP
    third = second + _STRIP + _SHARES + _GAP
    size = (third + _BARS + _GAP, _TOP + _ROW * len(rows) + _BOTTOM)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    pen.font = font
    pen.text((12, 12), _title(findings), fill=_INK, font=_font(16))
    shown = f"{len(rows)} of {total} layers" if len(rows) < total else ""
    pen.text((12, _TOP - 10), shown, fill=_FAINT, anchor="ls")
    for row, name in enumerate(rows):
        ink = _INK if name in findings.gradients else _FAINT
        pen.text((names - 10, _middle(row)), name, fill=ink, anchor="rm")
    _strips(image, pen, names, "gradient", [findings.gradients.get(name) for name in rows])
    _strips(image, pen, second, "output", [findings.activations.get(name) for name in rows])
    ratios = findings.update_ratio
    _bars(pen, third, [ratios.get(f"{name}.weight", ratios.get(name)) for name in rows])
    # Packing took half of the time: few colours make a third of the bytes.
    image.quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        path, compress_level=1
    )


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def chosen(findings: Findings) -> tuple[list[str], int]:
    """Return the layers to show, in the order of the forward pass, and how many there are."""
    before = [name for name in findings.gradients if name not in findings.activations]
    rows = before + [
        name
        for name in findings.activations
        if name in findings.gradients
        or not any(kind in findings.modules[name] for kind in _UNSHOWN)
    ]
    if len(rows) <= ROWS:
        return rows, len(rows)
    return [rows[round(at)] for at in np.linspace(0, len(rows) - 1, ROWS)], len(rows)


def _title(findings: Findings) -> str:
    norm = "not finite" if findings.grad_norm is None else f"{findings.grad_norm:.3g}"
    skipped = ", skipped by the gradient scaler" if findings.skipped else ""
    return (
        f"Tick {findings.tick} of {TICKS}, step {findings.step}: learning rate {findings.lr:.2g}, "
        f"gradient norm {norm} before clipping{skipped}"
    )


def _strips(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    left: int,
    what: str,
    histograms: Sequence[Histogram | None],
) -> None:
    """Draw a row of shades for each histogram, and beside it the share of zeros."""
    counts = np.array([one.counts if one else [0] * BINS for one in histograms]).reshape(-1, BINS)
    low, high = _occupied(counts)
    image.paste(Image.fromarray(_shaded(counts[:, low:high])), (left, _TOP))
    right = left + _STRIP + _SHARES
    pen.text((left, _TOP - 26), f"magnitude of each {what}", fill=_INK, anchor="ls")
    pen.text((right, _TOP - 10), "zeros", fill=_FAINT, anchor="rs")
    for row, one in enumerate(histograms):
        if one is None:
            continue
        share = one.zeros / max(1, sum(one.counts) + one.zeros + one.beyond)
        if share >= 0.005:
            pen.text((right, _middle(row)), f"{share:.0%}", fill=_FAINT, anchor="rm")
        if one.beyond:
            pen.text((left + _STRIP + 4, _middle(row)), "!", fill=_RED, anchor="lm")
    _axis(pen, left, _STRIP, EDGES[low], EDGES[high], len(histograms))


def _occupied(counts: np.ndarray) -> tuple[int, int]:
    """Return the first bin and the one after the last that a row has its share in, in decades."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    bins = np.flatnonzero(shares.max(0, initial=0) >= _TAIL)
    decade = BINS // int(EDGES[-1] - EDGES[0])
    if not len(bins):
        return 0, BINS
    return bins[0] // decade * decade, (bins[-1] // decade + 1) * decade


def _shaded(counts: np.ndarray) -> np.ndarray:
    """Colour bins (rows, bins) by the root of their counts, which leaves the tails to be seen.

    Returns:
        Pixels of the strips (rows * _ROW, _STRIP, 3) uint8, white where there are no counts.
    """
    shares = np.sqrt(counts / np.maximum(1, counts.max(1, keepdims=True, initial=0)))
    stops = np.linspace(0, 1, len(_SHADES))
    colours = np.stack([np.interp(shares, stops, each) for each in _SHADES.T], axis=-1)
    colours[counts.sum(1) == 0] = 255
    columns = np.arange(_STRIP) * counts.shape[1] // _STRIP
    pixels = colours.astype(np.uint8)[:, columns].repeat(_ROW, axis=0)
    pixels[0::_ROW] = pixels[_ROW - 1 :: _ROW] = 255
    return pixels


def _bars(pen: ImageDraw.ImageDraw, left: int, ratios: Sequence[float | None]) -> None:
    pen.text((left, _TOP - 26), "update / weight", fill=_INK, anchor="ls")
    _axis(pen, left, _BARS, _LEAST, _MOST, len(ratios))
    for row, ratio in enumerate(ratios):
        if ratio:
            colour = _NEAR if TARGET / 10 <= ratio <= TARGET * 10 else _FAR
            end = left + _BARS * min(1.0, max(0.02, _along(ratio)))
            middle = _middle(row)
            pen.rectangle((left, middle - 5, end, middle + 5), fill=colour)
    mark = left + _BARS * _along(TARGET)
    pen.line((mark, _TOP - 6, mark, _TOP + _ROW * len(ratios)), fill=_RED, width=2)
    pen.text((mark, _TOP - 10), f"{TARGET:g}", fill=_RED, anchor="ms")


def _along(ratio: float) -> float:
    return float(np.log10(ratio) - _LEAST) / (_MOST - _LEAST)


def _axis(
    pen: ImageDraw.ImageDraw, left: int, width: int, low: float, high: float, rows: int
) -> None:
    """Draw the powers of ten from ``low`` to ``high`` below the rows, with a tick for each."""
    bottom = _TOP + _ROW * rows
    step = 1 if high - low <= 6 else 2
    for power in range(round(low), round(high) + 1):
        x = left + width * (power - low) / (high - low)
        pen.line((x, bottom, x, bottom + 4), fill=_FAINT)
        if (power - round(low)) % step == 0:
            pen.text((x, bottom + 18), f"1e{power}" if power else "1", fill=_FAINT, anchor="ms")


def _middle(row: int) -> int:
    return _TOP + row * _ROW + _ROW // 2
