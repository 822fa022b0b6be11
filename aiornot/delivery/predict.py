"""Image files and folders -> calibrated probabilities, one plain record per image.

``aiornot predict models/detector photos/`` prints them. ``answers`` is what this room and
``ray_predict.py`` share: bytes in, a probability or a reason out.
"""

import dataclasses
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from rich import markup

from aiornot.config import InputError
from aiornot.data import images
from aiornot.delivery import bundle as bundles
from aiornot.delivery.bundle import Bundle

MAX_BYTES = 200_000_000
"""Largest file that is read."""

NUM_THREADS = 4
"""Each may hold an image of 300 MB while it decodes."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""``Path("http://x")`` is "http:/x". Two letters at least: "c:/photos" is a path on Windows."""

_Source = TypeVar("_Source")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one file: a probability and a label, or an error."""

    file: Path
    probability: float | None = None
    """Calibrated, that the image is generated."""
    label: str | None = None
    """``generated`` from the threshold on, else ``real``."""
    unsure: bool | None = None
    """Whether the probability is too close to call, see ``Calibration.unsure``."""
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

    Every path is looked up before the first image is read.

    Args:
        bundle: From ``bundle.load``.
        paths: Files and folders.
        batch_size: As ``predict_files``.

    Raises:
        InputError: A path that does not exist, a URL, or a folder without images.
    """
    return predict_files(bundle, find(paths), batch_size=batch_size)


def predict_files(
    bundle: Bundle, files: Iterable[Path], *, batch_size: int = 32
) -> Iterator[Prediction]:
    """Predict each file; one that cannot be read or decoded gives an ``error`` and stops nothing.

    Args:
        bundle: From ``bundle.load``.
        files: From ``find``.
        batch_size: Images per forward pass; it changes speed and memory only.
    """
    found = answers(bundle, files, _bytes, batch_size=batch_size)
    return (_prediction(bundle, file, answer) for file, answer in found)


def find(paths: Iterable[Path], *, listed: Iterable[Path] = ()) -> list[Path]:
    """Return the files that paths name: files as they are, folders with all images below them.

    Args:
        paths: Of which each must be there.
        listed: More of them, from a long list: one that is not there is returned as it is, and
            reading it will say so.

    Raises:
        InputError: As ``predict``.
    """
    found = [file for path in paths for file in _files_of(path)]
    return found + [file for path in listed for file in _listed_files(path)]


def read_list(stream: IO[bytes]) -> list[Path]:
    """Return the paths in a stream, one per line or, where it holds a NUL, one up to each NUL."""
    text = stream.read()
    names = text.split(b"\0" if b"\0" in text else b"\n")
    return [Path(os.fsdecode(name)) for name in names if name.strip()]


def _files_of(path: Path) -> list[Path]:
    # Not Path's own: it raises where a name is too long.
    if os.path.isdir(path):
        found = sorted(_images_below(path))
        if not found:
            raise InputError(f"{path}: no images there ({' '.join(images.SUFFIXES)})")
        return found
    if os.path.lexists(path):
        return [path]
    if _URL.match(str(path)):
        raise InputError(
            f"{_address(path)}: URLs are not fetched; download the image and give its file"
        )
    raise InputError(f"{path}: no such file or folder")


def _listed_files(path: Path) -> list[Path]:
    try:
        return _files_of(path)
    except InputError:
        return [path]


def _address(path: Path) -> str:
    """Return a URL as it was given: a path takes two slashes for one."""
    return str(path).replace(":/", "://", 1)


def _images_below(folder: Path) -> Iterator[Path]:
    """Walk a folder and what its links lead to, each real folder once: links may form loops."""
    seen = {os.path.realpath(folder)}
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders.sort()  # so that of two ways to a folder the same one is taken every time
        new = {os.path.realpath(os.path.join(name, inner)): inner for inner in reversed(folders)}
        folders[:] = sorted(inner for real, inner in new.items() if real not in seen)
        seen.update(new)
        yield from (Path(name, file) for file in files if file.lower().endswith(images.SUFFIXES))


def _refuse(error: OSError) -> None:
    """Stop at a folder that cannot be listed; ``os.walk`` would pass over it in silence."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions")


def answers(
    bundle: Bundle,
    sources: Iterable[_Source],
    read: Callable[[_Source], bytes | None],
    *,
    batch_size: int,
    num_threads: int = NUM_THREADS,
) -> Iterator[tuple[_Source, float | str]]:
    """Yield each source with its probability, or with what is wrong with it, in order.

    The next batch is decoded while the model sees this one.

    Args:
        bundle: From ``bundle.load``.
        sources: Whatever ``read`` takes; two batches of them are in memory.
        read: Returns the bytes of an image file; called in several threads.
        batch_size: Images per forward pass.
        num_threads: How many images are decoded at once.

    Raises:
        InputError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    return _answers(bundle, iter(sources), read, batch_size, num_threads)


def _answers(
    bundle: Bundle,
    sources: Iterator[_Source],
    read: Callable[[_Source], bytes | None],
    batch_size: int,
    num_threads: int,
) -> Iterator[tuple[_Source, float | str]]:
    pool = ThreadPoolExecutor(num_threads)

    def begin() -> list[tuple[_Source, Future[images.Pixels | str]]]:
        batch = itertools.islice(sources, batch_size)
        return [(source, pool.submit(_decode, source, read, bundle)) for source in batch]

    try:
        batch = begin()
        while batch:
            following = begin()
            decoded = [future.result() for _, future in batch]
            found = zip(batch, _probabilities(bundle, decoded), strict=True)
            yield from ((source, answer) for (source, _), answer in found)
            batch = following
    finally:  # also where the caller stops early
        pool.shutdown(cancel_futures=True)


def read(bundle: Bundle, file: Path) -> images.Pixels | str:
    """Return the pixels (S, S, 3) of a file as the model takes them, or what is wrong with it."""
    return _decode(file, _bytes, bundle)


def _decode(
    source: _Source, read: Callable[[_Source], bytes | None], bundle: Bundle
) -> images.Pixels | str:
    """Return the pixels (S, S, 3) as ``aiornot prepare`` would store them, or what is wrong."""
    try:
        pixels = images.decode(read(source))
        return images.fit(pixels, bundle.size, geometry=bundle.geometry, resample=bundle.resample)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)


def _bytes(file: Path) -> bytes:
    try:
        status = file.stat()
    except FileNotFoundError:
        if _URL.match(str(file)):
            raise ValueError("URLs are not fetched; download the image") from None
        raise
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ValueError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size:,} bytes, more than the {MAX_BYTES:,} allowed")
    with file.open("rb", buffering=0) as stream:  # no more than that, though it may grow
        return stream.read(status.st_size)


def _probabilities(bundle: Bundle, decoded: list[images.Pixels | str]) -> Iterator[float | str]:
    pixels = [one for one in decoded if not isinstance(one, str)]
    logits = np.empty(0)
    if pixels:
        logits = bundles.forward(bundle.module, np.stack(pixels), mean=bundle.mean, std=bundle.std)
    probabilities = iter(bundle.calibration.probabilities(logits).tolist())
    return (one if isinstance(one, str) else next(probabilities) for one in decoded)


def verdict(bundle: Bundle, probability: float) -> tuple[str, bool]:
    """Return the label of a probability, and whether it is too close to call."""
    label = bundle.description["classes"][int(probability >= bundle.calibration.threshold)]
    return label, bool(bundle.calibration.unsure_at(np.asarray(probability)))


def _prediction(bundle: Bundle, file: Path, answer: float | str) -> Prediction:
    about: dict[str, Any] = {
        "file": file,
        "threshold": bundle.calibration.threshold,
        "model": bundle.name,
    }
    if isinstance(answer, str):
        return Prediction(**about, error=answer)
    label, unsure = verdict(bundle, answer)
    return Prediction(**about, probability=answer, label=label, unsure=unsure)


def table(found: Iterable[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows for people; a name may hold what a terminal would obey."""
    rows = []
    for one in found:
        score = "-" if one.probability is None else f"{one.probability:.4f}"
        verdict = f"{one.label}, unsure" if one.unsure else one.label or "-"
        rows.append([_visible(str(one.file)), score, verdict, _visible(one.error or "")])
    return ["file", "probability", "verdict", "error"], rows


def _visible(text: str) -> str:
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return markup.escape("".join(shown))
