"""A job: one configuration, trained from its newest checkpoint on, wherever it was stopped.

``aiornot train``, a Tune trial and a Ray Train worker all train through this room.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aiornot import storage
from aiornot.config import TICKS, TrainConfig
from aiornot.training import checkpoints, loop, snapshot
from aiornot.training.watch import Watch

Tell = Callable[[dict[str, float]], None]

BY_HEART = 0.1
"""A loss below it says that a batch was learnt by heart; guessing costs 0.69."""

_OVERFIT_STEPS = 200


def one_batch(config: TrainConfig, *, num_train: int) -> TrainConfig:
    """Return the configuration that trains on the first batch alone, again and again.

    Nothing keeps it from learning: no augmentation, no smoothing, no dropping. A model that cannot
    learn one batch by heart will not learn the rest.

    Args:
        config: What is to be tried.
        num_train: Images of the train split.
    """
    plain = TrainConfig()
    names = [field.name for field in dataclasses.fields(plain)]
    off = {name: getattr(plain, name) for name in names[names.index("hflip") :]}
    off |= {"label_smoothing": 0.0, "drop_rate": 0.0, "drop_path_rate": 0.0, "weight_decay": 0.0}
    size = min(config.batch_size, num_train)
    return dataclasses.replace(
        config, batch_size=size, train_fraction=size / num_train, epochs=_OVERFIT_STEPS, **off
    )


_MICRO_BATCH = "micro_batch"
"""File in a trial's folder: how many images at a time still fitted on each of its ranks, or may."""


def run(
    config: Mapping[str, Any],
    *,
    data: Path,
    device: torch.device,
    root: str,
    tell: Tell,
    told: int = TICKS,
    compile_augment: bool | None = None,
    watch: Watch | None = None,
) -> None:
    """Train one configuration, going on from its newest checkpoint under ``root`` if there is one.

    Args:
        config: The fields of a TrainConfig.
        data: A prepared file.
        device: Where to train.
        root: The trial's checkpoint folder, local or remote.
        tell: Receives the metrics of each tick, after its checkpoint is kept.
        told: As for ``loop.train``, as are those that follow.

    Raises:
        loop.OutOfMemory: Of several ranks; run anew, they take half as many images at a time.
    """

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        values: dict[str, Any] = dict(metrics)
        if folder is not None:
            checkpoints.keep(folder, root, metrics)
            values["effective"] = snapshot.read_description(folder)["effective"]
        tell(values)

    limit = storage.join(root, _MICRO_BATCH)
    with checkpoints.newest(root) as checkpoint, _noting_memory(limit):
        loop.train(
            TrainConfig.from_dict(config),
            data=data,
            device=device,
            report=report,
            checkpoint=checkpoint,
            told=told,
            micro_batch=int(storage.read_text(limit)) if storage.exists(limit) else None,
            compile_augment=compile_augment,
            watch=watch,
        )


@contextmanager
def _noting_memory(limit: str) -> Iterator[None]:
    """Note for the next attempt that half as many images are to be in memory at once."""
    try:
        yield
    except loop.OutOfMemory as error:
        if error.micro_batch > 1:
            storage.write_text(limit, str(math.ceil(error.micro_batch / 2)))
        raise
