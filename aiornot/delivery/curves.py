"""The curves of a split as a few hundred numbers: verdicts by threshold, calibration, scores.

``evaluate.py`` keeps them with the metrics, and ``aiornot report`` draws them: so a report needs
neither the model nor the data, and holds no score of a single image.
"""

from typing import Any

import numpy as np

from aiornot.delivery.calibrate import MAX_LOGIT, Calibration, cuts, sigmoid

NUM_POINTS = 150
"""Thresholds that are kept, at equal steps along the ROC curve."""

NUM_BINS = 15
"""Of equal mass, as those of the calibration error."""

RANGE = 8.0
"""Log odds beyond which scores are counted in the outermost bins: a probability of .9997."""

NUM_BARS = 32
"""Bins of the histogram of log odds."""

_DIGITS = 6


def curves(logits: np.ndarray, labels: np.ndarray, calibration: Calibration) -> dict[str, Any]:
    """Return what can be drawn of a split, as plain values.

    ``verdicts`` holds equally long lists, from none called generated to all: ``threshold`` (None
    for none), ``recall``, ``fpr`` and ``precision`` (None for none). ``reliability`` is a list of
    bins, each with its mean ``probability``, that ``before_temperature``, and of how many images
    (``num``) how many are ``generated``. ``histogram`` counts ``real`` and ``generated`` between
    ``edges`` of calibrated log odds.

    Args:
        logits: (N,) float64.
        labels: (N,) bool, of both classes.
        calibration: Of the bundle.
    """
    return {
        "verdicts": _verdicts(calibration.probabilities(logits), labels),
        "reliability": _reliability(logits, labels, calibration),
        "histogram": _histogram(logits / calibration.temperature, labels),
    }


def _verdicts(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    values, hits, alarms = (each[::-1] for each in cuts(probabilities, labels))
    recall, fpr = hits / hits[-1], alarms / alarms[-1]
    way = recall + fpr  # grows by as much as the curve goes up and to the right
    kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], NUM_POINTS)))
    called = np.maximum(1, hits + alarms)
    return {
        "threshold": [None if k == 0 else _short(values[k - 1]) for k in kept],
        "recall": [_short(recall[k]) for k in kept],
        "fpr": [_short(fpr[k]) for k in kept],
        "precision": [None if k == 0 else _short(hits[k] / called[k]) for k in kept],
    }


def _reliability(
    logits: np.ndarray, labels: np.ndarray, calibration: Calibration
) -> list[dict[str, Any]]:
    """Return bins of neighbouring scores; equal ones share a bin."""
    probabilities = calibration.probabilities(logits)
    before = sigmoid(np.clip(logits, -MAX_LOGIT, MAX_LOGIT))
    _, group, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    bins = (NUM_BINS * middle / len(labels)).astype(np.int64)[group]
    return [
        {
            "probability": _short(probabilities[bins == one].mean()),
            "before_temperature": _short(before[bins == one].mean()),
            "num": int(np.count_nonzero(bins == one)),
            "generated": int(np.count_nonzero(labels[bins == one])),
        }
        for one in np.unique(bins)
    ]


def _histogram(log_odds: np.ndarray, labels: np.ndarray) -> dict[str, list[Any]]:
    edges = np.linspace(-RANGE, RANGE, NUM_BARS + 1)
    inside = np.clip(log_odds, -RANGE, RANGE)
    return {
        "edges": edges.tolist(),
        "real": np.histogram(inside[~labels], edges)[0].tolist(),
        "generated": np.histogram(inside[labels], edges)[0].tolist(),
    }


def _short(value: float) -> float:
    return round(float(value), _DIGITS)
