"""How a delivered model holds up: its verdicts on damaged images, beside those on clean ones.

``aiornot robustness BUNDLE --data data/prepared`` measures here and keeps the result in the bundle.
Each prepared image is taken for a picture that someone passes on: it is damaged as
``delivery/damage.py`` says, and comes back to the model's size as ``aiornot predict`` would do it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aiornot.data import hdf5, images, layout, slices
from aiornot.data.hdf5 import CLASSES
from aiornot.data.images import Pixels
from aiornot.data.shards import Progress
from aiornot.delivery import bootstrap, damage, evaluate, manifest, measures
from aiornot.delivery import bundle as bundles
from aiornot.delivery.bundle import Bundle
from aiornot.delivery.calibrate import check
from aiornot.delivery.damage import Damage

ABOUT = (
    "Each prepared image, of either class, is damaged with Pillow and brought back to the model's "
    "size as predict does. The limits of web (768 px) and hard (512 px) are meant for pictures of "
    "1,024 px and are scaled with smaller images. A verdict flips that differs from the clean one."
)

_BATCH = 64
_NUM_THREADS = 8

METRICS = (
    "auroc",
    "balanced_accuracy@threshold",
    "recall@threshold",
    "fpr@threshold",
    "flip_rate",
    "flip_rate_real",
    "flip_rate_generated",
)
"""Of each condition, at the stored threshold; ``flip_rate_real`` is the share of real images whose
verdict changes."""


def measure(
    folder: Path,
    *,
    data: Path,
    split: str,
    device: torch.device,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Score a bundle on damaged images of a split and keep the result in it.

    Args:
        folder: The bundle.
        data: A prepared file of the bundle's size and geometry.
        split: ``val`` or ``test``, which counts as opened from now on.
        device: Where to compute.
        progress: Called as the work proceeds.

    Returns:
        ``tiers`` and ``curves``, each condition with ``METRICS`` and their 95 % intervals, the
        ``generators``, where the source told them, and whether this ``opened`` the test split.

    Raises:
        InputError: Not a bundle, or data that the model cannot be fairly scored on.
    """
    evaluate.check_split(split)
    bundle, attributes = bundles.load(folder, device=device), hdf5.attributes(data)
    bundles.check_scorable(bundle, attributes, data=data)
    labels = hdf5.read_labels(data, split) == 1
    opened = evaluate.open_once(folder, split)
    wanted = _conditions(bundle.size)
    pixels = hdf5.map_images(data, split)
    logits: dict[str, np.ndarray] = {}
    for name, one in wanted.items():
        parts: list[np.ndarray] = []
        for part in _logits(bundle, pixels, one):
            parts.append(part)
            done = len(logits) * len(labels) + sum(map(len, parts))
            progress("damaging and scoring", done, len(wanted) * len(labels))
        logits[name] = np.concatenate(parts)
        check(logits[name], labels)
    clusters = layout.read_clusters(data, split)
    found = _measured(bundle, logits, labels, clusters, partial(progress, "drawing again"))
    result = {
        "split": split,
        "opened": opened,
        **evaluate.about_images(labels, clusters),
        "about": ABOUT,
        "model": bundle.name,
        "calibration": bundle.calibration.to_dict(),
        "data": evaluate.about_data(attributes),
        "tiers": [{"name": name} | found[name] for name in damage.tiers(bundle.size)],
        "curves": {
            curve: [{"value": value} | found[f"{curve}={value:g}"] for value in values]
            for curve, values in damage.CURVES.items()
        },
        "generators": by_generator(
            slices.generators(data, split),
            labels,
            {name: bundle.calibration.verdicts(logits[name]) for name in damage.tiers(bundle.size)},
            logits["clean"],
        ),
        "held_out": _held_out(bundle),
    }
    return evaluate.keep(folder / manifest.ROBUSTNESS, result)


def _held_out(bundle: Bundle) -> str | None:
    """Return the generator that the model was not trained on, if one was kept from it."""
    try:
        settings = dict(json.loads(bundle.description["data"]["settings"]))
    except (TypeError, ValueError):  # of a file that aiornot did not prepare
        return None
    return settings.get("hold_out")


def _conditions(size: int) -> dict[str, Damage]:
    found = damage.tiers(size)
    for curve, values in damage.curves().items():
        found |= {f"{curve}={value:g}": one for value, one in values.items()}
    return found


def _logits(bundle: Bundle, pixels: np.ndarray, one: Damage) -> Iterator[np.ndarray]:
    """Yield the logits of damaged images, the next batch being damaged meanwhile."""

    def change(image: Pixels) -> Pixels:
        left = damage.apply(one, image)
        return images.fit(left, bundle.size, geometry=bundle.geometry, resample=bundle.resample)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for batch in _ahead(pool, change, pixels):
            yield bundles.forward(bundle.module, batch, mean=bundle.mean, std=bundle.std)


def _ahead(
    pool: ThreadPoolExecutor, change: Callable[[Pixels], Pixels], pixels: np.ndarray
) -> Iterator[Pixels]:
    waiting: list[Future[Pixels]] = []
    for start in range(0, len(pixels), _BATCH):
        coming = [pool.submit(change, image) for image in pixels[start : start + _BATCH]]
        if waiting:
            yield np.stack([future.result() for future in waiting])
        waiting = coming
    yield np.stack([future.result() for future in waiting])


def _measured(
    bundle: Bundle,
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    clusters: np.ndarray | None,
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Return damage, metrics and intervals by condition; all conditions see the same draws."""
    clean = bundle.calibration.verdicts(logits["clean"])
    called = {name: bundle.calibration.verdicts(values) for name, values in logits.items()}

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {
            f"{name} {metric}": values
            for name in logits
            for metric, values in _metrics(
                logits[name], called[name], clean, labels, weights
            ).items()
        }

    once = statistics(np.ones((1, len(labels))))
    intervals = bootstrap.intervals(statistics, labels, clusters=clusters, progress=progress)
    return {
        name: {
            "damage": one.to_dict(),
            "metrics": {key: float(once[f"{name} {key}"][0]) for key in METRICS},
            "intervals": {key: list(intervals[f"{name} {key}"]) for key in METRICS},
        }
        for name, one in _conditions(bundle.size).items()
    }


def _metrics(
    logits: np.ndarray,
    called: np.ndarray,
    clean: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return ``METRICS``, (R,) each."""
    found = measures.of_verdicts(called, labels, weights, suffix="@threshold")
    found["auroc"] = measures.auroc(measures.curve(logits, labels, weights))
    flipped = called != clean
    for suffix, of in (("", labels | True), ("_real", ~labels), ("_generated", labels)):
        found[f"flip_rate{suffix}"] = measures.means({"": flipped[of]}, weights[:, of])[""]
    return {name: found[name] for name in METRICS}


def by_generator(
    generators: Sequence[str] | None,
    labels: np.ndarray,
    called: Mapping[str, np.ndarray],
    logits: np.ndarray,
) -> list[dict[str, Any]] | None:
    """Return what is said of each generator's images, the most frequent generator first.

    Args:
        generators: (N,) names, empty where unknown; None where the source did not tell.
        labels: (N,) bool.
        called: (N,) bool by tier, called generated.
        logits: (N,) of the clean images.

    Returns:
        Per generator and class: ``num``, the share ``called_generated`` by tier with its Wilson
        ``interval``, and the ``auroc`` of generated ones against all real images.
    """
    if generators is None:
        return None
    names = np.array(generators)
    rows = []
    for label in (False, True):
        for name in sorted(set(names[labels == label].tolist()) - {""}):
            of = (names == name) & (labels == label)
            rows.append(
                {
                    "generator": name,
                    "class": CLASSES[label],
                    "num": int(of.sum()),
                    "called_generated": {tier: _share(said[of]) for tier, said in called.items()},
                    "auroc": _against_real(logits, labels, of) if label else None,
                }
            )
    return sorted(rows, key=lambda row: -row["num"])[:MOST_GENERATORS]


MOST_GENERATORS = 50
"""Rows of the table; a column of prompts, say, would have thousands."""


def _share(said: np.ndarray) -> dict[str, Any]:
    part, whole = int(np.count_nonzero(said)), len(said)
    return {"share": part / whole, "interval": list(bootstrap.wilson(part, whole))}


def _against_real(logits: np.ndarray, labels: np.ndarray, of: np.ndarray) -> float:
    chosen = of | ~labels
    ones = np.ones((1, int(chosen.sum())))
    return float(measures.auroc(measures.curve(logits[chosen], labels[chosen], ones))[0])
