"""The checkpoints of one trial: a folder per tick, of which the newest and the best are kept.

Whoever runs a trial (``aiornot train``, a Tune trial, a Ray Train worker) keeps and finds its
checkpoints through this room, so that any of them can go on where another stopped.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aiornot import storage
from aiornot.config import TrainConfig
from aiornot.training import loop

Tell = Callable[[dict[str, float]], None]


def folder_of(root: str, tick: int) -> str:
    """Return where the checkpoint of a tick lies; ``root`` is the trial's folder."""
    return storage.join(root, f"tick_{tick:02d}")


def train_here(
    config: Mapping[str, Any], *, data: Path, device: torch.device, root: str, tell: Tell
) -> None:
    """Train one configuration, going on from its newest checkpoint under ``root`` if there is one.

    Args:
        config: The fields of a TrainConfig.
        data: A prepared file.
        device: Where to train.
        root: The trial's checkpoint folder, local or remote.
        tell: Receives the metrics of each tick, after its checkpoint is kept.
    """

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        if folder is not None:
            keep(folder, root, metrics)
        tell(metrics)

    with newest(root) as checkpoint:
        loop.train(
            TrainConfig.from_dict(config),
            data=data,
            device=device,
            report=report,
            checkpoint=checkpoint,
        )


def keep(folder: Path, root: str, metrics: Mapping[str, float]) -> None:
    """Keep the checkpoint of a tick, and of the older ones only the best."""
    tick = int(metrics["tick"])
    storage.put_folder(folder, folder_of(root, tick))
    wanted = {folder_of(root, tick), folder_of(root, int(metrics["best_tick"]))}
    for path in storage.list_folders(root):
        if path not in wanted:
            storage.delete(path)


@contextmanager
def newest(root: str) -> Iterator[Path | None]:
    """Give the newest checkpoint that was kept to its end as a local folder, None without one."""
    found = storage.complete_folders(root)
    if not found:
        yield None
        return
    with fetched(found[-1]) as folder:
        yield folder


@contextmanager
def fetched(path: str) -> Iterator[Path]:
    """Give a checkpoint as a local folder; a remote one is copied for the while."""
    if not storage.is_remote(path):
        yield Path(path)
        return
    temporary = Path(tempfile.mkdtemp(prefix="aiornot-"))
    try:
        storage.get_folder(path, temporary / "checkpoint")
        yield temporary / "checkpoint"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
