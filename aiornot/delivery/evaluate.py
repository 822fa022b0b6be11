"""Logits and labels of one split -> metrics with intervals, and the seal on the test split.

``aiornot evaluate BUNDLE --data data/full.h5 --split test`` opens the test split and counts it.
"""

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.data.splits import SPLITS
from aiornot.delivery import bootstrap, manifest, measures
from aiornot.delivery.calibrate import Calibration, check
from aiornot.delivery.curves import curves


def measure(logits: np.ndarray, labels: np.ndarray, calibration: Calibration) -> dict[str, float]:
    """Return all metrics of a split, as ``measures.measure`` explains them.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        calibration: Of the bundle.

    Raises:
        InputError: A class without images, or a logit that is not finite.
    """
    logits, labels = check(logits, labels)
    found = measures.measure(logits, labels, calibration, np.ones((1, len(logits))))
    return {name: float(values[0]) for name, values in found.items()}


def evaluation(
    logits: np.ndarray,
    labels: np.ndarray,
    calibration: Calibration,
    *,
    split: str,
    attributes: Mapping[str, Any],
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return metrics, 95 % intervals and curves as plain values; undefined ones are None.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        calibration: Of the bundle.
        split: Name of the split.
        attributes: Of the prepared file; its ``source_note`` says whether the data is synthetic.
        clusters: (N,) of near-duplicates, as ``layout.read_clusters`` gives them.
    """
    metrics = measure(logits, labels, calibration)
    logits, labels = check(logits, labels)
    drawn = bootstrap.sample(
        lambda weights: measures.measure(logits, labels, calibration, weights),
        labels,
        clusters=clusters,
    )
    # Resampling adds noise to every bin, which a mean of distances never loses again.
    drawn["ece"] = np.maximum(0.0, drawn["ece"] + metrics["ece"] - np.median(drawn["ece"]))
    intervals = {name: bootstrap.interval(values) for name, values in drawn.items()}
    return {
        "split": split,
        **about_images(labels, clusters),
        "metrics": {name: plain(value) for name, value in metrics.items()},
        "intervals": {name: [plain(end) for end in ends] for name, ends in intervals.items()},
        "curves": curves(logits, labels, calibration),
        "calibration": calibration.to_dict(),
        "data": about_data(attributes),
    }


def about_images(labels: np.ndarray, clusters: np.ndarray | None) -> dict[str, Any]:
    """Return how many images there are, and what the intervals draw: images, or their clusters."""
    return {
        "num_real": int(np.count_nonzero(~labels)),
        "num_generated": int(np.count_nonzero(labels)),
        "resampling": {
            "num_draws": bootstrap.NUM_DRAWS,
            "of": "images" if clusters is None else "clusters of near-duplicates",
            "num_drawn": len(labels) if clusters is None else len(np.unique(clusters)),
        },
    }


def about_data(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what scores must carry of the data they were made on.

    ``source_note`` is a text that the source gives of itself, such as that it is synthetic; it is
    empty where there is none.
    """
    note = str(attributes.get("source_note", ""))
    found = {key: attributes.get(key) for key in ("fingerprint", "profile", "settings")}
    return found | {"source_note": note}


def plain(value: float) -> float | None:
    """Return None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def check_split(split: str) -> None:
    """Refuse all but ``val`` and ``test``.

    Raises:
        InputError: No such split, or ``train``.
    """
    if split not in SPLITS or split == "train":
        raise InputError(f"split {split!r} cannot be evaluated: use 'val' or 'test'")


def open_split(folder: Path, split: str) -> int:
    """Return how often a split was opened before, and count this opening of ``test``.

    Counted before anything is scored: whoever stops halfway may have seen the score.

    Args:
        folder: The bundle.
        split: ``val`` is free and always 0.

    Raises:
        InputError: No such split, ``train``, or a damaged ``evaluations.json``.
    """
    check_split(split)
    if split == "val":
        return 0
    kept = _read(folder)
    _write(folder, kept | {"test_opened": [*kept["test_opened"], now()]})
    return len(kept["test_opened"])


def open_once(folder: Path, split: str) -> bool:
    """Open a split for a closer look; count it for ``test`` only where it is sealed still.

    Whoever looks at how a score that is known comes about learns no second score.

    Returns:
        Whether this broke the seal of the test split.

    Raises:
        InputError: As ``open_split``.
    """
    if split == "test" and _read(folder)["test_opened"]:
        return False
    open_split(folder, split)
    return split == "test"


def keep(path: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result into a file of results by split, and return it with the time.

    What the file holds of other splits stays; a file that cannot be read is begun anew.
    """
    dated = {**result, "time": now()}
    kept = {**_results(path), result["split"]: dated}
    storage.write_text(str(path), manifest.sealed({"schema_version": 1, "splits": kept}))
    return dated


def _results(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def record(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Add an evaluation to the bundle's list and return it with the time."""
    kept, dated = _read(folder), {**result, "time": now()}
    _write(folder, kept | {"evaluations": [*kept["evaluations"], dated]})
    return dated


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded evaluations of a bundle, oldest first."""
    return list(_read(folder)["evaluations"])


def recorded(folder: Path, *, data: Path, split: str) -> dict[str, Any] | None:
    """Return the newest recorded evaluation of this model on this split of this file, if any.

    One made at another threshold is none of it.

    Raises:
        InputError: Not a bundle, weights that are not its own, or not a prepared file.
    """
    description = manifest.read(folder)
    weights = description["sha256"]
    manifest.check_weights(folder, weights)
    settings = hdf5.attributes(data).get("settings")
    for result in reversed(history(folder)):
        same_model = (
            weights.startswith(result["model"])
            and result["calibration"] == description["calibration"]
        )
        if same_model and result["split"] == split and result["data"]["settings"] == settings:
            return dict(result)
    return None


def _read(folder: Path) -> dict[str, list[Any]]:
    path = folder / manifest.EVALUATIONS
    if not path.exists():
        return {"test_opened": [], "evaluations": []}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in kept:  # files of older versions have none
            kept = manifest.read_sealed(path)
        return {"test_opened": list(kept["test_opened"]), "evaluations": list(kept["evaluations"])}
    except (ValueError, KeyError, TypeError) as error:
        # Starting afresh would forget that the test split was opened.
        raise InputError(
            f"{path} is damaged ({error}); restore it from a copy of the bundle"
        ) from None


def _write(folder: Path, kept: Mapping[str, Any]) -> None:
    storage.write_text(str(folder / manifest.EVALUATIONS), manifest.sealed(kept))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
