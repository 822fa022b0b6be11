"""A test set of the real one's shape: photographs as JPEG and PNG in parquet, the same every time.

``benchmarks/prepare.py`` makes and keeps it. 86 % are JPEG (quality 90, 4:2:0) of about 78 kB, 14 %
PNG of about 475 kB; 90 % have 512 x 512 pixels, 4 % 1024 x 1024, the rest 640 x 427 and 300 x 400.
The shares of formats and sizes are assumptions; only the real set's 512 x 512 is known.
"""

import functools
import io
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SHAPES = ((512, 512), (1024, 1024), (640, 427), (300, 400))
SHARES = (0.90, 0.04, 0.03, 0.03)
PNG_SHARE = 0.14
SHARDS = 4
GROUP = 100
"""Rows per row group."""
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
    }
)


def write(folder: Path, *, images: int, seed: int = 0) -> Path:
    """Write the shards into ``folder``, all cores at work; a set that is there is kept."""
    edges = [images * shard // SHARDS for shard in range(SHARDS + 1)]
    wanted = [folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet" for shard in range(SHARDS)]
    missing = [shard for shard, path in enumerate(wanted) if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            tasks = [
                pool.submit(write_shard, wanted[shard], edges[shard], edges[shard + 1], seed)
                for shard in missing
            ]
            for task in tasks:
                task.result()
    return folder


def write_shard(path: Path, first: int, stop: int, seed: int) -> None:
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(first, stop, GROUP):
            rows = [make_row(row, seed) for row in range(start, min(start + GROUP, stop))]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    temporary.replace(path)


def make_row(row: int, seed: int) -> dict[str, object]:
    rng = np.random.default_rng([seed, row])
    width, height = SHAPES[rng.choice(len(SHAPES), p=SHARES)]
    image = Image.fromarray(scene(rng, width, height))
    buffer = io.BytesIO()
    if rng.random() < PNG_SHARE:
        suffix = "png"
        image.save(buffer, "PNG")
    else:
        suffix = "jpg"
        image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    name = f"photo-{row:06d}"
    content = {"bytes": buffer.getvalue(), "path": f"{name}.{suffix}"}
    return {"id": name, "image": content, "label": row % 2}


@functools.cache
def load_photos() -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_images  # takes a second, which few processes need

    return load_sample_images().images


def scene(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Return one of scikit-learn's two photographs cropped, mirrored, lit and with grain.

    The light differs from place to place: with thousands of crops of two photographs it is what
    keeps any two from being near-duplicates. Grain is grey, as a camera's denoiser leaves it; it
    brings both formats to their mean sizes.
    """
    photos = load_photos()
    photo = Image.fromarray(photos[rng.integers(len(photos))])
    scale = rng.uniform(0.4, 1) * min(photo.width / width, photo.height / height)
    left = rng.uniform(0, photo.width - scale * width)
    top = rng.uniform(0, photo.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box=box))
    pixels = pixels[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    lamps = Image.fromarray(rng.uniform(0.3, 1.1, (6, 6)).astype(np.float32))
    light = np.asarray(lamps.resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(0, 7.5))
    lit = pixels * light[:, :, None] + grain[:, :, None]
    return np.clip(lit, 0, 255).astype(np.uint8)


def describe(folder: Path) -> dict[str, dict[str, float]]:
    """Return count and mean size in kB of each format."""
    found = [pq.read_table(path, columns=["image"]) for path in sorted(folder.glob("*.parquet"))]
    column = pa.concat_tables(found).column("image")
    sizes = np.concatenate([pc.binary_length(part.field("bytes")) for part in column.chunks])
    paths = [path for part in column.chunks for path in part.field("path").to_pylist()]
    result = {}
    for suffix in ("jpg", "png"):
        chosen = sizes[[path.endswith(suffix) for path in paths]]
        mean = float(chosen.mean()) / 1000 if len(chosen) else 0.0
        result[suffix] = {"count": len(chosen), "mean_kB": round(mean, 1)}
    return result
