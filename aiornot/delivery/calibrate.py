"""Logits and labels of the val split -> a temperature and a threshold, the last step of training.

``aiornot calibrate BUNDLE --rule "fpr<=0.01"`` chooses the threshold by another rule.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aiornot.config import InputError

RULES = (
    "balanced (best balanced accuracy), fpr<=0.01 (any share from 0 to below 1), fnr<=0.01 (the "
    "same of generated images called real), cost:FP=5 (a false positive costs 5 false negatives)"
)
"""The forms of a rule, as help and errors show them."""

DEFAULT_RULE = "balanced"

SURE = 0.01
"""A verdict is sure where at most this share of val images of the other class gets it."""

TEMPERATURES = (0.1, 10.0)
"""Bounds of the fit. Beyond them the val split is too small or the model of no use."""

MAX_LOGIT = 30.0
"""Calibrated logits are cut here: a probability stays 1e-13 off 0 and 1, so that a threshold fits
between it and the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns a logit into a probability and a verdict."""

    temperature: float
    """The logit is divided by it."""
    threshold: float
    """Probability, after temperature, from which an image is called generated."""
    rule: str
    """How the threshold was chosen."""
    unsure: tuple[float, float] | None = None
    """Probabilities from the first to below the second are too close to call; see
    ``unsure_band``. None: there are none such."""

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the calibrated probability (N,) float64 of *generated* for logits (N,)."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        return sigmoid(np.clip(scaled, -MAX_LOGIT, MAX_LOGIT))

    def verdicts(self, logits: np.ndarray) -> np.ndarray:
        """Return (N,) bool, true where an image is called generated."""
        return np.asarray(self.probabilities(logits) >= self.threshold)

    def unsure_at(self, probabilities: np.ndarray) -> np.ndarray:
        """Return (N,) bool, true where a calibrated probability is too close to call."""
        values = np.asarray(probabilities, dtype=np.float64)
        low, high = self.unsure or (0.0, 0.0)
        return np.asarray((low <= values) & (values < high))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, equal to themselves after a journey through JSON."""
        return dataclasses.asdict(self) | {"unsure": list(self.unsure) if self.unsure else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        unsure = values["unsure"]
        return cls(**{**values, "unsure": (unsure[0], unsure[1]) if unsure else None})


def calibrate(logits: np.ndarray, labels: np.ndarray, *, rule: str = DEFAULT_RULE) -> Calibration:
    """Fit the temperature by log loss, choose the threshold by a rule, then the unsure band.

    ``cost`` depends on the share of generated images in the split; the other rules do not.

    Args:
        logits: (N,) of the val split.
        labels: (N,) 0 or 1.
        rule: One of ``RULES``.

    Raises:
        InputError: An unknown rule, a class without images, or a logit that is not finite.
    """
    check_rule(rule)
    logits, labels = check(logits, labels)
    fitted = Calibration(temperature=fit_temperature(logits, labels), threshold=0.5, rule=rule)
    probabilities = fitted.probabilities(logits)
    threshold = choose_threshold(probabilities, labels, rule=rule)
    unsure = unsure_band(probabilities, labels, threshold=threshold)
    return dataclasses.replace(fitted, threshold=threshold, unsure=unsure)


def check(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (N,) float64 and bool.

    Raises:
        InputError: A class without images, or a logit that is not finite.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels).astype(bool)
    assert logits.shape == labels.shape and logits.ndim == 1
    if labels.all() or not labels.any():
        raise InputError(
            f"the split has {len(labels)} images of one class; scores need images of both, "
            "so prepare the data again from more images"
        )
    if not np.isfinite(logits).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(logits))} of {len(logits)} logits are not finite; "
            "the model diverged, deliver another checkpoint"
        )
    return logits, labels


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logits)), to full precision at both ends."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in ``TEMPERATURES`` with the least log loss.

    Log loss is convex in 1 / temperature, so its slope is bisected, in float64. Where every logit
    has the sign of its label there is no minimum: the loss falls for ever as the temperature goes
    to 0. Such a split says nothing about confidence, and the temperature stays 1.
    """
    if bool(np.all(np.where(labels, logits, -logits) >= 0)):
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):  # halves the interval of 10 to below the precision of float64
        middle = (low + high) / 2
        slope = float(np.mean(logits * (sigmoid(logits * middle) - labels)))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


def cuts(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List every way to cut the scores in two; equal scores are never parted.

    Args:
        scores: (N,) with K distinct values.
        labels: (N,) bool.

    Returns:
        The distinct scores (K,), ascending, and the true and the false positives (K + 1,) int64:
        entry k counts the scores from the k-th distinct one upwards, entry K is no positive at all.
    """
    values, group = np.unique(scores, return_inverse=True)
    positives = np.bincount(group, weights=labels, minlength=len(values)).astype(np.int64)
    negatives = np.bincount(group, weights=~labels, minlength=len(values)).astype(np.int64)
    from_top = [np.append(np.cumsum(counts[::-1])[::-1], 0) for counts in (positives, negatives)]
    return values, from_top[0], from_top[1]


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray, *, rule: str) -> float:
    """Return the threshold midway between two neighbouring scores that the rule likes best.

    The ends of the scale, 0 and 1, count as neighbours of the lowest and the highest score. Among
    cuts that are equally good the one in the widest gap is taken, then the lowest.

    Args:
        probabilities: (N,) float64, none of them 1.
        labels: (N,) bool.
        rule: One of ``RULES``.

    Raises:
        InputError: Unknown rule.
    """
    values, true_positives, false_positives = cuts(probabilities, labels)
    merit = _merit(rule, true_positives, false_positives)
    edges = np.concatenate([[0.0], values, [1.0]])
    gaps = np.where(merit == merit.max(), np.diff(edges), -np.inf)
    best = int(np.argmax(gaps))
    middle = float(edges[best] + edges[best + 1]) / 2
    # Between two neighbouring floats there is no middle: the upper one parts them as well.
    return middle if middle > edges[best] else float(edges[best + 1])


def unsure_band(
    probabilities: np.ndarray, labels: np.ndarray, *, threshold: float
) -> tuple[float, float] | None:
    """Return where a verdict is given to more than ``SURE`` of the images of the other class.

    Above the band *generated* is said of at most ``SURE`` of the real images, below it *real* of
    at most ``SURE`` of the generated ones. The threshold lies in it or at one of its ends, so that
    a rule that favours one verdict makes this the sure one. None where both verdicts are sure
    everywhere.

    Args:
        probabilities: (N,) float64, none of them 1.
        labels: (N,) bool.
        threshold: Where the verdict changes.
    """
    low = min(threshold, choose_threshold(probabilities, labels, rule=f"fnr<={SURE}"))
    high = max(threshold, choose_threshold(probabilities, labels, rule=f"fpr<={SURE}"))
    return (low, high) if low < high else None


def _merit(rule: str, true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """Return how much a rule likes each cut (K + 1,), in whole numbers: ties are exact."""
    num_generated, num_real = int(true_positives[0]), int(false_positives[0])
    name, number = check_rule(rule)
    if name == "balanced":
        return np.asarray(true_positives * num_real - false_positives * num_generated)
    if name == "cost":
        return np.asarray(true_positives - number * false_positives)
    if name == "fnr":
        missed = (num_generated - true_positives) / num_generated
        ranked = (true_positives - false_positives * (num_generated + 1)).astype(np.float64)
        return np.where(missed <= number, ranked, -np.inf)
    # Most true positives, then fewest false ones, among the cuts that keep the promise.
    ranked = (true_positives * (num_real + 1) - false_positives).astype(np.float64)
    return np.where(false_positives / num_real <= number, ranked, -np.inf)


def check_rule(rule: str) -> tuple[str, float]:
    """Read a rule as its name and its number, 0 where it has none.

    Raises:
        InputError: Not one of ``RULES``.
    """
    if rule == "balanced":
        return "balanced", 0.0
    found = re.fullmatch(r"(fpr<|fnr<|cost:FP)=([-+.\deE]+)", rule)
    with contextlib.suppress(ValueError):
        number = float(found[2]) if found else math.nan
        if rule[:3] in ("fpr", "fnr") and 0 <= number < 1:
            return rule[:3], number
        if rule.startswith("cost") and 0 < number < math.inf:
            return "cost", number
    raise InputError(f"rule {rule!r} is not known: use {RULES}")
