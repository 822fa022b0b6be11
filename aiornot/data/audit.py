"""The audit of a source: what a detector could learn from it besides the traces of generators.

``aiornot audit SOURCE --out runs/audit`` measures here, from the parquet alone and without Ray, and
``data/audit_page.py`` shows it.
"""

import dataclasses
import datetime
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from aiornot.config import InputError
from aiornot.data import census, duplicates, leak, shards, splits, traits
from aiornot.data.hdf5 import CLASSES
from aiornot.data.verdict import how, verdict

SCHEMA_VERSION = 1

NUM_SAMPLES = 16
"""Images shown of both classes, and as many others of generated ones alone."""

_LIBRARIES = ("aiornot", "numpy", "pillow", "scikit-learn", "simplejpeg")


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found."""

    report: dict[str, Any]
    """Plain values, all of ``audit.json``; no image is in it."""
    thumbnails: dict[int, bytes]
    """JPEG files by row, of the samples of the report; empty where no images were wanted."""


def measure(
    source: str,
    *,
    with_images: bool = True,
    seed: int = 0,
    progress: shards.Progress = lambda what, done, total: None,
) -> Audit:
    """Look at every image of a source once and say what would let a detector cheat.

    Args:
        source: A parquet file, a folder of them, a glob, or the same on ``s3://``.
        with_images: Keep thumbnails of some samples.
        seed: Of the splits, as ``prepare`` would make them, and of the choice of samples.
        progress: Called as the work proceeds.

    Raises:
        InputError: Nothing readable there, a wrong schema, wrong labels, or a class too small.
    """
    started = time.monotonic()
    rows = shards.read_rows(source, progress=progress)
    # Before the images are looked at: labels that cannot be split end it in seconds.
    plain = _plan(source, rows, None, seed)
    wanted = _candidates(rows, seed) if with_images else {}
    asked = {row for candidates in wanted.values() for row in candidates}
    seen = traits.read(rows, thumbnails=asked, progress=progress)
    if not any(seen.traits):
        raise InputError(f"{source}: no image can be read; the first: {seen.reasons[0]}")
    hashes = [None if found is None else found.hash for found in seen.traits]
    clusters = duplicates.clusters(rows.hashes, hashes)
    equal = duplicates.clusters(rows.hashes, hashes, distance=None)
    copies = census.copies(rows, clusters, equal=equal, plan=plain)
    samples = {name: _readable(candidates, seen) for name, candidates in wanted.items()}
    report = {
        **_described(leak.labelled(seen.traits, rows.labels, clusters), progress),
        "counts": census.counts(rows, _plan(source, rows, clusters, seed)),
        "unreadable": census.unreadable(rows, seen.reasons),
        "duplicates": {"distance": duplicates.DISTANCE, **copies},
        "samples": {name: _named(rows, chosen) for name, chosen in samples.items()},
    }
    about = _about(source, rows, seconds=time.monotonic() - started)
    shown = {row: seen.thumbnails[row] for chosen in samples.values() for row in chosen}
    return Audit(about | report, shown)


def _plan(
    source: str, rows: shards.Rows, clusters: npt.NDArray[np.int64] | None, seed: int
) -> splits.Plan:
    try:
        return splits.plan(rows.labels, clusters=clusters, seed=seed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _candidates(rows: shards.Rows, seed: int) -> dict[str, list[int]]:
    """Draw rows for the two grids, twice as many as are shown since some may be unreadable."""
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    order = order[[bool(rows.hashes[row]) for row in order]]
    both = order[: 2 * NUM_SAMPLES]
    others = order[2 * NUM_SAMPLES :]
    generated = others[rows.labels[others] == 1][: 2 * NUM_SAMPLES]
    return {"both": both.tolist(), CLASSES[1]: generated.tolist()}


def _readable(candidates: Sequence[int], seen: traits.Seen) -> list[int]:
    return [row for row in candidates if row in seen.thumbnails][:NUM_SAMPLES]


def _named(rows: shards.Rows, chosen: Sequence[int]) -> list[dict[str, Any]]:
    return [{"row": row, "id": rows.ids[row], "class": CLASSES[rows.labels[row]]} for row in chosen]


def _described(data: leak.Labelled, progress: shards.Progress) -> dict[str, Any]:
    """Tabulate and probe the readable images."""
    categories, numbers = census.categories(data), census.numbers(data)
    steps = len(leak.FEATURES) + 2
    metadata = leak.metadata(data)
    progress("probing", 1, steps)
    content = leak.content(data)
    alone = {}
    for number, feature in enumerate(leak.FEATURES):
        progress("probing", 2 + number, steps)
        alone[feature.name] = leak.alone(feature, data)
    progress("probing", steps, steps)
    return {
        "verdict": verdict(metadata, alone),
        "probe": {
            "threshold": leak.LEAK_AUROC,
            "num_folds": leak.NUM_FOLDS,
            "metadata": dataclasses.asdict(metadata),
            "content": dataclasses.asdict(content),
            "features": [
                {
                    "feature": feature.name,
                    **dataclasses.asdict(alone[feature.name]),
                    "in_pixels": feature.in_pixels,
                    "how": how(feature.name, categories, numbers),
                }
                for feature in leak.FEATURES
            ],
        },
        "categories": categories,
        "numbers": numbers,
        "sizes": census.sizes(data),
    }


def _about(source: str, rows: shards.Rows, *, seconds: float) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "note": rows.note,
        "fingerprint": rows.fingerprint,
        "num_shards": len({block.path for block in rows.blocks}),
        "time": now.isoformat(timespec="seconds"),
        "wall_seconds": round(seconds, 1),
        "classes": list(CLASSES),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _LIBRARIES},
    }


def summary(report: dict[str, Any]) -> list[str]:
    """Return the report in a few lines, the verdict last."""
    counts, bad, copies = (report[key] for key in ("counts", "unreadable", "duplicates"))
    lines = [
        f"{counts['rows']} rows: {counts['real']} real, {counts['generated']} generated; "
        f"{bad['rows']} unreadable"
    ]
    if report["note"]:
        lines.insert(0, report["note"])
    if copies["clusters"]:
        lines.append(
            f"{copies['rows']} images have copies, in {copies['clusters']} clusters; a split that "
            f"ignores them would put {copies['torn']['leaked_rows']} images into val or test that "
            "have a copy in train"
        )
    if copies["conflicts"]:
        lines.append(f"{len(copies['conflicts'])} clusters carry both labels")
    return [*lines, report["verdict"]["text"], *map("  - {}".format, report["verdict"]["mend"])]
