"""Logits and labels of one split -> metrics with intervals, and the seal on the test split.

``aiornot evaluate BUNDLE --data data/full.h5 --split test`` opens the test split and counts it.
"""

import datetime
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.data.splits import SPLITS
from aiornot.delivery import manifest
from aiornot.delivery.calibrate import Calibration, check, cuts

EVALUATIONS = "evaluations.json"

NUM_BINS = 15
"""Bins of equal mass of the calibration error."""

NUM_RESAMPLES = 1000

_CHUNK = 2_000_000
"""Weights drawn at once, 16 MB: more would not be faster."""

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Logits (N,), labels (N,) bool, weights (R, N) -> values (R,): one value for each resample, which
counts image n ``weights[r, n]`` times. A value is NaN where it is undefined."""


def auroc(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (R,): how often generated outscores real, ties counting half."""
    order = np.argsort(logits, kind="stable")
    first = np.flatnonzero(np.diff(logits[order], prepend=-np.inf))  # where each tie group starts
    generated = np.add.reduceat(weights[:, order] * labels[order], first, axis=1, dtype=np.float64)
    real = np.add.reduceat(weights[:, order] * ~labels[order], first, axis=1, dtype=np.float64)
    outscored = np.cumsum(real, axis=1) - real / 2
    pairs = generated.sum(axis=1) * real.sum(axis=1)
    return np.asarray((generated * outscored).sum(axis=1) / pairs)


def log_loss(calibration: Calibration) -> Statistic:
    """Mean binary cross-entropy in nats, after temperature."""

    def statistic(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        losses = _losses(logits / calibration.temperature, labels)
        return np.asarray(weights @ losses / weights.sum(axis=1))

    return statistic


def accuracy(calibration: Calibration) -> Statistic:
    """Share of right verdicts at the stored threshold."""

    def statistic(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        right = calibration.verdicts(logits) == labels
        return np.asarray(weights @ right.astype(np.float64) / weights.sum(axis=1))

    return statistic


def precision(calibration: Calibration) -> Statistic:
    """Share of generated images among those called generated; NaN where none is called so."""

    def statistic(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        called = calibration.verdicts(logits)
        hits, calls = weights @ (called & labels).astype(float), weights @ called.astype(float)
        return np.where(calls > 0, hits / np.maximum(calls, 1), np.nan)

    return statistic


def interval(
    statistic: Statistic,
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % points of a statistic over bootstrap resamples.

    Stratified by label: each resample keeps the number of images of either class, so AUROC is
    always defined, and the interval holds for this share of generated images. It knows the spread
    of images only, not that of training seeds, and is of no width for a perfect score.

    Args:
        statistic: For example ``auroc`` or ``precision(calibration)``.
        logits: (N,).
        labels: (N,) 0 or 1.
        num_resamples: 1,000 place each end to about a fiftieth of the interval's width.
        seed: Of the resampling.
    """
    logits, labels = check(logits, labels)
    generator = np.random.default_rng(seed)
    values: list[np.ndarray] = []
    step = max(1, _CHUNK // len(logits))
    for done in range(0, num_resamples, step):
        weights = _resample(labels, min(step, num_resamples - done), generator)
        values.append(statistic(logits, labels, weights))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _resample(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw how often each image is taken, (count, N) float64, within each class."""
    weights = np.zeros((count, len(labels)))
    for members in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        picks = generator.integers(len(members), size=(count, len(members)))
        picks += np.arange(count)[:, None] * len(members)
        counts = np.bincount(picks.ravel(), minlength=count * len(members))
        weights[:, members] = counts.reshape(count, len(members))
    return weights


def measure(logits: np.ndarray, labels: np.ndarray, calibration: Calibration) -> dict[str, float]:
    """Return all metrics of a split; *generated* is the positive class.

    ``precision`` is NaN where no image is called generated. ``tpr@fpr=0.01`` is the best recall
    that the split itself allows at that rate, not that of the stored threshold.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        calibration: Its threshold gives the keys that end in ``@threshold``.

    Raises:
        InputError: A class without images, or a logit that is not finite.
    """
    logits, labels = check(logits, labels)
    probabilities = calibration.probabilities(logits)
    return {
        "auroc": float(auroc(logits, labels, np.ones((1, len(logits))))[0]),
        "average_precision": average_precision(logits, labels),
        "log_loss_before_temperature": float(_losses(logits, labels).mean()),
        "log_loss_after_temperature": float(
            _losses(logits / calibration.temperature, labels).mean()
        ),
        "brier": float(np.mean((probabilities - labels) ** 2)),
        "ece": calibration_error(probabilities, labels),
        "tpr@fpr=0.01": recall_at(logits, labels, max_fpr=0.01),
        "tpr@fpr=0.05": recall_at(logits, labels, max_fpr=0.05),
        **_of_verdicts(probabilities >= 0.5, labels, suffix="@0.5"),
        **_of_verdicts(calibration.verdicts(logits), labels, suffix="@threshold"),
    }


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, np.where(labels, -logits, logits)))


def _of_verdicts(verdicts: np.ndarray, labels: np.ndarray, *, suffix: str) -> dict[str, float]:
    hits, called = np.count_nonzero(verdicts & labels), np.count_nonzero(verdicts)
    num_generated, num_real = np.count_nonzero(labels), np.count_nonzero(~labels)
    recall, false_positive_rate = hits / num_generated, (called - hits) / num_real
    return {
        f"accuracy{suffix}": float(np.mean(verdicts == labels)),
        f"balanced_accuracy{suffix}": (recall + 1 - false_positive_rate) / 2,
        f"precision{suffix}": hits / called if called else math.nan,
        f"recall{suffix}": recall,
        f"fpr{suffix}": false_positive_rate,
    }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean precision over the steps of recall, without interpolation."""
    _, hits, false_alarms = cuts(scores, labels)
    steps = hits[:-1] - hits[1:]
    return float(np.sum(steps * (hits[:-1] / (hits[:-1] + false_alarms[:-1]))) / hits[0])


def recall_at(scores: np.ndarray, labels: np.ndarray, *, max_fpr: float) -> float:
    """Return the highest recall among thresholds whose false-positive rate is within bounds."""
    _, hits, false_alarms = cuts(scores, labels)
    return float(hits[false_alarms / false_alarms[0] <= max_fpr].max() / hits[0])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of probability and truth over bins of equal mass.

    Equal probabilities share a bin, so that the order of the rows does not matter.
    """
    _, group, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - counts / 2
    bins = (NUM_BINS * middle_rank / len(labels)).astype(np.int64)[group]
    return float(np.abs(np.bincount(bins, weights=probabilities - labels)).sum() / len(labels))


def evaluation(
    logits: np.ndarray,
    labels: np.ndarray,
    calibration: Calibration,
    *,
    split: str,
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return metrics and intervals as plain values that JSON holds; undefined ones are None.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        calibration: Of the bundle.
        split: Name of the split.
        attributes: Of the prepared file; its ``source_note`` says whether the data is synthetic.
    """
    logits, labels = check(logits, labels)
    statistics: dict[str, Statistic] = {
        "auroc": auroc,
        "accuracy@threshold": accuracy(calibration),
        "precision@threshold": precision(calibration),
        "log_loss_after_temperature": log_loss(calibration),
    }
    intervals = {name: interval(one, logits, labels) for name, one in statistics.items()}
    metrics = measure(logits, labels, calibration)
    return {
        "split": split,
        "num_real": int(np.count_nonzero(~labels)),
        "num_generated": int(np.count_nonzero(labels)),
        "metrics": {name: _plain(value) for name, value in metrics.items()},
        "intervals": {name: [_plain(end) for end in ends] for name, ends in intervals.items()},
        "calibration": calibration.to_dict(),
        "data": about_data(attributes),
    }


def about_data(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what scores must carry of the data they were made on.

    ``source_note`` is a text that the source gives of itself, such as that it is synthetic; it is
    empty where there is none.
    """
    note = str(attributes.get("source_note", ""))
    found = {key: attributes.get(key) for key in ("fingerprint", "profile", "settings")}
    return found | {"source_note": note}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def open_split(folder: Path, split: str) -> int:
    """Return how often a split was opened before, and count this opening of ``test``.

    Counted before anything is scored: whoever stops halfway may have seen the score.

    Args:
        folder: The bundle.
        split: ``val`` is free and always 0.

    Raises:
        InputError: No such split, ``train``, or a damaged ``evaluations.json``.
    """
    if split not in SPLITS or split == "train":
        raise InputError(f"split {split!r} cannot be evaluated: use 'val' or 'test'")
    if split == "val":
        return 0
    kept = _read(folder)
    _write(folder, kept | {"test_opened": [*kept["test_opened"], _now()]})
    return len(kept["test_opened"])


def record(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Add an evaluation to the bundle's list and return it with the time."""
    kept, dated = _read(folder), {**result, "time": _now()}
    _write(folder, kept | {"evaluations": [*kept["evaluations"], dated]})
    return dated


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded evaluations of a bundle, oldest first."""
    return list(_read(folder)["evaluations"])


def recorded(folder: Path, *, data: Path, split: str) -> dict[str, Any] | None:
    """Return the newest recorded evaluation of this model on this split of this file, if any.

    Raises:
        InputError: Not a bundle, weights that are not its own, or not a prepared file.
    """
    weights = manifest.read(folder)["sha256"]
    manifest.check_weights(folder, weights)
    settings = hdf5.attributes(data).get("settings")
    for result in reversed(history(folder)):
        same_model = weights.startswith(result["model"])
        if same_model and result["split"] == split and result["data"]["settings"] == settings:
            return dict(result)
    return None


def _read(folder: Path) -> dict[str, list[Any]]:
    path = folder / EVALUATIONS
    if not path.exists():
        return {"test_opened": [], "evaluations": []}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"test_opened": list(kept["test_opened"]), "evaluations": list(kept["evaluations"])}
    except (ValueError, KeyError, TypeError) as error:
        # Starting afresh would forget that the test split was opened.
        raise InputError(
            f"{path} is damaged ({error}); restore it from a copy of the bundle"
        ) from None


def _write(folder: Path, kept: Mapping[str, Any]) -> None:
    text = json.dumps(kept, indent=1, allow_nan=False) + "\n"
    storage.write_text(str(folder / EVALUATIONS), text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
