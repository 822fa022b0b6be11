"""How well file metadata alone tells the classes: what a detector could learn instead of traces.

``aiornot audit SOURCE`` asks it of all metadata together, of each feature alone, and of 8 x 8 grey
thumbnails. Scores are those of images that the model has not seen, nor a duplicate of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aiornot.data import splits
from aiornot.data.traits import Traits

LEAK_AUROC = 0.65
"""Above it metadata is a leak. Not .5: the demo's data reads .56 without a planted one, and its
prototype .6, since how well an image compresses is a true consequence of how it was made."""

NUM_FOLDS = 5
MIN_ROWS = 10
"""Of each class, below which a probe is not tried."""

_NORMAL_95 = 1.96
_Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One property of a file that may tell its class."""

    name: str
    """For people."""
    columns: tuple[str, ...]
    """The fields of ``Traits`` it is made of."""
    kind: Literal["category", "number"]
    in_pixels: bool
    """Whether it leaves something in the decoded image, which is all that a detector sees."""


FEATURES = (
    Feature("format", ("format",), "category", in_pixels=True),
    Feature("mode", ("mode",), "category", in_pixels=True),
    Feature("width", ("width",), "number", in_pixels=True),
    Feature("height", ("height",), "number", in_pixels=True),
    Feature("aspect", ("aspect",), "number", in_pixels=True),
    Feature("bytes per pixel", ("bytes_per_pixel",), "number", in_pixels=True),
    Feature("JPEG quality", ("quality",), "number", in_pixels=True),
    Feature("JPEG tables", ("luminance", "chrominance"), "number", in_pixels=True),
    Feature("JPEG subsampling", ("subsampling",), "category", in_pixels=True),
    Feature("EXIF", ("exif",), "category", in_pixels=False),
    Feature("ICC profile", ("icc",), "category", in_pixels=False),
)


@dataclasses.dataclass(frozen=True)
class Score:
    """An AUROC with its 95 % interval; all None where there were too few images to tell."""

    auroc: float | None = None
    low: float | None = None
    high: float | None = None

    def leaks(self) -> bool:
        """Tell whether it is above ``LEAK_AUROC``, and not so by the chance of a few images."""
        return self.auroc is not None and self.auroc > LEAK_AUROC and self.is_certain()

    def is_certain(self) -> bool:
        return self.low is not None and self.low > 0.5


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The readable images, and who may learn from whom."""

    traits: Sequence[Traits]
    labels: npt.NDArray[np.int64]
    """(N,) 0 or 1."""
    clusters: npt.NDArray[np.int64]
    """(N,) ids; rows that share one are in one fold."""
    fold: npt.NDArray[np.int8]
    """(N,) 0 to NUM_FOLDS - 1."""


def labelled(
    traits: Sequence[Traits | None], labels: npt.ArrayLike, clusters: npt.ArrayLike
) -> Labelled:
    """Leave out what cannot be read, and deal the rest into folds.

    Args:
        traits: (N,) of each row.
        labels: (N,) 0 or 1.
        clusters: (N,) ids of near-duplicates.

    Raises:
        InputError: As ``splits.folds``: a label is not 0 or 1, or a class has fewer than 10 rows.
    """
    kept = np.array([row for row, found in enumerate(traits) if found is not None], dtype=np.int64)
    # The ten folds of the splits, in pairs: stratified, and no cluster in two of them.
    fold = splits.folds(labels, clusters=clusters) // (10 // NUM_FOLDS)
    return Labelled(
        [found for found in traits if found is not None],
        np.asarray(labels, dtype=np.int64)[kept],
        np.asarray(clusters)[kept],
        fold[kept],
    )


def metadata(data: Labelled) -> Score:
    """Score a forest on all features together: it finds combinations, and sizes in the middle."""
    columns = [_matrix(feature, data.traits) for feature in FEATURES]
    return _score(np.hstack(columns), data, model="forest")


def alone(feature: Feature, data: Labelled) -> Score:
    """Score a small tree on one feature, among the files that have it.

    JPEG quality among the JPEG files, for instance: that a file is one at all is its format.
    """
    matrix = _matrix(feature, data.traits)
    has = np.array([_value(row, feature.columns[0]) is not None for row in data.traits], dtype=bool)
    part = Labelled(
        [row for row, kept in zip(data.traits, has, strict=True) if kept],
        data.labels[has],
        data.clusters[has],
        data.fold[has],
    )
    return _score(matrix[has], part, model="tree")


def content(data: Labelled) -> Score:
    """Score a logistic regression on the grey thumbnails: what is shown, without any trace."""
    grey = np.frombuffer(b"".join(row.grey for row in data.traits), dtype=np.uint8)
    return _score(grey.reshape(len(data.traits), -1) / 255, data, model="logistic")


def membership(inside: npt.ArrayLike, data: Labelled) -> Score:
    """Score a yes or no as it stands: above .5 where it means generated more often.

    Args:
        inside: (N,) bool.
    """
    if not _enough(data.labels):
        return Score()
    chosen = np.asarray(inside, dtype=bool)
    generated, real = (float(chosen[data.labels == label].mean()) for label in (1, 0))
    return _with_interval(0.5 + (generated - real) / 2, data)


def standard_error(auroc: float, *, num_positive: int, num_negative: int) -> float:
    """Return the standard error of an AUROC after Hanley and McNeil (1982)."""
    square = auroc**2
    two_positives = auroc / (2 - auroc) - square
    two_negatives = 2 * square / (1 + auroc) - square
    variance = auroc * (1 - auroc) + (num_positive - 1) * two_positives
    variance += (num_negative - 1) * two_negatives
    # At an AUROC of 1 rounding may take it below zero.
    return math.sqrt(max(0.0, variance / (num_positive * num_negative)))


def _value(row: Traits, column: str) -> Any:
    return getattr(row, column)


def _matrix(feature: Feature, traits: Sequence[Traits]) -> _Array:
    """Return (N, columns): numbers as they are, NaN where there is none; categories one by one."""
    values = [[_value(row, column) for column in feature.columns] for row in traits]
    if feature.kind == "number":
        return np.array(values, dtype=np.float64).reshape(len(traits), -1)
    names = sorted({str(value) for (value,) in values})
    return np.array([[str(value) == name for name in names] for (value,) in values], dtype=float)


def _enough(labels: npt.NDArray[np.int64]) -> bool:
    return int(np.bincount(labels, minlength=2).min()) >= MIN_ROWS


def _score(matrix: _Array, data: Labelled, *, model: str) -> Score:
    """Cross-validate: every image is scored by a model of the other folds, all scores together."""
    from sklearn.metrics import roc_auc_score

    if not _enough(data.labels):
        return Score()
    scores = np.zeros(len(data.labels))
    for fold in range(NUM_FOLDS):
        tested = data.fold == fold
        if len(np.unique(data.labels[~tested])) < 2:  # one cluster holds nearly a whole class
            return Score()
        if tested.any():
            fitted = _model(model).fit(matrix[~tested], data.labels[~tested])
            scores[tested] = fitted.predict_proba(matrix[tested])[:, 1]
    # Rounded: folds that learned nothing must tie at .5 and not differ in the last bit.
    return _with_interval(float(roc_auc_score(data.labels, scores.round(6))), data)


def _with_interval(auroc: float, data: Labelled) -> Score:
    """Add the interval; duplicates of one image are one observation."""
    negatives, positives = (len(np.unique(data.clusters[data.labels == label])) for label in (0, 1))
    error = standard_error(auroc, num_positive=positives, num_negative=negatives)
    low, high = auroc - _NORMAL_95 * error, auroc + _NORMAL_95 * error
    return Score(auroc, max(0.0, low), min(1.0, high))


def _model(name: str) -> Any:
    """Build a classifier. Balanced: the share of a class in a fold must not move its scores."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    if name == "forest":
        return RandomForestClassifier(
            50, max_depth=6, min_samples_leaf=5, class_weight="balanced", random_state=0
        )
    if name == "tree":
        return DecisionTreeClassifier(
            max_depth=4, min_samples_leaf=10, class_weight="balanced", random_state=0
        )
    assert name == "logistic", name
    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
