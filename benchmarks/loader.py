"""Images per CPU second: the notebook's DataLoader against ours, A B A B in one run.

    python benchmarks/loader.py --size 256 --images 1000 --rounds 4 --json

The notebook's way is one worker process that reads a row with h5py, makes a float tensor and
normalises it. Ours gathers uint8 rows from mapped memory in a thread; normalisation is the device's
work and is not in either figure's limit, which is a plain copy of the same bytes.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from aiornot.data import hdf5
from aiornot.training import loader

BATCH = 32


class NotebookDataset(Dataset):
    """The notebook's: one row at a time, float32, normalised on the CPU."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: h5py.File | None = None
        transform = (ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        self._transform = Compose(transform)
        self._count = len(hdf5.read_labels(path, "train"))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._file is None:  # opened in the worker: h5py files do not travel
            self._file = h5py.File(self._path)
        image = self._transform(self._file["train/image"][row])
        return image, torch.tensor((self._file["train/label"][row],), dtype=torch.float32)


def write_file(path: Path, *, size: int, count: int) -> None:
    """Write noise; what is copied does not change the cost of copying it."""
    rng = np.random.default_rng(0)
    splits = {"train": count, "val": 2, "test": 2}
    labels = {split: np.arange(n) % 2 for split, n in splits.items()}
    ids = {split: [str(row) for row in range(n)] for split, n in splits.items()}
    slots = hdf5.create(path, size=size, labels=labels, ids=ids, attributes={})
    with path.open("r+b") as file:
        for split, where in slots.items():
            for row in range(splits[split]):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                hdf5.write_image(file.fileno(), where, row, pixels)


def notebook(path: Path) -> int:
    data = NotebookDataset(path)
    return sum(len(labels) for _, labels in DataLoader(data, BATCH, shuffle=True, num_workers=1))


def ours(split: loader.Split, epoch: int) -> int:
    rows = loader.shuffled(len(split), BATCH, seed=0, epoch=epoch)
    return sum(len(labels) for _, labels in split.batches(rows))


def copy(images: np.ndarray, buffer: np.ndarray) -> int:
    for start in range(0, len(images) - BATCH + 1, BATCH):
        np.copyto(buffer, images[start : start + BATCH])
    return len(images) // BATCH * BATCH


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in usage)


def rate(work: Callable[[], int]) -> float:
    """Return images per CPU second of this process and its workers."""
    before = cpu_seconds()
    count = work()
    return count / max(cpu_seconds() - before, 1e-9)


def measure(path: Path, rounds: int) -> dict[str, list[float]]:
    split = loader.Split(path, "train", device=torch.device("cpu"))
    images = hdf5.map_images(path, "train")
    buffer = np.empty((BATCH, *images.shape[1:]), dtype=np.uint8)
    copy(images, buffer)  # into the page cache, and first touch
    found: dict[str, list[float]] = {"notebook": [], "ours": [], "copy": []}
    for epoch in range(rounds):
        found["notebook"].append(rate(lambda: notebook(path)))
        # Ours is too quick for the clock of getrusage: ten epochs are one measurement.
        found["ours"].append(rate(lambda e=epoch: sum(ours(split, 10 * e + i) for i in range(10))))
        found["copy"].append(rate(lambda: sum(copy(images, buffer) for _ in range(10))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        write_file(path, size=options.size, count=options.images)
        found = measure(path, options.rounds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(found["ours"], found["notebook"], strict=True)]
    result = {
        "size": options.size,
        "images_per_cpu_second": medians,
        "ours_over_notebook": statistics.median(ratios),
        "ours_over_copy": medians["ours"] / medians["copy"],
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d"),
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{options.size} px, batches of {BATCH}, {result['machine']}, torch {torch.__version__}")
    for name, value in medians.items():
        print(f"  {name:9} {value:10.0f} images per CPU second")
    print(
        f"  ours / notebook {result['ours_over_notebook']:.1f}, ours / copy "
        f"{result['ours_over_copy']:.2f} (medians of {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
