"""Intervals by resampling: how far a score would move if other images had been in the split.

Near-duplicates are drawn together: copies of one image are not so many independent witnesses, and
drawn one by one they would make every interval too narrow.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

NUM_DRAWS = 2000
"""They place each end of an interval to about a fortieth of its width."""

_CHUNK = 1_000_000
"""Weights drawn at once, 8 MB: fewer calls than one draw a time, and it stays near the caches."""

Statistics = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Weights (R, N) -> named values (R,): one for each draw, which counts image n ``weights[r, n]``
times. A value is NaN where it is undefined."""

Progress = Callable[[int, int], None]


def _quiet(done: int, total: int) -> None:
    pass


def sample(
    statistics: Statistics,
    labels: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    progress: Progress = _quiet,
) -> dict[str, np.ndarray]:
    """Return what each statistic is over draws of clusters, (num_draws,) by its name.

    Draws keep the number of clusters with real, with generated, and with both kinds of images, so
    that either class is in every draw and the spread is that of this share of generated images.
    It knows the spread of images only, not that of training seeds, and is nil for a perfect score.

    Args:
        statistics: All that is wanted, of the same draws: also differences of two models.
        labels: (N,) bool.
        clusters: (N,) ids; None draws each image alone.
        seed: Equal seeds, labels and clusters give equal draws.
        progress: Called with the draws so far, and with all.
    """
    found: list[Mapping[str, np.ndarray]] = []
    step = max(1, _CHUNK // len(labels))
    generator = np.random.default_rng(seed)
    strata = _strata(labels, np.arange(len(labels)) if clusters is None else clusters)
    for done in range(0, num_draws, step):
        count = min(step, num_draws - done)
        found.append(statistics(_draw(strata, len(labels), count, generator)))
        progress(done + count, num_draws)
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


_Stratum = tuple[np.ndarray, np.ndarray]
"""The images of a kind of clusters (M,), and the number of each one's cluster (M,)."""


def _strata(labels: np.ndarray, clusters: np.ndarray) -> list[_Stratum]:
    _, member = np.unique(clusters, return_inverse=True)
    generated = np.bincount(member, weights=labels) > 0
    real = np.bincount(member, weights=~labels) > 0
    kind = generated + 2 * real
    return list(_of_kinds(kind[member], member))


def _of_kinds(kind: np.ndarray, member: np.ndarray) -> Iterator[_Stratum]:
    for one in np.unique(kind):
        images = np.flatnonzero(kind == one)
        yield images, np.unique(member[images], return_inverse=True)[1]


def _draw(
    strata: list[_Stratum], num_images: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw how often each image is taken, (count, N) float64."""
    weights = np.empty((count, num_images))
    for images, member in strata:
        num_clusters = int(member.max()) + 1
        picks = generator.integers(num_clusters, size=(count, num_clusters))
        picks += num_clusters * np.arange(count)[:, None]
        times = np.bincount(picks.ravel(), minlength=count * num_clusters)
        weights[:, images] = times.reshape(count, num_clusters)[:, member]
    return weights


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % points of draws; undefined ones are left out."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def intervals(
    statistics: Statistics,
    labels: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    progress: Progress = _quiet,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each statistic; arguments as those of ``sample``."""
    drawn = sample(
        statistics, labels, clusters=clusters, num_draws=num_draws, seed=seed, progress=progress
    )
    return {name: interval(values) for name, values in drawn.items()}


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson: sound for few images, and for 0 and 1.

    Args:
        part: How many of them.
        whole: Of how many; with none the interval is all of 0 to 1.
    """
    if whole == 0:
        return 0.0, 1.0
    z = 1.959964
    share, weight = part / whole, z * z / whole
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / whole + weight / whole / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
