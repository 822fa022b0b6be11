"""What a network sees of an image: frozen features, or its pixels; and augmented copies of it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from sklearn.cluster import MiniBatchKMeans

Array: TypeAlias = NDArray[Any]
Extractor: TypeAlias = Callable[[Array], Array]
"""Images (N, S, S) to features (N, D)."""

COPIES = 3
"""Augmented copies of train, of which each step draws one per batch."""

AUGMENTATIONS = ("none", "flip", "light", "both")
"""Mirrored or not, brightness and contrast jittered or not: two hyper-parameters."""


def augment(images: Array, kind: str, rng: np.random.Generator) -> Array:
    """Return an augmented copy of images (N, S, S)."""
    mirrored, jittered = kind in ("flip", "both"), kind in ("light", "both")
    count = len(images)
    if mirrored:
        images = np.where(rng.random((count, 1, 1)) < 0.5, images[:, :, ::-1], images)
    if jittered:
        images = images * rng.uniform(0.7, 1.3, (count, 1, 1))
        images = images + rng.normal(0, 0.15, images.shape)
    return images


def dct(images: Array, train: Array) -> Array:
    """Statistics of the coefficients of 4 x 4 blocks."""
    blocks = _windows(images, 4, step=2).reshape(len(images), -1, 4, 4)
    energy = np.log(1e-3 + np.abs(dctn(blocks, axes=(2, 3), norm="ortho")))
    energy = energy.reshape(len(images), -1, 16)
    return np.concatenate([energy.mean(1), energy.std(1), np.quantile(energy, 0.8, axis=1)], 1)


def clusters(images: Array, train: Array) -> Array:
    """How near the patches of the residue are to clusters of train's."""

    def patches(found: Array) -> Array:
        windows = _windows(found - gaussian_filter(found, (0, 1, 1)), 5, step=2)
        return windows.reshape(len(found), -1, 25) * 3

    base = patches(train[:1000]).reshape(-1, 25)
    chosen = base[np.random.default_rng(0).permutation(len(base))[:10_000]]
    model = MiniBatchKMeans(64, random_state=0, n_init=1, batch_size=2000).fit(chosen)
    seen = patches(images)
    near = model.transform(seen.reshape(-1, 25)).reshape(*seen.shape[:2], -1)
    return np.maximum(0, near.mean(2, keepdims=True) - near).mean(1)


def convolution(images: Array, train: Array) -> Array:
    """Mean and spread of random 3 x 3 filters' responses."""
    filters = np.random.default_rng(3).normal(size=(9, 32))
    filters -= filters.mean(0) * 0.9
    answers = np.maximum(_windows(images, 3, step=2).reshape(len(images), -1, 9) @ filters, 0)
    return np.concatenate([answers.mean(1), answers.std(1)], 1)


def spectrum(images: Array, train: Array) -> Array:
    """The logarithm of the power at each frequency, averaged over its neighbours."""
    power = np.log(1e-3 + np.abs(np.fft.rfft2(images)))
    rows = np.array_split(power, 8, axis=1)
    cells = [cell.mean((1, 2)) for row in rows for cell in np.array_split(row, 7, axis=2)]
    return np.stack(cells, 1)


def pixels(images: Array, train: Array) -> Array:
    return images.reshape(len(images), -1)


EXTRACTORS: dict[str, Callable[[Array, Array], Array]] = {
    "dct": dct,
    "clusters": clusters,
    "convolution": convolution,
    "spectrum": spectrum,
    "pixels": pixels,
}


def _windows(images: Array, size: int, *, step: int) -> Array:
    return sliding_window_view(images, (size, size), (1, 2))[:, ::step, ::step]
