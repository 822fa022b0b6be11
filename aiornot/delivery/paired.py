"""Two models on the same images: by how much do they differ, and is that more than chance?

``aiornot tune`` and ``aiornot evaluate`` ask it of the delivered model and the baseline, see
``compare.py``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aiornot.delivery import bootstrap
from aiornot.delivery.calibrate import Calibration, check
from aiornot.delivery.measures import auroc, curve, losses, means

METRICS = {
    "auroc": "AUROC",
    "accuracy@threshold": "accuracy",
    "precision@0.5": "precision at .5",
    "precision@threshold": "precision",
    "recall@threshold": "recall",
    "log_loss_after_temperature": "log loss",
}
"""What the table of results shows, with the names that people read."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says of the images of a split."""

    logits: np.ndarray
    """(N,)"""
    calibration: Calibration


def paired(
    final: Answers,
    baseline: Answers,
    labels: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_draws: int = bootstrap.NUM_DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return by how much the final model differs from the baseline, with 95 % intervals.

    Each draw takes clusters of near-duplicates whole, with replacement, and the same for both
    models: what makes an image hard for both cancels. It keeps the number of clusters of either
    class. The spread of training seeds is not in it.

    Args:
        final: Of the delivered model.
        baseline: Of what it is compared with.
        labels: (N,) 0 or 1.
        clusters: (N,) ids; None where every image is one of its own.
        num_draws: Of the bootstrap.
        seed: Of the draws.

    Returns:
        For ``auroc``, ``accuracy@threshold`` (each at its own) and ``log_loss_after_temperature``:
        ``difference``, final less baseline, its ``interval`` and ``better``, None where the
        interval holds 0.

    Raises:
        InputError: A class without images, or a logit that is not finite.
    """
    (ours, labels), (theirs, _) = (check(each.logits, labels) for each in (final, baseline))
    gains = {
        "accuracy@threshold": _right(final, labels) - _right(baseline, labels),
        "log_loss_after_temperature": _losses(final, labels) - _losses(baseline, labels),
    }

    def differences(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        aurocs = [auroc(curve(logits, labels, weights)) for logits in (ours, theirs)]
        return {"auroc": aurocs[0] - aurocs[1]} | means(gains, weights)

    drawn = bootstrap.sample(differences, labels, clusters=clusters, num_draws=num_draws, seed=seed)
    whole = differences(np.ones((1, len(labels))))
    return {name: _difference(name, float(whole[name][0]), drawn[name]) for name in whole}


def _difference(name: str, value: float, drawn: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap.interval(drawn)
    better = None if low <= 0 <= high else (low > 0) != name.startswith("log_loss")
    return {"difference": value, "interval": [low, high], "better": better}


def _right(answers: Answers, labels: np.ndarray) -> np.ndarray:
    right = answers.calibration.verdicts(answers.logits) == labels
    return np.asarray(right, dtype=np.float64)


def _losses(answers: Answers, labels: np.ndarray) -> np.ndarray:
    logits = np.asarray(answers.logits, dtype=np.float64) / answers.calibration.temperature
    return losses(logits, labels)


def verdict(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the differences say, in words; AUROC comes first, for the search went by it."""
    words = {True: "better than", False: "worse than", None: "no better than"}
    groups: dict[str, list[str]] = {}
    for name, found in differences.items():
        low, high = found["interval"]
        told = f"{METRICS[name]} {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        groups.setdefault(words[found["better"]], []).append(told)
    return "; ".join(f"{word} the baseline by {', '.join(told)}" for word, told in groups.items())
