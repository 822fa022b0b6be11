"""The human benchmark: images with known labels, a person's answers, and how good they were.

``aiornot human --data data/prepared`` asks them in a browser; ``delivery/app.py`` shows what this
room draws, and keeps what it scores as JSON.
"""

import dataclasses
import datetime
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.data.images import Pixels
from aiornot.delivery import bundle as bundles
from aiornot.delivery import evaluate
from aiornot.delivery.bootstrap import wilson
from aiornot.delivery.bundle import Bundle

NUM = 50
"""As in the notebook."""

SCHEMA_VERSION = 1

_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The images of one round, half of them real, in the order in which they are shown."""

    data: Path
    split: str
    seed: int
    images: np.ndarray
    """(N, S, S, 3) uint8 of the whole split, mapped."""
    rows: np.ndarray
    """(n,) int64 into ``images``."""
    labels: np.ndarray
    """(n,) bool, true where generated."""
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, number: int) -> Pixels:
        """Return one image (S, S, 3), by its place in the round."""
        return np.array(self.images[self.rows[number]])


def draw(data: Path, *, split: str = "val", num: int = NUM, seed: int = 0) -> Sample:
    """Draw a round; the same arguments give the same images in the same order.

    Args:
        data: A prepared file.
        split: ``val`` or ``test``. Not ``train``: the model has learnt it by heart.
        num: How many images, an even number.
        seed: Of the drawing.

    Raises:
        InputError: Not a prepared file, another split, or fewer images of a class than needed.
    """
    if split not in ("val", "test"):
        raise InputError(f"split {split!r} is no benchmark: use 'val' or 'test'")
    if num < 2 or num % 2:
        raise InputError(
            f"{num} images cannot be half real and half generated: give an even number"
        )
    labels = hdf5.read_labels(data, split) == 1
    generator = np.random.default_rng(seed)
    halves = [_take(np.flatnonzero(labels == one), num // 2, generator, one) for one in (0, 1)]
    rows = generator.permutation(np.concatenate(halves))
    ids = hdf5.read_ids(data, split)
    return Sample(
        data=data,
        split=split,
        seed=seed,
        images=hdf5.map_images(data, split),
        rows=rows,
        labels=labels[rows],
        ids=tuple(ids[row] for row in rows),
    )


def _take(rows: np.ndarray, count: int, generator: np.random.Generator, label: int) -> np.ndarray:
    if len(rows) < count:
        raise InputError(
            f"{count} {hdf5.CLASSES[label]} images are needed and the split holds {len(rows)}: "
            "ask for fewer with --num, or take another split"
        )
    return generator.choice(rows, size=count, replace=False)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sitting:
    """How far a person has come in a round."""

    sample: Sample
    answers: tuple[bool, ...] = ()
    """True for *generated*."""
    seconds: tuple[float, ...] = ()
    """Of each answer, from when its image was shown."""
    shown: float
    """Time at which the image at hand was shown, in seconds of a clock that only runs."""

    @property
    def is_done(self) -> bool:
        return len(self.answers) == len(self.sample)

    def answered(self, generated: bool, *, now: float) -> "Sitting":
        """Return the sitting with the answer to the image at hand."""
        assert not self.is_done
        return dataclasses.replace(
            self,
            answers=(*self.answers, generated),
            seconds=(*self.seconds, round(now - self.shown, 2)),
            shown=now,
        )


def ask_model(sample: Sample, bundle: Bundle, *, folder: Path) -> np.ndarray:
    """Return the model's calibrated probabilities (n,) for the same images.

    On the test split this is an opening of its seal, and counted in the bundle: what a person
    sees at the end is how good the model is there.

    Args:
        sample: From ``draw``.
        bundle: From ``bundle.load``, of the size of the images.
        folder: Of the bundle.
    """
    evaluate.open_split(folder, sample.split)
    parts = [
        bundles.forward(
            bundle.module,
            sample.images[sample.rows[start : start + _BATCH]],
            mean=bundle.mean,
            std=bundle.std,
        )
        for start in range(0, len(sample), _BATCH)
    ]
    return bundle.calibration.probabilities(np.concatenate(parts))


def score(labels: np.ndarray, called: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return ``metrics``, their 95 % ``intervals`` (Wilson) and ``counts`` [part, whole].

    A share of nothing is None, and its interval 0 to 1.

    Args:
        labels: (n,) bool, true where generated.
        called: (n,) bool, true where called generated.
    """
    right, hits = labels == called, int(np.count_nonzero(labels & called))
    num_generated, num_called = int(np.count_nonzero(labels)), int(np.count_nonzero(called))
    counts = {
        "accuracy": (int(np.count_nonzero(right)), len(labels)),
        "accuracy_real": (int(np.count_nonzero(right & ~labels)), len(labels) - num_generated),
        "accuracy_generated": (hits, num_generated),
        "precision": (hits, num_called),
        "recall": (hits, num_generated),
    }
    return {
        "metrics": {
            name: part / whole if whole else None for name, (part, whole) in counts.items()
        },
        "intervals": {name: list(wilson(*count)) for name, count in counts.items()},
        "counts": {name: list(count) for name, count in counts.items()},
    }


def record(
    sitting: Sitting, *, bundle: Bundle | None = None, probabilities: np.ndarray | None = None
) -> dict[str, Any]:
    """Return a finished sitting as plain values for JSON.

    Args:
        sitting: All images answered.
        bundle: The model that was asked about the same images, if any.
        probabilities: Its answers (n,), from ``ask_model``.
    """
    assert sitting.is_done
    sample = sitting.sample
    rows: list[dict[str, Any]] = [
        {"id": name, "label": _word(label), "answer": _word(answer), "seconds": seconds}
        for name, label, answer, seconds in zip(
            sample.ids, sample.labels, sitting.answers, sitting.seconds, strict=True
        )
    ]
    found = {
        "schema_version": SCHEMA_VERSION,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "split": sample.split,
        "seed": sample.seed,
        "data": evaluate.about_data(hdf5.attributes(sample.data)),
        "human": score(sample.labels, np.array(sitting.answers))
        | {"median_seconds": statistics.median(sitting.seconds)},
        "model": None,
        "images": rows,
    }
    if bundle is None or probabilities is None:
        return found
    calibration = bundle.calibration
    called, unsure = probabilities >= calibration.threshold, calibration.unsure_at(probabilities)
    for row, probability, verdict, doubt in zip(rows, probabilities, called, unsure, strict=True):
        row |= {"probability": float(probability), "verdict": _word(verdict), "unsure": bool(doubt)}
    about = {"name": bundle.name, "sha256": bundle.sha256, "calibration": calibration.to_dict()}
    return found | {"model": about | score(sample.labels, called)}


def _word(generated: bool) -> str:
    return hdf5.CLASSES[int(generated)]


def save(found: dict[str, Any], out: Path) -> Path:
    """Write a record; a file that is there is kept, and this one gets a number.

    Args:
        found: From ``record``.
        out: A file.

    Returns:
        Where it is.
    """
    numbered = (out.with_stem(f"{out.stem}-{number}") for number in itertools.count(2))
    path = next(path for path in itertools.chain([out], numbered) if not path.exists())
    storage.write_text(str(path), json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path
