"""A job: one configuration, trained from its newest checkpoint on, wherever it was stopped.

``aiornot train``, a Tune trial and a Ray Train worker all train through this room.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from aiornot.config import TrainConfig
from aiornot.training import checkpoints, loop

Tell = Callable[[dict[str, float]], None]


def run(
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
            checkpoints.keep(folder, root, metrics)
        tell(metrics)

    with checkpoints.newest(root) as checkpoint:
        loop.train(
            TrainConfig.from_dict(config),
            data=data,
            device=device,
            report=report,
            checkpoint=checkpoint,
        )
