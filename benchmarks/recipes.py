"""What single choices do on the demo's data: smoothing, draws, averaging, crop or resize.

    python benchmarks/recipes.py --prepared demo/recipes --seeds 3

``--prepared`` holds ``native.h5``, ``crop.h5`` and ``resize.h5``: the demo's images of 64 px as
they are, and at 48 px cropped and resized (``aiornot prepare`` with --size and --geometry). Every
run has the same schedule and budget; the score is val AUROC at the end, not the best on the way.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import tables
import torch
from torch import Tensor

from aiornot.config import TrainConfig
from aiornot.training import augment, loop

BASE = {
    "model": "test_resnet.r160_in1k",
    "pretrained": False,
    "epochs": 5,
    "batch_size": 32,
    "lr": 1e-2,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "hflip": 0.5,
}
COLOURS = {"brightness": 0.3, "contrast": 0.3, "degrees": 10.0}

RECIPES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("native", {}),
    "label smoothing .05": ("native", {"label_smoothing": 0.05}),
    "label smoothing .1": ("native", {"label_smoothing": 0.1}),
    "EMA .99": ("native", {"ema_decay": 0.99}),
    "colours and rotation, per sample": ("native", COLOURS),
    "colours and rotation, per batch": ("native", COLOURS),
    "crop to 48": ("crop", {}),
    "resize to 48": ("resize", {}),
}


@contextmanager
def one_draw_per_batch() -> Iterator[None]:
    """The notebook's way: what the first image draws, all of the batch get."""
    draw = augment.draw

    def repeated(count: int, *, generator: torch.Generator) -> Tensor:
        return draw(count, generator=generator)[:1].expand(count, -1)

    with patch.object(augment, "draw", repeated):
        yield


def run(name: str, *, seed: int, folder: Path) -> dict[str, float]:
    """Train one recipe; return the last report."""
    file, values = RECIPES[name]
    reports: list[dict[str, float]] = []
    per_batch = one_draw_per_batch() if name.endswith("per batch") else nullcontext()
    with per_batch:
        loop.train(
            TrainConfig.from_dict(BASE | values | {"seed": seed}),
            data=folder / f"{file}.h5",
            device=torch.device("cpu"),
            report=lambda metrics, _: reports.append(metrics),
        )
    return reports[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for name in RECIPES:
        found = [run(name, seed=seed, folder=options.prepared) for seed in range(options.seeds)]
        scores = [report["val/auroc"] for report in found]
        rows[name] = {
            "val AUROC": statistics.mean(scores),
            "least": min(scores),
            "largest": max(scores),
            "val log loss": statistics.mean(report["val/log_loss"] for report in found),
        }
    print("\n".join(tables.environment("torch", "timm").values()))
    print(tables.text(rows))


if __name__ == "__main__":
    main()
