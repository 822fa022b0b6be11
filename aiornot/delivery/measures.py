"""Every metric of a split, for any weights of its images: the split itself, or draws from it.

``aiornot evaluate BUNDLE`` prints them. One code for a value and for its interval: a value is that
of all weights 1. Weights are counts (R, N), a draw in each row, and every result is (R,), so that
thousands of draws cost a few passes over one array.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from aiornot.delivery.calibrate import Calibration

NUM_BINS = 15
"""Bins of equal mass of the calibration error."""

Metrics = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Verdicts at every threshold that parts two scores, from none called generated downwards."""

    hits: np.ndarray
    """(R, K + 1) weight of the generated images called so; the last entry is all of them."""
    alarms: np.ndarray
    """(R, K + 1) the same of real images."""


def curve(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Curve:
    """Count the verdicts at every threshold; equal scores are never parted.

    Args:
        scores: (N,) with K distinct values.
        labels: (N,) bool.
        weights: (R, N).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # where each tie group ends
    ranked, generated = weights[:, order], labels[order]
    return Curve(_totals(ranked * generated, last), _totals(ranked * ~generated, last))


def _totals(values: np.ndarray, last: np.ndarray) -> np.ndarray:
    sums = np.cumsum(values, axis=1, dtype=np.float64)[:, last]
    return np.concatenate([np.zeros((len(values), 1)), sums], axis=1)


def auroc(roc: Curve) -> np.ndarray:
    """How often generated outscores real, ties counting half."""
    widths, ends = np.diff(roc.alarms, axis=1), roc.hits[:, 1:] + roc.hits[:, :-1]
    pairs = roc.hits[:, -1] * roc.alarms[:, -1]
    return np.asarray(np.einsum("rk,rk->r", widths, ends) / (2 * pairs))


def average_precision(roc: Curve) -> np.ndarray:
    """Mean precision over the steps of recall, without interpolation."""
    steps, hits = np.diff(roc.hits, axis=1), roc.hits[:, 1:]
    called = hits + roc.alarms[:, 1:]
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return np.asarray(np.einsum("rk,rk->r", steps, precision) / hits[:, -1])


def recall_at(roc: Curve, *, max_fpr: float) -> np.ndarray:
    """The highest recall among thresholds whose false-positive rate is within bounds."""
    kept = roc.alarms / roc.alarms[:, -1:] <= max_fpr  # a first part of each row
    index = np.count_nonzero(kept, axis=1) - 1
    return np.asarray(roc.hits[np.arange(len(index)), index] / roc.hits[:, -1])


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean distance of probability and truth over bins of equal mass.

    Equal probabilities share a bin, so that the order of the rows does not matter.
    """
    order = np.argsort(probabilities, kind="stable")
    first = np.flatnonzero(np.diff(probabilities[order], prepend=-np.inf))
    ranked = weights[:, order]
    mass = np.add.reduceat(ranked, first, axis=1, dtype=np.float64)
    gaps = np.add.reduceat(ranked * (probabilities - labels)[order], first, axis=1)
    total = mass.sum(axis=1, keepdims=True)
    middle = np.cumsum(mass, axis=1) - mass / 2
    bins = np.minimum(NUM_BINS * middle / total, NUM_BINS - 1).astype(np.int64)
    bins += NUM_BINS * np.arange(len(weights))[:, None]
    sums = np.bincount(bins.ravel(), weights=gaps.ravel(), minlength=NUM_BINS * len(weights))
    return np.asarray(np.abs(sums.reshape(-1, NUM_BINS)).sum(axis=1) / total[:, 0])


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Binary cross-entropy (N,) in nats."""
    return np.asarray(np.logaddexp(0.0, np.where(labels, -logits, logits)))


def means(values: Mapping[str, np.ndarray], weights: np.ndarray) -> Metrics:
    """Return the weighted mean (R,) of each (N,)."""
    columns = np.stack([np.asarray(each, dtype=np.float64) for each in values.values()], axis=1)
    found = weights @ columns / weights.sum(axis=1, keepdims=True)
    return dict(zip(values, found.T, strict=True))


def of_verdicts(
    called: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, suffix: str
) -> Metrics:
    """Return what a threshold does; the names end in ``suffix``.

    ``precision`` is NaN where no image is called generated.

    Args:
        called: (N,) bool, called generated.
        labels: (N,) bool.
        weights: (R, N).
    """
    kinds = np.stack([called & labels, called & ~labels, labels, ~labels], axis=1)
    hits, alarms, generated, real = (weights @ kinds.astype(np.float64)).T
    calls, recall, fpr = hits + alarms, hits / generated, alarms / real
    return {
        f"accuracy{suffix}": (hits + real - alarms) / (generated + real),
        f"balanced_accuracy{suffix}": (recall + 1 - fpr) / 2,
        f"precision{suffix}": _share(hits, calls),
        f"recall{suffix}": recall,
        f"fpr{suffix}": fpr,
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to take a share of."""
    found: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def measure(
    logits: np.ndarray, labels: np.ndarray, calibration: Calibration, weights: np.ndarray
) -> Metrics:
    """Return all metrics (R,); *generated* is the positive class.

    ``tpr@fpr=0.01`` is the best recall that the split itself allows at that rate, not that of the
    stored threshold. ``accuracy_when_sure`` is NaN where every image is unsure.

    Args:
        logits: (N,) float64.
        labels: (N,) bool, of both classes.
        calibration: Its threshold gives the keys that end in ``@threshold``.
        weights: (R, N) counts, of both classes in every row.
    """
    probabilities = calibration.probabilities(logits)
    called, unsure = calibration.verdicts(logits), calibration.unsure_at(probabilities)
    roc = curve(logits, labels, weights)
    found = means(
        {
            "log_loss_before_temperature": losses(logits, labels),
            "log_loss_after_temperature": losses(logits / calibration.temperature, labels),
            "brier": (probabilities - labels) ** 2,
            "unsure_share": unsure,
            "right_and_sure": (called == labels) & ~unsure,
        },
        weights,
    )
    right_and_sure = found.pop("right_and_sure")
    return {
        "auroc": auroc(roc),
        "average_precision": average_precision(roc),
        **found,
        "ece": calibration_error(probabilities, labels, weights),
        "tpr@fpr=0.01": recall_at(roc, max_fpr=0.01),
        "tpr@fpr=0.05": recall_at(roc, max_fpr=0.05),
        **of_verdicts(probabilities >= 0.5, labels, weights, suffix="@0.5"),
        **of_verdicts(called, labels, weights, suffix="@threshold"),
        "accuracy_when_sure": _share(right_and_sure, 1 - found["unsure_share"]),
    }
