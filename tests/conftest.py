"""Shared by the tests of delivery: a tiny prepared file, a checkpoint and its bundle."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aiornot.config import TICKS, TrainConfig
from aiornot.data import hdf5
from aiornot.delivery import bundle
from aiornot.training import loop

SIZE = 32
COUNTS = {"train": 128, "val": 64, "test": 48}
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Delivered:
    data: Path
    checkpoint: Path
    folder: Path


@pytest.fixture(scope="session")
def delivered(tmp_path_factory) -> Delivered:
    """Deliver a model trained for a second; copy the folder before changing anything in it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("delivered")
    data = prepare(root / "tiny.h5")
    checkpoint = train(TrainConfig.from_dict(RESNET), data=data, out=root / "checkpoint")
    folder = bundle.write(
        checkpoint, root / "bundle", data=data, device=CPU, lineage={"stage": "test", "seed": 0}
    )
    return Delivered(data, checkpoint, folder)


RESNET = {
    "model": "test_resnet.r160_in1k",
    "pretrained": False,
    "lr": 1e-2,
    "epochs": 2,
    "batch_size": 16,
}


def prepare(path: Path, *, seed: int = 0, **attributes: object) -> Path:
    """Write a prepared file in which generated images are somewhat brighter."""
    rng = np.random.default_rng(seed)
    labels = {split: np.arange(count) % 2 for split, count in COUNTS.items()}
    ids = {split: [f"{split}-{row}" for row in range(count)] for split, count in COUNTS.items()}
    described = {"fingerprint": f"f{seed}", "geometry": "resize", "settings": "{}"} | attributes
    slots = hdf5.create(path, size=SIZE, labels=labels, ids=ids, attributes=described)
    descriptor = os.open(path, os.O_RDWR)
    for split, where in slots.items():
        for row, label in enumerate(labels[split]):
            level = rng.normal(110 + 30 * label, 30)
            pixels = rng.normal(level, 20, size=(SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
            hdf5.write_image(descriptor, where, row, pixels)
    os.close(descriptor)
    return path


def train(config: TrainConfig, *, data: Path, out: Path) -> Path:
    """Train and keep the last checkpoint."""

    def report(values: dict[str, float], folder: Path | None) -> None:
        if values["tick"] == TICKS:
            shutil.copytree(folder, out)

    loop.train(config, data=data, device=CPU, report=report)
    return out
