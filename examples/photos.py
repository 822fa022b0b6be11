"""Write parquet of photographs with the ``datasets`` library, as a user's own set would come.

``python examples/photos.py OUT`` writes two shards of 512 x 512 JPEG and PNG images. Real ones are
crops of the two photographs that scikit-learn carries (china.jpg and flower.jpg, CC BY 2.0, by
danielbuechele and vultilion on Flickr); generated ones are such crops passed through a decoder.
Two photographs are too few to measure detection: this set shows that the data's path works.
"""

import argparse
import io
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from aiornot.data import demo, splits, synthesis

SIZE = 512
TILE = 640
"""Side of a disjoint tile; the 128 pixels above SIZE are the room in which a crop moves."""
SCALE = 6
"""Enlargement of the 640 x 427 photographs: 24 tiles each, a crop shows 85 x 85 of their pixels."""
MIN_CONTRAST = 20.0
"""Standard deviation of brightness (of 255) below which a tile is bare sky; 32 of 48 stay."""
GRAIN = (0.03, 0.08)
"""Range of its sigma. Without any, ``test_resnet`` stays near chance (AUROC .59); with it .7-.9."""
NUM_SHARDS = 2
JPEG_QUALITY = (88, 98)  # one range for both classes
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=demo.CLASS_NAMES),
    }
)


def load_tiles() -> list[NDArray[np.uint8]]:
    """Return the (640, 640, 3) tiles of both photographs that show something.

    The photographs hold no 512-pixel crop, so each is enlarged once, by one factor and one filter,
    before anything depends on the class. That leaves them without fine detail, so both classes then
    get grain and pass the same camera (blur, noise, Bayer mosaic), which the decoder must imitate.
    Mosaics of mirrored native windows were the other way: their seams are as regular as a trace.
    """
    tiles = []
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        large = Image.fromarray(photo).resize(
            (SCALE * width, SCALE * height), Image.Resampling.LANCZOS
        )
        canvas = np.asarray(large)
        for top in range(0, canvas.shape[0] - TILE + 1, TILE):
            for left in range(0, canvas.shape[1] - TILE + 1, TILE):
                tiles.append(canvas[top : top + TILE, left : left + TILE])
    return [tile for tile in tiles if tile.mean(axis=2).std() >= MIN_CONTRAST]


def make_image(
    rng: np.random.Generator, tile: NDArray[np.uint8], *, label: int
) -> NDArray[np.uint8]:
    """Crop, flip, darken, roughen and photograph a tile; if ``label`` is 1, decode that anew."""
    top, left = rng.integers(0, TILE - SIZE + 1, 2)
    crop = tile[top : top + SIZE, left : left + SIZE].astype(np.float32) / 255
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = crop * np.float32(rng.uniform(0.6, 1.0))
    noise = rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
    pixels = synthesis.camera(rng, np.clip(crop + noise * np.float32(rng.uniform(*GRAIN)), 0, 1))
    if label:
        pixels = synthesis.regenerate(rng, pixels, str(rng.choice(synthesis.GENERATORS)))
    return (pixels * 255 + 0.5).astype(np.uint8)


def encode(rng: np.random.Generator, pixels: NDArray[np.uint8], *, suffix: str) -> bytes:
    """Encode as ``png``, or as ``jpg`` of a quality from the one range of both classes."""
    buffer = io.BytesIO()
    if suffix == "png":
        # Level 1 is 5 times as fast as the default 6, for 16 % more bytes.
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(
            buffer, "JPEG", quality=int(rng.integers(*JPEG_QUALITY, endpoint=True))
        )
    return buffer.getvalue()


def make_rows(*, num_images: int, seed: int) -> list[dict[str, object]]:
    """Make rows in random order; no tile is in two of the splits that ``prepare`` will make.

    The splits follow from the labels alone, so each split can be given tiles of its own. Within a
    split each tile serves both classes: were they shared out, the sky of a photograph would tell
    the class. Every row has its own crop, flip, brightness and noise.
    """
    order = np.random.default_rng([seed, 2]).permutation(num_images)
    labels = order % 2
    tiles = _share_tiles(load_tiles(), seed=seed)
    rows: dict[int, dict[str, object]] = {}
    made = [0, 0]
    for split, members in splits.plan(labels).items():
        turns = [0, 0]
        for row in sorted(int(member) for member in members):
            label, index = int(labels[row]), int(order[row])
            suffix = ("jpg", "png")[made[label] % 2]
            number, tile = tiles[split][turns[label] % len(tiles[split])]
            made[label], turns[label] = made[label] + 1, turns[label] + 1
            rng = np.random.default_rng([seed, 1, index])
            content = encode(rng, make_image(rng, tile, label=label), suffix=suffix)
            name = f"photo-{seed}-{index:05d}"
            image = {"bytes": content, "path": f"{name}-tile-{number:02d}.{suffix}"}
            rows[row] = {"id": name, "image": image, "label": label}
    return [rows[row] for row in range(num_images)]


def _share_tiles(
    tiles: list[NDArray[np.uint8]], *, seed: int
) -> dict[str, list[tuple[int, NDArray[np.uint8]]]]:
    """Deal the numbered tiles to the splits, about as the images are dealt: 70, 10 and 20 %."""
    order = np.random.default_rng([seed, 0]).permutation(len(tiles))
    dealt = [(int(number), tiles[number]) for number in order]
    num_val, num_test = max(1, len(tiles) // 10), max(1, len(tiles) // 5)
    return {
        "val": dealt[:num_val],
        "test": dealt[num_val : num_val + num_test],
        "train": dealt[num_val + num_test :],
    }


def write(out: Path, *, num_images: int, seed: int) -> list[Path]:
    """Write the shards into ``out``, over older ones, and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    rows = make_rows(num_images=num_images, seed=seed)
    paths = []
    for shard in range(NUM_SHARDS):
        path = out / f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet"
        start, stop = (num_images * edge // NUM_SHARDS for edge in (shard, shard + 1))
        temporary = path.with_name(path.name + ".tmp")
        datasets.Dataset.from_list(rows[start:stop], features=FEATURES).to_parquet(temporary)
        temporary.replace(path)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Write 512 x 512 photographs as parquet.")
    parser.add_argument("out", type=Path, help="folder; made if absent")
    parser.add_argument("--num-images", type=int, default=400, help="half of them generated")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    paths = write(arguments.out, num_images=arguments.num_images, seed=arguments.seed)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
