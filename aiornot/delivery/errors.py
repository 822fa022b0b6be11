"""Where a delivered model errs: its worst errors one by one, and how often it errs on which images.

``aiornot errors BUNDLE --data data/prepared`` measures here, and ``delivery/errors_page.py`` shows
it. False positives come first: a photograph called generated is what users complain about.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aiornot.config import InputError
from aiornot.data import hdf5, images, layout, shards, slices, traits
from aiornot.data.shards import Progress
from aiornot.delivery import bootstrap, evaluate
from aiornot.delivery import bundle as bundles
from aiornot.delivery.bundle import Bundle
from aiornot.delivery.calibrate import check

LISTED = 100
"""Errors of either kind that are named one by one; all of them are counted."""

MOST_VALUES = 12
"""Slices of one property; those of the fewest images are put together."""

OTHERS = "others"

SIDES = (128, 256, 512, 1024, 2048)
"""Edges of the slices by native size, in pixels of the long side."""

QUALITIES = (50, 70, 80, 90, 95)
"""Edges of the slices by JPEG quality."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """What was found."""

    report: dict[str, Any]
    """Plain values, all of ``errors.json``; no image is in it."""
    thumbnails: dict[int, bytes]
    """JPEG files by row of the split, of the errors listed; empty where none are wanted."""


def measure(
    folder: Path,
    *,
    data: Path,
    split: str,
    device: torch.device,
    source: str | None = None,
    with_images: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Errors:
    """Score a split and say which images a bundle gets wrong.

    Args:
        folder: The bundle.
        data: A prepared file of the bundle's size and geometry.
        split: ``val`` or ``test``, which counts as opened from now on.
        device: Where to compute.
        source: The parquet that ``data`` was prepared from, for slices by size, format and quality.
        with_images: Keep thumbnails of the errors listed.
        progress: Called as the work proceeds.

    Raises:
        InputError: Not a bundle, data that it cannot be fairly scored on, or another source.
    """
    evaluate.check_split(split)
    bundle, attributes = bundles.load(folder, device=device), hdf5.attributes(data)
    bundles.check_scorable(bundle, attributes, data=data)
    properties = _properties(data, split)
    if source is not None:
        properties |= _of_source(source, data, split, progress)
    opened = evaluate.open_once(folder, split)
    progress("scoring", 0, 1)
    logits, labels = check(*bundles.score(bundle, data=data, split=split))
    progress("scoring", 1, 1)
    called = bundle.calibration.verdicts(logits)
    chosen = _worst(bundle, logits, labels, called)
    ids = hdf5.read_ids(data, split)
    report = {
        "split": split,
        "opened": opened,
        **evaluate.about_images(labels, layout.read_clusters(data, split)),
        "model": bundle.name,
        "calibration": bundle.calibration.to_dict(),
        "data": evaluate.about_data(attributes),
        "time": evaluate.now(),
        "false_positives": _count(called & ~labels, ~labels),
        "false_negatives": _count(~called & labels, labels),
        "worst": {
            kind: [_described(bundle, row, ids, logits, properties) for row in rows]
            for kind, rows in chosen.items()
        },
        "slices": {name: sliced(values, labels, called) for name, values in properties.items()},
    }
    rows = [row for each in chosen.values() for row in each] if with_images else []
    pixels = hdf5.map_images(data, split)
    return Errors(report, {row: traits.thumbnail(Image.fromarray(pixels[row])) for row in rows})


def _worst(
    bundle: Bundle, logits: np.ndarray, labels: np.ndarray, called: np.ndarray
) -> dict[str, list[int]]:
    """Return the rows of the errors, the most confident first."""
    falsely = np.flatnonzero(called & ~labels)
    missed = np.flatnonzero(~called & labels)
    return {
        "false_positives": falsely[np.argsort(-logits[falsely], kind="stable")][:LISTED].tolist(),
        "false_negatives": missed[np.argsort(logits[missed], kind="stable")][:LISTED].tolist(),
    }


def _described(
    bundle: Bundle,
    row: int,
    ids: Sequence[str],
    logits: np.ndarray,
    properties: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    probability = bundle.calibration.probabilities(logits[row : row + 1])
    return {
        "row": row,
        "id": ids[row],
        "probability": float(probability[0]),
        "unsure": bool(bundle.calibration.unsure_at(probability)[0]),
        **{name: values[row] for name, values in properties.items()},
    }


def _count(wrong: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    part, whole = int(np.count_nonzero(wrong)), int(np.count_nonzero(of))
    return {
        "errors": part,
        "images": whole,
        "share": part / whole if whole else None,
        "interval": list(bootstrap.wilson(part, whole)),
    }


def sliced(values: Sequence[str], labels: np.ndarray, called: np.ndarray) -> list[dict[str, Any]]:
    """Count the errors on each value of a property.

    Args:
        values: (N,) in words, in an order that sorts them.
        labels: (N,) bool.
        called: (N,) bool, called generated.

    Returns:
        Per value ``false_positives`` among its real and ``false_negatives`` among its generated
        images, each as ``errors``, ``images``, ``share`` and Wilson's 95 % ``interval``. Copies of
        an image count as so many.
    """
    names, counts = np.unique(np.array(values), return_counts=True)
    rare = names[np.argsort(-counts, kind="stable")][MOST_VALUES:]
    known = np.where(np.isin(values, rare), OTHERS, values)
    kept = [name for name in dict.fromkeys(sorted(set(values), key=_order)) if name not in rare]
    rows = []
    for name in [*kept, *([OTHERS] if len(rare) else [])]:
        of = known == name
        rows.append(
            {
                "value": name,
                "false_positives": _count(called & ~labels & of, ~labels & of),
                "false_negatives": _count(~called & labels & of, labels & of),
            }
        )
    return rows


def _order(name: str) -> tuple[float, str]:
    """Sort bins by their lower edge, the lowest having none, then other values by their words."""
    first = name.split(" ")[0]
    with contextlib.suppress(ValueError):
        return float(first), name
    return (-math.inf if first == "below" else math.inf), name


def _properties(data: Path, split: str) -> dict[str, list[str]]:
    """Return what the prepared file itself tells of each image, in words."""
    brightness, detail = _levels(hdf5.map_images(data, split))
    found = {"brightness": quarters(brightness), "detail": quarters(detail)}
    if (generators := slices.generators(data, split)) is not None:
        found["generator"] = [name or "unknown" for name in generators]
    return found


def _levels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean grey level and mean step between neighbouring pixels of each image (N,)."""
    found = np.empty((2, len(pixels)))
    for row, image in enumerate(pixels):
        grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)
        steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
        found[:, row] = grey.mean(), np.mean([step.mean() for step in steps if step.size] or [0.0])
    return found[0], found[1]


def quarters(values: np.ndarray) -> list[str]:
    """Name the quarter of the split that each value lies in, by its bounds."""
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75]).round(1))
    return bins(values, edges.tolist())


def bins(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[str]:
    """Name the bin that each value lies in; an edge belongs to the bin above it."""
    names = [f"below {edges[0]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False)]
    names += [f"{edges[-1]:g} and more"]
    return [names[index] for index in np.searchsorted(edges, values, side="right")]


def _of_source(source: str, data: Path, split: str, progress: Progress) -> dict[str, list[str]]:
    """Return what the files of the source tell of each image, in words; no pixel is decoded.

    Raises:
        InputError: Not the source of this file.
    """
    rows = shards.read_rows(source, progress=progress)
    if rows.fingerprint != hdf5.attributes(data).get("fingerprint"):
        raise InputError(
            f"--source {source}: {data} was prepared from something else; give that, or no --source"
        )
    ids = hdf5.read_ids(data, split)
    wanted, found = set(ids), dict[str, images.Header]()
    for block in rows.blocks:
        for batch in shards.read(block, ["id", "image.bytes"]):
            names = map(str, batch.column("id").to_pylist())
            for name, content in zip(names, shards.image_bytes(batch), strict=True):
                with contextlib.suppress(ValueError):  # rejected by prepare: it is not wanted
                    if name in wanted:
                        found[name] = images.header(content)
        progress("reading headers", len(found), len(wanted))
    headers = [found[name] for name in ids]
    return {name: [tell(header) for header in headers] for name, tell in OF_HEADER.items()}


def _quality(header: images.Header) -> str:
    if not header.tables:
        return "no JPEG"
    return bins([traits.quality_of(header.tables[0])], QUALITIES)[0]


OF_HEADER: dict[str, Callable[[images.Header], str]] = {
    "format": lambda header: header.format,
    "long side": lambda header: bins([max(header.width, header.height)], SIDES)[0],
    "JPEG quality": _quality,
}
"""What the header of a file tells, by the name of the slices."""
