"""Image files and folders -> calibrated probabilities, one plain record per image.

``aiornot predict models/detector photos/`` prints them as JSON lines.
"""

import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aiornot.config import InputError
from aiornot.data import images
from aiornot.delivery.bundle import Bundle, forward

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What is taken from a folder; a file that is named is read whatever it is called."""

MAX_BYTES = 200_000_000
"""Largest file that is read."""

_NUM_THREADS = 4  # each may hold an image of 300 MB while it decodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one file: a probability and a label, or an error."""

    file: Path
    probability: float | None = None
    """Calibrated, that the image is generated."""
    label: str | None = None
    """``generated`` from the threshold on, else ``real``."""
    threshold: float
    model: str
    """Start of the hash of the weights."""
    error: str | None = None
    """Why there is no probability."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what does not apply is left out."""
        values = dataclasses.asdict(self) | {"file": str(self.file)}
        return {key: value for key, value in values.items() if value is not None}


def predict(bundle: Bundle, paths: Iterable[Path], *, batch_size: int = 32) -> Iterator[Prediction]:
    """Predict image files, in the order given; a folder stands for all images below it, sorted.

    Every path is looked up before the first image is read. A file that cannot be decoded gives a
    prediction with an ``error`` and stops nothing.

    Args:
        bundle: From ``bundle.load``.
        paths: Files and folders.
        batch_size: Images per forward pass; it changes speed and memory only.

    Raises:
        InputError: A path that does not exist, a URL, or a folder without images.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    return _predict(bundle, find(paths), batch_size)


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the files that paths name: files as they are, folders with all images below them.

    Raises:
        InputError: As ``predict``.
    """
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(_images_below(path))
        if not found:
            raise InputError(f"{path}: no images there ({' '.join(SUFFIXES)})")
        return found
    if path.exists():
        return [path]
    # Path("http://x") is "http:/x". Two letters at least: "c:/photos" is a path on Windows.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise InputError(f"{path}: URLs are not fetched; download the image and give its file")
    raise InputError(f"{path}: no such file or folder")


def _images_below(folder: Path) -> Iterator[Path]:
    """Walk a folder and what its links lead to, each real folder once: links may form loops."""
    seen = {os.path.realpath(folder)}
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders.sort()  # so that of two ways to a folder the same one is taken every time
        new = {os.path.realpath(os.path.join(name, inner)): inner for inner in reversed(folders)}
        folders[:] = sorted(inner for real, inner in new.items() if real not in seen)
        seen.update(new)
        yield from (Path(name, file) for file in files if file.lower().endswith(SUFFIXES))


def _refuse(error: OSError) -> None:
    """Stop at a folder that cannot be listed; ``os.walk`` would pass over it in silence."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions")


def _predict(bundle: Bundle, files: Sequence[Path], batch_size: int) -> Iterator[Prediction]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            decoded = list(pool.map(lambda file: _read(file, bundle), batch))
            yield from _judge(bundle, batch, decoded)


def _read(file: Path, bundle: Bundle) -> images.Pixels | str:
    """Return the pixels (S, S, 3) as ``aiornot prepare`` would store them, or what is wrong."""
    try:
        pixels = images.decode(_bytes(file))
        return images.fit(pixels, bundle.size, geometry=bundle.geometry, resample=bundle.resample)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)


def _bytes(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ValueError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size:,} bytes, more than the {MAX_BYTES:,} allowed")
    return file.read_bytes()


def _judge(
    bundle: Bundle, files: Sequence[Path], decoded: Sequence[images.Pixels | str]
) -> Iterator[Prediction]:
    pixels = [one for one in decoded if not isinstance(one, str)]
    logits = iter(_logits(bundle, np.stack(pixels)) if pixels else [])
    for file, one in zip(files, decoded, strict=True):
        if isinstance(one, str):
            yield _failure(bundle, file, one)
        else:
            yield _verdict(bundle, file, next(logits))


def _logits(bundle: Bundle, pixels: images.Pixels) -> np.ndarray:
    return forward(bundle.module, pixels, mean=bundle.mean, std=bundle.std)


def _failure(bundle: Bundle, file: Path, error: str) -> Prediction:
    threshold = bundle.calibration.threshold
    return Prediction(file=file, threshold=threshold, model=bundle.name, error=error)


def _verdict(bundle: Bundle, file: Path, logit: np.ndarray) -> Prediction:
    probability = float(bundle.calibration.probabilities(logit))
    threshold = bundle.calibration.threshold
    label = bundle.description["classes"][int(probability >= threshold)]
    return Prediction(
        file=file, probability=probability, label=label, threshold=threshold, model=bundle.name
    )
