"""Shared by the tests of delivery: a tiny prepared file, a checkpoint and its bundle."""

import dataclasses
import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfFileSystem, constants
from stores import FakeHub, FakeS3

from aiornot import cli
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


DESCRIBED = {
    "fingerprint": "f",
    "geometry": "resize",
    "resample": "bicubic",
    "settings": "{}",
}
"""What every prepared file says of itself."""


def prepare(path: Path, *, seed: int = 0, **attributes: object) -> Path:
    """Write a prepared file in which generated images are somewhat brighter."""
    rng = np.random.default_rng(seed)
    labels = {split: np.arange(count) % 2 for split, count in COUNTS.items()}
    ids = {split: [f"{split}-{row}" for row in range(count)] for split, count in COUNTS.items()}
    described = DESCRIBED | {"fingerprint": f"f{seed}"} | attributes
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


def store(
    path: Path,
    images: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    **attributes: object,
) -> Path:
    """Write a prepared file of given images (N, S, S, 3) uint8 and labels (N,) per split."""
    ids = {split: [f"{split}-{row}" for row in range(len(labels[split]))] for split in labels}
    described = DESCRIBED | attributes
    size = images["train"].shape[1]
    slots = hdf5.create(path, size=size, labels=labels, ids=ids, attributes=described)
    with path.open("r+b") as file:
        for split, where in slots.items():
            for row in range(where.count):
                hdf5.write_image(file.fileno(), where, row, images[split][row])
    return path


@pytest.fixture(scope="session")
def easy(tmp_path_factory) -> Path:
    """A prepared file whose generated images are plainly brighter; odd numbers of rows."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    labels = {"train": np.arange(99) % 2, "val": np.arange(47) % 2, "test": np.arange(11) % 2}
    images = {split: bright(rng, found) for split, found in labels.items()}
    return store(tmp_path_factory.mktemp("easy") / "easy.h5", images, labels)


def bright(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Make noise (N, 32, 32, 3) uint8 whose brightness tells the classes apart."""
    levels = rng.normal(100 + 50 * labels, 10).reshape(-1, 1, 1, 1)
    return rng.normal(levels, 30, size=(len(labels), SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)


def follow(
    values: dict[str, object],
    data: Path,
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    device: torch.device = CPU,
    compile_augment: bool | None = None,
) -> list[dict[str, float]]:
    """Train and return the reports; keep the checkpoint of each tick in ``out``/<tick>."""
    reports = []

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        reports.append(metrics)
        if folder is not None and out is not None:
            shutil.copytree(folder, out / str(int(metrics["tick"])))

    config = TrainConfig.from_dict(values)
    loop.train(
        config,
        data=data,
        device=device,
        report=report,
        checkpoint=checkpoint,
        compile_augment=compile_augment,
    )
    return reports


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny batches gain nothing from more threads, and lose minutes where the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store_of_ray() -> Iterator[tuple[FakeS3, str]]:
    """The store that the processes of ``ray_cluster`` know, and its address."""
    server = FakeS3()
    with serving(server) as address:
        yield server, address


@pytest.fixture(scope="session")
def ray_cluster(store_of_ray, tmp_path_factory) -> Iterator[None]:
    """One Ray of two cores for all tests marked ``ray``; its start takes some seconds.

    Its processes know ``store_of_ray``, and keep copies apart from those of a test's own process.
    """
    from aiornot import ray_session

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.delenv("RAY_ADDRESS", raising=False)  # never someone's cluster
        with pytest.MonkeyPatch.context() as start:
            set_store(start, store_of_ray[1])
            start.setenv("AIORNOT_CACHE", str(tmp_path_factory.mktemp("cache-of-ray")))
            stack.enter_context(ray_session.connected(num_cpus=2, state_api=True))
        yield


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_verb(*arguments: str) -> Result:
    """Run ``aiornot ARGUMENTS`` in this process, with the exit code a shell would see."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["aiornot", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Answer in a thread meanwhile; yield the address."""
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def s3(monkeypatch) -> Iterator[FakeS3]:
    server = FakeS3()
    with serving(server) as address:
        set_store(monkeypatch, address)
        yield server


KEY_ID, SECRET = "IDofSomeone", "SECRETofSomeone"


def set_store(patch: pytest.MonkeyPatch, address: str) -> None:
    """Name a store in the environment, and the credentials that no file and no line may hold."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A hub of one's own, here and in processes started meanwhile; no token of anybody's."""
    server = FakeHub()
    token = str(tmp_path / "token")
    with serving(server) as address:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN_PATH", token)
        # In this process the client has read its environment already.
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        HfFileSystem.clear_instance_cache()
        yield server
