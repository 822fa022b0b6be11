"""Images per CPU second: the notebook's DataLoader against ours, A B A B in one run.

    python benchmarks/loader.py --size 256
    python benchmarks/loader.py --size 512 --rounds 3 --json

The notebook's way is one worker process, started anew in each epoch, that reads a row with h5py,
makes a float tensor and normalises it. Ours gathers uint8 rows from mapped memory: on a CPU when a
batch is asked for, for a GPU in a thread, which is measured here without the GPU. Normalisation is
the device's work. The limit is a plain copy of the same bytes, in their order, into a buffer that
is used again; between stands the bare np.take of the same rows as ours into that buffer.

The file is in the page cache, and every process and thread counts. Each round has new buffers, for
where they lie in memory matters; ratios are medians over the rounds, with their least and largest.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tables
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from aiornot.data import hdf5
from aiornot.training import loader

BATCH = 32
CPU = torch.device("cpu")
FILE_BYTES = 800e6
"""Beyond every cache, and small enough to stay in memory."""

Spent = tuple[int, float, float]
"""Images, CPU seconds, wall seconds."""

CPU_TIME, WALL_TIME = 1, 2


class NotebookDataset(Dataset):
    """The notebook's: one row at a time, float32, normalised on the CPU."""

    def __init__(self, images: h5py.Dataset, targets: h5py.Dataset) -> None:
        self._images, self._targets = images, targets
        transform = (ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        self._transform = Compose(transform)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._transform(self._images[row])
        return image, torch.tensor((self._targets[row],), dtype=torch.float32)


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


def notebook(group: h5py.Group) -> int:
    data = NotebookDataset(group["image"], group["label"])
    batches = DataLoader(
        data,
        BATCH,
        shuffle=True,
        num_workers=1,
        pin_memory=torch.cuda.is_available(),  # always asked for there; nothing without a GPU
        drop_last=True,
        multiprocessing_context="fork",  # as in the notebook: the worker inherits the open file
    )
    return sum(len(labels) for _, labels in batches)


def ours(split: loader.Split, epoch: int) -> int:
    rows = loader.shuffled(len(split), BATCH, seed=0, epoch=epoch)
    return sum(len(labels) for _, labels in split.batches(rows))


def gather(images: np.ndarray, buffer: np.ndarray, epoch: int) -> int:
    rows = loader.shuffled(len(images), BATCH, seed=0, epoch=epoch)
    for index in rows:
        np.take(images, index.numpy(), axis=0, out=buffer, mode="clip")
    return len(rows) * BATCH


def copy(images: np.ndarray, buffer: np.ndarray) -> int:
    for start in range(0, len(images) - BATCH + 1, BATCH):
        np.copyto(buffer, images[start : start + BATCH])
    return len(images) // BATCH * BATCH


def cpu_seconds() -> float:
    """Return what this process, all its threads and its finished workers have used."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def spend(work: Callable[[], int]) -> Spent:
    cpu, wall = cpu_seconds(), time.perf_counter()
    count = work()
    return count, cpu_seconds() - cpu, time.perf_counter() - wall


def alternate(works: dict[str, Callable[[int], int]], seconds: float) -> dict[str, Spent]:
    """Run an epoch of each in turn until each has used so many CPU seconds."""
    found: dict[str, Spent] = dict.fromkeys(works, (0, 0.0, 0.0))
    epoch = 0
    while min(cpu for _, cpu, _ in found.values()) < seconds:
        for name, work in works.items():
            more = spend(partial(work, epoch))
            found[name] = tuple(a + b for a, b in zip(found[name], more, strict=True))
        epoch += 1
    return found


def one_round(path: Path, seconds: float) -> dict[str, Spent]:
    split = loader.Split(path, "train", device=CPU)
    threaded = loader.Split(path, "train", device=CPU, prefetch=True)
    images = np.asarray(hdf5.map_images(path, "train"))
    # By torch, for the cache line it starts on: numpy's would slow the reference down.
    buffer = torch.empty((BATCH, *images.shape[1:]), dtype=torch.uint8).numpy()
    with h5py.File(path) as file:
        found = {"notebook": spend(lambda: notebook(file["train"]))}
    found["ours, first epoch"] = spend(lambda: ours(split, 0))
    ours(threaded, 0)
    copy(images, buffer)  # each has a mapping of its own: its pages are met once before they count
    works: dict[str, Callable[[int], int]] = {
        "ours": lambda epoch: ours(split, epoch),
        "ours, in a thread": lambda epoch: ours(threaded, epoch),
        "gather": lambda epoch: gather(images, buffer, epoch),
        "copy": lambda _: copy(images, buffer),
    }
    return found | alternate(works, seconds)


def ratios(rounds: list[dict[str, Spent]], one: str, other: str, clock: int) -> dict[str, float]:
    """Compare two ways' images per second of a clock, round by round."""

    def rate(spent: Spent) -> float:
        return spent[0] / spent[clock]

    found = [rate(each[one]) / rate(each[other]) for each in rounds]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def summary(rounds: list[dict[str, Spent]], size: int) -> dict[str, Any]:
    return {
        "size": size,
        "batch": BATCH,
        "rounds": len(rounds),
        "images_per_cpu_second": {
            name: statistics.median(each[name][0] / each[name][1] for each in rounds)
            for name in rounds[0]
        },
        "cpu_seconds_per_round": {
            name: statistics.median(each[name][1] for each in rounds) for name in rounds[0]
        },
        "ratios": {
            "ours / notebook": ratios(rounds, "ours", "notebook", CPU_TIME),
            "ours / notebook, wall": ratios(rounds, "ours", "notebook", WALL_TIME),
            "in a thread / notebook": ratios(rounds, "ours, in a thread", "notebook", CPU_TIME),
            "ours / copy": ratios(rounds, "ours", "copy", CPU_TIME),
            "in a thread / copy": ratios(rounds, "ours, in a thread", "copy", CPU_TIME),
            "gather / copy": ratios(rounds, "gather", "copy", CPU_TIME),
            "first epoch / copy": ratios(rounds, "ours, first epoch", "copy", CPU_TIME),
        },
        "about": tables.environment("torch", "numpy", "h5py")
        | {"load": " ".join(f"{load:.1f}" for load in os.getloadavg())},
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['size']} px, batches of {BATCH}, {result['rounds']} rounds")
    for name, value in result["about"].items():
        print(f"  {name:9} {value}")
    for name, rate in result["images_per_cpu_second"].items():
        spent = result["cpu_seconds_per_round"][name]
        print(f"  {name:18} {rate:9,.0f} images per CPU second ({spent:.1f} s a round)")
    for name, ratio in result["ratios"].items():
        print(f"  {name:23} {ratio['median']:7.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, help="default: 800 MB of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of CPU time a way and round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count = options.images or round(FILE_BYTES / (options.size**2 * 3))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        write_file(path, size=options.size, count=count)
        rounds = [one_round(path, options.seconds) for _ in range(options.rounds)]
    result = summary(rounds, options.size)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
