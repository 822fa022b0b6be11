"""Rows to train / val / test: who may learn from what, fixed before anything is reduced.

``aiornot prepare data/*.parquet --limit 1000 --out data/`` uses ``plan(labels, limit=1000)``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aiornot.config import InputError

Rows = npt.NDArray[np.int64]
Plan = dict[str, Rows]

SPLITS = ("train", "val", "test")

_FOLDS = {"train": (3, 4, 5, 6, 7, 8, 9), "val": (0,), "test": (1, 2)}


def plan(
    labels: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Plan:
    """Assign every row to one split and put each split into one seeded, class-balanced order.

    Splits are made on all rows and only then cut to the first ``limit``: no image from which a
    reduced run learned can be in the full test set. Every prefix of a split has the split's class
    shares to within one row, so a fraction of it is a prefix of it.

    Args:
        labels: (N,) 0 or 1.
        clusters: (N,) ids; rows that share one stay in one split.
        limit: Keep only the first so many source rows.
        seed: Of the folds and of the order.

    Returns:
        Row numbers per split, in the order in which they stand in the file. Of each class, a
        limited plan holds the full plan's rows in the full plan's order.

    Raises:
        InputError: A label is not 0 or 1, a class is too small, or ``limit`` is.
    """
    fold = folds(labels, clusters=clusters, seed=seed)
    checked = _check_labels(labels)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} must be at least 1")
    # RandomState, as scikit-learn uses: its stream is frozen, that of default_rng may change.
    rank = np.random.RandomState(seed).permutation(len(fold))
    result = {}
    for split in SPLITS:
        rows = np.flatnonzero(np.isin(fold[:limit], _FOLDS[split]))
        _check_classes(split, checked[rows], limit=limit, total=len(fold))
        shuffled = rows[np.argsort(rank[rows])]
        result[split] = shuffled[_interleave(checked[shuffled])]
    return result


def thin(plan: Plan, labels: npt.ArrayLike, *, left_out: npt.NDArray[np.bool_]) -> Plan:
    """Leave rows out of train and val, where a model learns or is chosen; test keeps them.

    Args:
        plan: Of ``plan``.
        labels: (N,) 0 or 1.
        left_out: (N,) true for the rows to leave out.

    Returns:
        The other rows in an order as ``plan`` gives it, balanced again.

    Raises:
        InputError: A class is gone.
    """
    checked, result = _check_labels(labels), dict(plan)
    for split in ("train", "val"):
        rows = plan[split][~left_out[plan[split]]]
        if len(np.unique(checked[rows])) < 2:
            raise InputError(f"split {split} would have images of one class only; hold out less")
        result[split] = rows[_interleave(checked[rows])]
    return result


def folds(
    labels: npt.ArrayLike, *, clusters: npt.ArrayLike | None = None, seed: int = 0
) -> npt.NDArray[np.int8]:
    """Give every row its fold: the notebook's, then each cluster moves to that of its first row.

    Args:
        labels: (N,) 0 or 1.
        clusters: (N,) ids, any integers.
        seed: ``random_state`` of scikit-learn's StratifiedKFold.

    Returns:
        (N,) 0 to 9.

    Raises:
        InputError: A label is not 0 or 1, or a class has fewer than 10 rows.
    """
    checked = _check_labels(labels)
    negatives, positives = np.bincount(checked, minlength=2).tolist()
    if min(negatives, positives) < 10:
        raise InputError(
            f"{negatives} rows have label 0 and {positives} have label 1: ten stratified folds "
            "need at least 10 of each, add images of the smaller class"
        )
    result = np.empty(len(checked), dtype=np.int8)
    # Imported here: it takes a second, which reading a split's labels need not pay.
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(10, shuffle=True, random_state=seed)
    for fold, (_, members) in enumerate(splitter.split(np.zeros(len(checked)), checked)):
        result[members] = fold
    if clusters is None:
        return result
    ids = np.asarray(clusters)
    assert ids.shape == checked.shape, f"{ids.shape} cluster ids for {checked.shape} labels"
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return result[first[inverse]]


def digest(plan: Mapping[str, npt.NDArray[Any]], ids: Sequence[str] | npt.NDArray[Any]) -> str:
    """Return the sha256 of the ids of each split in order: equal if and only if the files are.

    It is taken over compact JSON, ``{"train":["id",...],"val":[...],"test":[...]}``, which anyone
    can rebuild from splits.json.
    """
    named = {split: [str(ids[row]) for row in plan[split].tolist()] for split in SPLITS}
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()


def _interleave(labels: npt.NDArray[np.int64]) -> Rows:
    """Order rows so that every prefix has the class shares of the whole to within one row.

    The j-th of n rows of a class stands at (j + 1/2) / n of the way. By any point of the way, each
    class has given its share to within half a row.
    """
    place = np.empty(len(labels))
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


def _check_labels(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the labels as integers."""
    array = np.asarray(labels)
    assert array.ndim == 1, f"labels have shape {array.shape}"
    values = array.tolist()
    wrong = [value for value in dict.fromkeys(values) if value not in (0, 1)]
    if wrong:
        found = ", ".join(repr(value) for value in wrong[:5]) + (", ..." if wrong[5:] else "")
        raise InputError(
            f"labels must be 0 (real) or 1 (generated), but {found} was found, first in row "
            f"{values.index(wrong[0])}: map the labels or drop those rows"
        )
    return array.astype(np.int64)


def _check_classes(
    split: str, labels: npt.NDArray[np.int64], *, limit: int | None, total: int
) -> None:
    missing = [label for label in (0, 1) if label not in labels]
    if not missing:
        return
    what = f"split {split} has no row with label {' or '.join(map(str, missing))}"
    if limit is not None and limit < total:
        raise InputError(f"{what} among the first {limit} of {total} rows: raise --limit")
    raise InputError(f"{what} once duplicates are kept together: add images of that class")
