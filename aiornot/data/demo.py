"""The synthetic stand-in dataset: a lesson in detection that needs no download.

``aiornot demo-data OUT`` writes it as the parquet of Hugging Face ``datasets``. A real image is a
dead-leaves scene seen by a camera; a generated one is such an image passed through a decoder,
blended in by ``difficulty``. Scene, noise, size, file format and JPEG quality are drawn alike for
both, so that only the decoder's trace tells the class. Scores on it are no measure of detection.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from aiornot import storage
from aiornot.config import InputError, nearest
from aiornot.data.synthesis import GENERATORS, Pixels, camera, regenerate, scene

Rows = list[dict[str, Any]]
Bias = Literal["none", "format"]

CAMERA = "camera"
"""The ``generator`` of a real image."""
CLASS_NAMES = ["real", "generated"]
JPEG_QUALITY = (88, 98)
ROW_GROUP = 100
"""Rows per row group, and images per task of a worker: half a second of work, 200 kB."""
NOTE_KEY = b"aiornot_note"
NOTE = "synthetic stand-in: its scores say nothing of real images"
"""Kept with every score that is made on this data."""

SETTINGS_FILE = "demo.json"
RECIPE = 1
"""Raise it when the same settings would give other images."""

_LABEL_STREAM, _IMAGE_STREAM = 1, 2  # first entropy word, so that no index meets the labels' draw


# One image.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    """What decides the images, apart from index and label."""

    seed: int
    size: int
    difficulty: float
    generators: tuple[str, ...]
    bias: str

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed={self.seed} must be 0 or more")
        if self.size < 16 or self.size % 8:
            raise InputError(f"size={self.size} must be a multiple of 8, at least 16 pixels")
        if not 0 <= self.difficulty <= 1:
            raise InputError(
                f"difficulty={self.difficulty:g} must lie between 0 (easy) and 1 (hidden)"
            )
        if not self.generators:
            raise InputError(f"generators is empty; name at least one of {', '.join(GENERATORS)}")
        for name in self.generators:
            if name not in GENERATORS:
                raise InputError(f"unknown generator {name!r}{nearest(name, list(GENERATORS))}")
        if self.bias not in ("none", "format"):
            raise InputError(f"unknown bias {self.bias!r}{nearest(self.bias, ['none', 'format'])}")


def make_image(
    index: int,
    *,
    label: int,
    seed: int = 0,
    size: int = 64,
    difficulty: float = 0.25,
    generators: Sequence[str] = GENERATORS,
    bias: Bias = "none",
) -> tuple[bytes, str]:
    """Make image number ``index``, the same whatever else is made.

    Args:
        index: Number of the image; with ``seed`` it fixes scene, camera and JPEG quality.
        label: 0 real, 1 generated. The two of one index differ by the trace only.
        seed: 0 or more.
        size: Side in pixels, a multiple of 8.
        difficulty: 0 leaves the trace at 80 to 100 % strength, 1 at 10 to 20 %.
        generators: The kinds to draw from.
        bias: ``format`` plants the classic leak: real are JPEG, generated PNG.

    Returns:
        The encoded file, and the kind of generator (``camera`` for a real image).

    Raises:
        InputError: A knob is out of its range.
    """
    look = _Look(
        seed=seed, size=size, difficulty=difficulty, generators=tuple(generators), bias=bias
    )
    return _make_image(look, index, label)


def _make_image(look: _Look, index: int, label: int) -> tuple[bytes, str]:
    assert label in (0, 1), label
    rng = np.random.default_rng([_IMAGE_STREAM, look.seed, index])
    quality = int(rng.integers(*JPEG_QUALITY, endpoint=True))
    pixels, kind = camera(rng, scene(rng, look.size)), CAMERA
    if label:
        kind = str(rng.choice(look.generators))
        strength = np.float32(rng.uniform(*_strength(look.difficulty)))
        pixels = pixels + strength * (regenerate(rng, pixels, kind) - pixels)
    leaks = look.bias == "format" and label == 1
    return _encode(pixels, quality=None if leaks else quality), kind


def _strength(difficulty: float) -> tuple[float, float]:
    """Range of the trace's share. A small network still learns at .5 and fails at .75."""
    high = 1 - 0.8 * difficulty
    return high * (0.8 - 0.3 * difficulty), high


def _encode(pixels: Pixels, *, quality: int | None) -> bytes:
    """Encode as JPEG without chroma subsampling, or as PNG where there is no quality."""
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


# The dataset.


def write(
    out: Path,
    *,
    num_images: int = 4000,
    num_shards: int = 2,
    seed: int = 0,
    size: int = 64,
    difficulty: float = 0.25,
    generators: Sequence[str] = GENERATORS,
    bias: Bias = "none",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write the dataset as parquet, unless the same one is already there.

    Args:
        out: Folder; made if absent.
        num_images: Rows of all shards together; half of them generated.
        num_shards: Files.
        seed, size, difficulty, generators, bias: As for ``make_image``.
        workers: Processes; all cores if None, only this one if 1. They are spawned, so a script
            that calls this needs ``if __name__ == "__main__":``.
        progress: Called with the number of newly finished images.

    Returns:
        The files, in the order of the rows.

    Raises:
        InputError: A knob is out of its range, or ``out`` holds something else.
    """
    look = _Look(
        seed=seed, size=size, difficulty=difficulty, generators=tuple(generators), bias=bias
    )
    _check_counts(num_images, num_shards, workers)
    settings = {"recipe": RECIPE, "num_images": num_images, "num_shards": num_shards}
    # Through JSON, so that tuples are lists here as they are in the file.
    settings |= json.loads(json.dumps(dataclasses.asdict(look)))
    names = [f"train-{shard:05d}-of-{num_shards:05d}.parquet" for shard in range(num_shards)]
    paths = [out / name for name in names]
    if _same_is_there(out, settings) and all(path.exists() for path in paths):
        return paths
    out.mkdir(parents=True, exist_ok=True)
    _write_shards(paths, look, _labels(num_images, seed), workers or os.cpu_count() or 1, progress)
    storage.write_text(str(out / SETTINGS_FILE), json.dumps(settings, indent=2) + "\n")
    return paths


def _check_counts(num_images: int, num_shards: int, workers: int | None) -> None:
    if num_images < 1:
        raise InputError(f"num_images={num_images} must be 1 or more")
    if not 1 <= num_shards <= num_images:
        raise InputError(f"num_shards={num_shards} must lie between 1 and num_images={num_images}")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} must be 1 or more; leave it out for one per core")


def _same_is_there(out: Path, settings: dict[str, Any]) -> bool:
    """Tell whether ``out`` holds these settings; refuse a folder that holds anything else."""
    mend = "give another folder, or delete this one first"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    if not (out / SETTINGS_FILE).exists():
        for stranger in out.glob("*.parquet"):
            raise InputError(f"{out} holds {stranger.name}, which is not a demo dataset; {mend}")
        return False
    try:
        found = dict(json.loads((out / SETTINGS_FILE).read_text()))
    except (ValueError, TypeError):
        raise InputError(f"{out / SETTINGS_FILE} cannot be read as settings; {mend}") from None
    for name in settings:
        if found.get(name) != settings[name]:
            difference = f"{name}={found.get(name)}, not {settings[name]}"
            raise InputError(f"{out} holds a demo dataset with {difference}; {mend}")
    return True


def _labels(num_images: int, seed: int) -> NDArray[np.int64]:
    """Balanced labels in random order; of an odd number, the odd one is real."""
    labels = np.arange(num_images) % 2
    np.random.default_rng([_LABEL_STREAM, seed]).shuffle(labels)
    return labels


def _write_shards(
    paths: list[Path],
    look: _Look,
    labels: NDArray[np.int64],
    workers: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Write all shards under ``.tmp`` names and rename them together, or leave none."""
    edges = [len(labels) * shard // len(paths) for shard in range(len(paths) + 1)]
    shards = [_spans(start, stop) for start, stop in itertools.pairwise(edges)]
    temporary = [path.with_name(path.name + ".tmp") for path in paths]
    spans = [span for shard in shards for span in shard]
    try:
        with contextlib.closing(_make_groups(look, labels, spans, workers)) as groups:
            for path, shard in zip(temporary, shards, strict=True):
                _write_shard(path, groups, len(shard), progress)
        for path, final in zip(temporary, paths, strict=True):
            path.replace(final)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _write_shard(
    path: Path,
    groups: Iterator[Rows],
    num_groups: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the next ``num_groups`` of ``groups`` as one file."""
    schema = _schema()
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(num_groups):
            rows = next(groups)
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROW_GROUP)
            if progress is not None:
                progress(len(rows))


def _spans(start: int, stop: int) -> list[range]:
    """Cut rows ``start`` to ``stop`` into row groups."""
    return [range(first, min(first + ROW_GROUP, stop)) for first in range(start, stop, ROW_GROUP)]


def _make_groups(
    look: _Look, labels: NDArray[np.int64], spans: list[range], workers: int
) -> Generator[Rows, None, None]:
    """Yield the rows of each span in order; at most twice ``workers`` spans are under way."""
    tasks = deque(
        (look, span, [int(label) for label in labels[span.start : span.stop]]) for span in spans
    )
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from (_make_rows(*task) for task in tasks)
        return
    # Spawn, because a fork of a process that has threads (torch, ray, arrow) may hang.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Rows]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            while tasks or waiting:
                while tasks and len(waiting) < 2 * workers:
                    waiting.append(pool.submit(_make_rows, *tasks.popleft()))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _make_rows(look: _Look, span: range, labels: list[int]) -> Rows:
    """Make the rows of one span; runs in a worker."""
    return [_make_row(look, index, label) for index, label in zip(span, labels, strict=True)]


def _make_row(look: _Look, index: int, label: int) -> dict[str, Any]:
    content, kind = _make_image(look, index, label)
    name = f"demo-{look.seed}-{index:06d}"
    suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
    image = {"bytes": content, "path": f"{name}.{suffix}"}
    return {"id": name, "image": image, "label": label, "generator": kind}


def _schema() -> pa.Schema:
    """The columns, with the metadata from which ``datasets`` knows an image from a struct."""
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "id": text,
        "image": {"_type": "Image"},
        "label": {"names": CLASS_NAMES, "_type": "ClassLabel"},
        "generator": text,
    }
    columns = [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("generator", pa.string()),
    ]
    huggingface = json.dumps({"info": {"features": features}})
    return pa.schema(columns, {b"huggingface": huggingface, NOTE_KEY: NOTE})


def write_files(
    out: Path, *, first: int, count: int, size: int, difficulty: float, seed: int
) -> list[Path]:
    """Write images ``first``, ``first + 1``, ... as JPEG files named after their class.

    With ``first`` beyond a dataset's number of images none of them is in it.
    """
    paths = []
    for index in range(first, first + count):
        label = index % 2
        content, _ = make_image(index, label=label, seed=seed, size=size, difficulty=difficulty)
        path = out / f"{CLASS_NAMES[label]}-{index:06d}.jpg"
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths
