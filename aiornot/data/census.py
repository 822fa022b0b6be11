"""Counts by class: splits, bad files, duplicates, formats, numbers, sizes; plain values for JSON.

``aiornot audit SOURCE`` puts them into ``audit.json`` and shows them on its page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aiornot.data import duplicates, layout, leak, splits
from aiornot.data.hdf5 import CLASSES
from aiornot.data.leak import Labelled
from aiornot.data.shards import Rows

LISTED = 20
"""Rows or clusters named one by one; all of them are counted."""
MEMBERS = 8
"""Rows of one cluster named one by one."""
BINS = 24
TARGETS = sorted({profile.size for profile in layout.PROFILES.values()})
"""Sides in pixels that ``aiornot prepare`` makes."""

NUMBERS = {
    "width": "width",
    "height": "height",
    "aspect": "aspect",
    "bytes per pixel": "bytes_per_pixel",
    "JPEG quality": "quality",
}
"""Numbers that get a histogram, and their field of ``Traits``."""

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def by_class(labels: npt.ArrayLike) -> dict[str, int]:
    """Return how many labels are 0 and 1, by the names of the classes."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=2)
    return dict(zip(CLASSES, counts.tolist(), strict=True))


def counts(rows: Rows, plan: Mapping[str, _Ints]) -> dict[str, Any]:
    """Count rows by class, of the whole and of each split."""
    return {
        "rows": len(rows.ids),
        **by_class(rows.labels),
        "splits": {split: by_class(rows.labels[plan[split]]) for split in splits.SPLITS},
    }


def unreadable(rows: Rows, reasons: Mapping[int, str]) -> dict[str, Any]:
    """Count what cannot be read, by class and by reason, and name the first rows.

    Args:
        rows: The source.
        reasons: Why, by row.
    """
    bad = sorted(reasons)
    common = Counter(reasons[row] for row in bad).most_common(LISTED)
    return {
        "rows": len(bad),
        "without_bytes": sum(not rows.hashes[row] for row in bad),
        **by_class(rows.labels[np.array(bad, dtype=np.int64)]),
        "reasons": [{"reason": reason, "rows": count} for reason, count in common],
        "listed": [_named(rows, row) | {"reason": reasons[row]} for row in bad[:LISTED]],
    }


def _named(rows: Rows, row: int) -> dict[str, Any]:
    return {"id": rows.ids[row], "class": CLASSES[rows.labels[row]]}


def copies(
    rows: Rows, clusters: _Ints, *, equal: _Ints, plan: Mapping[str, _Ints]
) -> dict[str, Any]:
    """Describe clusters of duplicates, and what a split that ignores them does to them.

    Args:
        rows: The source.
        clusters: (N,) ids of the clusters of near-duplicates.
        equal: (N,) ids of the clusters of equal files.
        plan: Splits that were made without clusters.
    """
    groups = duplicates.groups(clusters)
    mixed = duplicates.conflicts(rows.labels, clusters)
    return {
        "clusters": len(groups),
        "rows": sum(map(len, groups)),
        "equal_rows": sum(map(len, duplicates.groups(equal))),
        "largest": [_cluster(rows, group, equal) for group in groups[:LISTED]],
        "conflicts": [[_named(rows, row) for row in group.tolist()] for group in mixed],
        "torn": _torn(clusters, plan),
    }


def _cluster(rows: Rows, members: _Ints, equal: _Ints) -> dict[str, Any]:
    return {
        "rows": len(members),
        **by_class(rows.labels[members]),
        "equal": len(np.unique(equal[members])) == 1,
        "listed": [_named(rows, row) for row in members[:MEMBERS].tolist()],
    }


def _torn(clusters: _Ints, plan: Mapping[str, _Ints]) -> dict[str, int]:
    """Count clusters that lie in several splits, and rows outside train with a copy in it."""
    found = np.stack(
        [np.bincount(clusters[plan[split]], minlength=len(clusters)) for split in splits.SPLITS]
    )
    in_train = found[splits.SPLITS.index("train")]
    outside = found.sum(axis=0) - in_train
    return {
        "clusters": int(((found > 0).sum(axis=0) > 1).sum()),
        "leaked_rows": int(outside[in_train > 0].sum()),
    }


def categories(data: Labelled) -> dict[str, list[dict[str, Any]]]:
    """Count each value of each categorical feature by class, the most common first.

    Files that do not have the feature are not counted: a PNG has no JPEG subsampling.
    """
    tables = {}
    for feature in leak.FEATURES:
        if feature.kind == "category":
            values = [getattr(row, feature.columns[0]) for row in data.traits]
            tables[feature.name] = [
                {"value": _word(value), **_where([other == value for other in values], data)}
                for value, _ in Counter(values).most_common()
                if value is not None
            ]
    return {name: table for name, table in tables.items() if table}


def _word(value: str | bool) -> str:
    return value if isinstance(value, str) else "yes" if value else "no"


def _where(chosen: Sequence[bool] | npt.NDArray[np.bool_], data: Labelled) -> dict[str, int]:
    return by_class(data.labels[np.asarray(chosen, dtype=bool)])


def numbers(data: Labelled) -> dict[str, dict[str, Any]]:
    """Return a histogram and quartiles by class of each number that at least one file has."""
    tables = {}
    for name, field in NUMBERS.items():
        found = [getattr(row, field) for row in data.traits]
        has = np.array([value is not None for value in found], dtype=bool)
        if has.any():
            values = np.array([value for value in found if value is not None])
            tables[name] = _distribution(values, data.labels[has])
    return tables


def _distribution(values: _Ints | _Floats, labels: _Ints) -> dict[str, Any]:
    """Bin the values of both classes alike; the outer bins also hold the far ones."""
    low, high = np.quantile(values, (0.005, 0.995), method="nearest").tolist()
    edges = _edges(low, high)
    table: dict[str, Any] = {"low": low, "high": high, "edges": edges.tolist(), "quartiles": {}}
    for label, name in enumerate(CLASSES):
        own = values[labels == label]
        table[name] = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0].tolist()
        quartiles = np.quantile(own, (0.25, 0.5, 0.75)).round(6).tolist() if len(own) else None
        table["quartiles"][name] = quartiles
    return table


def _edges(low: float, high: float) -> _Floats:
    """Return at most BINS + 1 edges; each bin of whole numbers holds equally many of them."""
    if isinstance(low, int) and isinstance(high, int):
        step = -(-(high - low + 1) // BINS)
        return np.arange(low, high + step + 1, step, dtype=np.float64) - 0.5
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, BINS + 1)


def sizes(data: Labelled) -> dict[str, list[dict[str, Any]]]:
    """Count the most common sizes and some kinds of size by class, with the AUROC of each.

    An image that has the target size already is stored as it is, every other one is resampled or
    cut: where that falls on one class more, a detector can learn the resampling.
    """
    width = np.array([row.width for row in data.traits], dtype=np.int64)
    height = np.array([row.height for row in data.traits], dtype=np.int64)
    common = Counter(zip(width.tolist(), height.tolist(), strict=True)).most_common(10)
    kinds = {f"{side} x {side}": (width == side) & (height == side) for side in TARGETS}
    kinds["square"] = width == height
    kinds |= {f"a side below {side}": np.minimum(width, height) < side for side in TARGETS}
    return {
        "common": [
            _size(f"{wide} x {high}", (width == wide) & (height == high), data)
            for (wide, high), _ in common
        ],
        "kinds": [_size(name, chosen, data) for name, chosen in kinds.items()],
    }


def _size(name: str, chosen: npt.NDArray[np.bool_], data: Labelled) -> dict[str, Any]:
    inside, totals = _where(chosen, data), by_class(data.labels)
    return {
        "size": name,
        **inside,
        "shares": {word: inside[word] / max(1, totals[word]) for word in CLASSES},
        "auroc": leak.membership(chosen, data).auroc,
    }
