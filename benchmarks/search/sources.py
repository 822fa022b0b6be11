"""The images of each task: photographs and digits that scikit-learn ships, or drawn ones.

``patches``  Is a crop of a photograph real, or blended with a reconstruction of it?
``digits``   Is a noisy handwritten digit odd?
``scenes``   Is a noisy crop of the flower's photograph, and not of the temple's?
``shapes``   Is a drawn ellipse in noise filled, and not an outline?
``stripes``  Do drawn stripes in noise run rather down than across?
``spirals``  Are drawn rings in noise wound up to a spiral?
``pairs``    Are two drawn spots in noise both bright or both dark?
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, shift, zoom
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA

Array: TypeAlias = NDArray[Any]
Random: TypeAlias = np.random.Generator
Labelled: TypeAlias = tuple[Array, Array]
"""Images (N, S, S) float32, labels (N,) of 0 and 1."""
Task: TypeAlias = Callable[[Random, dict[str, int]], dict[str, Labelled]]
"""Makes splits of so many images."""

ACROSS, DOWN = np.meshgrid(np.arange(16), np.arange(16))
"""Where each pixel of what is drawn lies."""

TILE = 36
"""Pixels of a photograph that go into one split together."""

WRONG_LABELS = 0.04
"""Share of train's labels that are wrong, as in what is scraped."""

NOISE = {"shapes": 0.9, "stripes": 2.2, "spirals": 1.0, "pairs": 0.9}
"""Of what is drawn, beside a brightness of about 1."""

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a task."""

    whole: Array
    """(N, S, S) float32, about zero."""
    labels: Array
    """(N,) float32, 0 or 1."""

    def half(self) -> Array:
        """Return the images at half of the resolution, (N, S/2, S/2)."""
        num, size, _ = self.whole.shape
        return self.whole.reshape(num, size // 2, 2, size // 2, 2).mean((2, 4))

    def first(self, count: int) -> "Split":
        return Split(self.whole[:count], self.labels[:count])


def load(task: str, counts: dict[str, int]) -> dict[str, Split]:
    """Make the splits of a task; nothing of one is seen in another.

    Args:
        task: One of ``TASKS``.
        counts: Images per split.
    """
    rng = np.random.default_rng(0)
    made = TASKS[task](rng, counts)
    found = {}
    for name, (images, labels) in made.items():
        wrong = (rng.random(len(labels)) < WRONG_LABELS) & (name == "train")
        centred = images - images.mean((1, 2), keepdims=True)
        found[name] = Split(
            (centred / images.std()).astype(np.float32), (labels ^ wrong).astype(np.float32)
        )
    return found


def patches(rng: Random, counts: dict[str, int]) -> dict[str, Labelled]:
    """Crops of 24 px; half of them are blended with a reconstruction, all of them compressed."""
    photos, tiles = _photos(), _tiles(rng)
    base, _ = _crops(rng, photos, tiles["train"], 3000, size=24)
    pca = PCA(32, random_state=0).fit(base.reshape(len(base), -1))
    made = {}
    for name, count in counts.items():
        images, _ = _crops(rng, photos, tiles[name], count, size=24)
        labels = rng.random(count) < 0.5
        images[labels] = _generated(rng, images[labels], pca)
        made[name] = _compressed(rng, images), labels
    return made


def scenes(rng: Random, counts: dict[str, int]) -> dict[str, Labelled]:
    """Crops of 16 px with noise, of one photograph or the other."""
    photos, tiles = _photos(), _tiles(rng)
    made = {}
    for name, count in counts.items():
        images, origins = _crops(rng, photos, tiles[name], count, size=16)
        scale = rng.uniform(0.5, 1.5, (count, 1, 1))
        made[name] = images * scale + rng.normal(0, 0.08, images.shape), origins == 1
    return made


def digits(rng: Random, counts: dict[str, int]) -> dict[str, Labelled]:
    """Digits of 16 px, shifted and noisy; each digit's noise is drawn several times."""
    images, names = load_digits(return_X_y=True)
    images = zoom(images.reshape(-1, 8, 8) / 16.0, (1, 2, 2), order=1)
    order = rng.permutation(len(images))
    made, start = {}, 0
    for name, count in counts.items():
        stop = start + int(SPLITS[name] * len(order))
        rows = rng.choice(order[start:stop], count)
        moved = np.stack([shift(images[row], rng.uniform(-1.5, 1.5, 2), order=1) for row in rows])
        made[name] = moved + rng.normal(0, 0.45, moved.shape), names[rows] % 2 == 1
        start = stop
    return made


def shapes(rng: Random, count: int) -> Labelled:
    """Ellipses of 16 px, turned and moved, bright or dark, on a shaded ground with noise."""
    labels = rng.random(count) < 0.5
    return np.stack([_ellipse(rng, filled=label) for label in labels]), labels


def stripes(rng: Random, count: int) -> Labelled:
    """Stripes of 16 px of any direction, width and phase, and noise."""
    turn, phase = (rng.uniform(0, high, (count, 1, 1)) for high in (np.pi, 2 * np.pi))
    place = ACROSS * np.cos(turn) + DOWN * np.sin(turn)
    images = np.sin(2 * np.pi * place / rng.uniform(5, 9, (count, 1, 1)) + phase)
    images += rng.normal(0, NOISE["stripes"], images.shape)
    return images, (np.abs(np.cos(turn)) > np.abs(np.sin(turn))).ravel()


def spirals(rng: Random, count: int) -> Labelled:
    """Rings of 16 px round a moved centre and noise; half of them are wound up to a spiral."""
    labels = rng.random(count) < 0.5
    middle = rng.uniform(6, 9, (2, count, 1, 1))
    x, y = ACROSS - middle[0], DOWN - middle[1]
    arms = np.where(labels, rng.choice([-1, 1], count), 0)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    wave = 2 * np.pi * np.hypot(x, y) / rng.uniform(6, 9, (count, 1, 1))
    images = np.sin(wave + arms * np.arctan2(y, x) + phase)
    return images + rng.normal(0, NOISE["spirals"], images.shape), labels


def pairs(rng: Random, count: int) -> Labelled:
    """Two soft spots on 16 px, bright or dark, and noise; half of the pairs are of one kind."""
    labels = rng.random(count) < 0.5
    sign = rng.choice([-1, 1], count)
    images = rng.normal(0, NOISE["pairs"], (count, 16, 16))
    turn, apart = rng.uniform(0, 2 * np.pi, count), rng.uniform(3, 5, count)
    for side, kind in ((1, sign), (-1, np.where(labels, sign, -sign))):
        x, y = (
            rng.uniform(7, 8, count) + side * apart * way for way in (np.cos(turn), np.sin(turn))
        )
        away = (ACROSS - x[:, None, None]) ** 2 + (DOWN - y[:, None, None]) ** 2
        width = rng.uniform(1, 2, (count, 1, 1))
        images += kind[:, None, None] * np.exp(-away / (2 * width**2))
    return images, labels


def _of_splits(draw: Callable[[Random, int], Labelled]) -> Task:
    """Return a task whose splits have nothing in common, since each image is drawn anew."""
    return lambda rng, counts: {name: draw(rng, count) for name, count in counts.items()}


TASKS: dict[str, Task] = {
    "patches": patches,
    "digits": digits,
    "scenes": scenes,
    "shapes": _of_splits(shapes),
    "stripes": _of_splits(stripes),
    "spirals": _of_splits(spirals),
    "pairs": _of_splits(pairs),
}


def _ellipse(rng: Random, *, filled: bool) -> Array:
    """Draw an ellipse with soft stripes, or its outline."""
    across, down = np.meshgrid(*[np.arange(16) - rng.uniform(6, 9) for _ in range(2)])
    turn = rng.uniform(0, np.pi)
    x = across * np.cos(turn) + down * np.sin(turn)
    y = down * np.cos(turn) - across * np.sin(turn)
    radius = np.hypot(x / rng.uniform(4, 6.5), y / rng.uniform(3, 5))
    inside = 1 / (1 + np.exp(8 * (radius - 1)))
    if not filled:
        inside *= 1 / (1 + np.exp(8 * (0.6 - radius)))
    stripes = 0.3 * np.sin(x * rng.uniform(0.8, 2) + rng.uniform(0, 6))
    ground = 0.05 * (across * rng.normal() + down * rng.normal())
    brightness = rng.choice([-1, 1]) * rng.uniform(0.6, 1.4)
    return inside * (brightness + stripes) + ground + rng.normal(0, NOISE["shapes"], x.shape)


def _photos() -> list[Array]:
    weights = np.array([0.299, 0.587, 0.114])
    return [(photo / 255.0) @ weights for photo in load_sample_images().images]


def _tiles(rng: Random) -> dict[str, list[tuple[int, int, int]]]:
    """Deal the tiles (photograph, row, column) of both photographs to the splits."""
    places = [
        (number, row, column)
        for number, photo in enumerate(_photos())
        for row in range(0, photo.shape[0] - TILE + 1, TILE)
        for column in range(0, photo.shape[1] - TILE + 1, TILE)
    ]
    dealt = rng.choice(list(SPLITS), len(places), p=list(SPLITS.values()))
    return {name: [places[i] for i in np.flatnonzero(dealt == name)] for name in SPLITS}


def _crops(
    rng: Random, photos: list[Array], tiles: list[tuple[int, int, int]], count: int, *, size: int
) -> Labelled:
    """Return crops and the photograph of each; flat ones, which show nothing, are rare."""
    found: list[Array] = []
    origins = []
    while len(found) < count:
        number, row, column = tiles[rng.integers(len(tiles))]
        down, right = rng.integers(0, TILE - size + 1, 2)
        crop = photos[number][row + down :, column + right :][:size, :size]
        if crop.std() > 0.06 or rng.random() < 0.1:
            found.append(crop)
            origins.append(number)
    return np.stack(found), np.array(origins)


def _generated(rng: Random, images: Array, pca: PCA) -> Array:
    """Blend each image with one of three reconstructions of it."""
    flat = images.reshape(len(images), -1)
    coded = pca.inverse_transform(pca.transform(flat)).reshape(images.shape)
    size = images.shape[1]
    made = np.empty_like(images)
    for number, image in enumerate(images):
        way = rng.integers(3)
        if way == 0:
            fake = coded[number]
        elif way == 1:
            fake = zoom(zoom(image, 1 / 3, order=1), 3, order=int(rng.integers(2)))
        else:
            wave = np.sin(np.arange(size) * 2 * np.pi / 6)[None]
            fake = gaussian_filter(image, 1.5) + 0.2 * image.std() * wave
        share = rng.uniform(0.8, 1.0)
        made[number] = (1 - share) * image + share * (fake + rng.normal(0, 0.01, image.shape))
    return made


def _compressed(rng: Random, images: Array) -> Array:
    """Change the exposure of images (N, 24, 24) and quantise their 8 x 8 blocks, as JPEG does."""
    count = len(images)
    images = images * rng.uniform(0.7, 1.2, (count, 1, 1)) + rng.uniform(-0.1, 0.1, (count, 1, 1))
    blocks = images.reshape(count, 3, 8, 3, 8).transpose(0, 1, 3, 2, 4)
    ramp = 1 + 0.5 * (np.arange(8)[:, None] + np.arange(8)[None])
    steps = rng.uniform(0.001, 0.01, (count, 1, 1, 1, 1)) * ramp
    blocks = idctn(
        np.round(dctn(blocks, axes=(3, 4), norm="ortho") / steps) * steps, axes=(3, 4), norm="ortho"
    )
    images = blocks.transpose(0, 1, 3, 2, 4).reshape(count, 24, 24)
    return images + rng.normal(0, 0.002, images.shape)
