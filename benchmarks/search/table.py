"""Tables of real learning curves, for searches to be replayed on.

    python -m benchmarks.search.table patches digits
    python -m benchmarks.search.table patches --quick

A table holds thousands of trainings, each at two budgets: ``reduced`` (few images at half the
resolution) and ``full``. It is written to ``demo/search/<task>/<profile>.npz``; what is there
already is kept.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from aiornot.config import TICKS
from benchmarks.search import features, nets, sources
from benchmarks.search.grid import DECAY_SCALE, LR_SCALE, QUICK, SMALL, Grid
from benchmarks.search.train import Curves, Examples, Recipe, train

Array: TypeAlias = NDArray[Any]

HOME = Path("demo/search")
NUM_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Profile:
    """How much of the data there is."""

    num_train: int
    num_val: int
    half: bool
    """At half of the resolution."""


PROFILES = {
    "reduced": Profile(640, 500, half=True),
    "full": Profile(1920, 1000, half=False),
    "reduced-320": Profile(320, 500, half=True),
    "reduced-1280": Profile(1280, 500, half=True),
}
QUICK_PROFILES = {
    "reduced": Profile(640, 300, half=True),
    "full": Profile(960, 600, half=False),
}

GRIDS = dict.fromkeys(sources.TASKS, SMALL) | {"patches": Grid()}


def _of_two_widths(*networks: tuple[str, str]) -> tuple[tuple[str, str, int], ...]:
    return tuple((*network, width) for network in networks for width in (16, 32))


NETWORKS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "patches": _of_two_widths(
        *((extractor, "head") for extractor in ("dct", "clusters", "convolution", "spectrum"))
    ),
    "digits": _of_two_widths(*(("pixels", kind) for kind in ("mlp", "deep", "conv", "mixer"))),
    "scenes": tuple(
        network
        for width in (16, 32)
        for network in (
            *(("pixels", kind, width) for kind in ("deep", "conv")),
            *((extractor, "head", width) for extractor in ("dct", "spectrum")),
        )
    ),
    "shapes": _of_two_widths(
        *(("pixels", kind) for kind in ("mixer", "mlp", "conv")), ("dct", "head")
    ),
    "stripes": _of_two_widths(
        *(("pixels", kind) for kind in ("conv", "deep")),
        *((extractor, "head") for extractor in ("convolution", "dct")),
    ),
    "spirals": _of_two_widths(
        *(("pixels", kind) for kind in ("mlp", "conv", "mixer")), ("dct", "head")
    ),
    "pairs": _of_two_widths(
        ("dct", "head"), *(("pixels", kind) for kind in ("mixer", "deep", "mlp"))
    ),
}
"""What a network sees, its kind and its width: one for each of a task's models."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The curves of one task at one profile, by cell of the grid."""

    grid: Grid
    profile: Profile
    val: Array
    """(seeds, *grid, 16), float32."""
    small: Array
    train: Array
    """(seeds, *grid)."""
    test: Array

    def row(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the place of a training in the arrays."""
        return config["seed"] % len(self.val), *self.grid.cell(config)


def path_of(home: Path, task: str, profile: str) -> Path:
    return home / task / f"{profile}.npz"


def read(path: Path, *, quick: bool = False) -> Table:
    """Read a table.

    Raises:
        SystemExit: It is not there, with the command that makes it.
    """
    if not path.exists():
        raise SystemExit(
            f"{path} is not there: python -m benchmarks.search.table {path.parent.name}"
        )
    grid, profiles = (QUICK, QUICK_PROFILES) if quick else (GRIDS[path.parent.name], PROFILES)
    with np.load(path) as file:
        return Table(grid=grid, profile=profiles[path.stem], **{name: file[name] for name in file})


def make(task: str, profile: Profile, grid: Grid, *, tested: bool) -> Table:
    """Train every cell of a grid with every seed."""
    data = sources.load(task, {"train": profile.num_train, "val": profile.num_val, "test": 2000})
    shape = (NUM_SEEDS, *grid.shape)
    val, small = (np.zeros((*shape, TICKS), np.float32) for _ in range(2))
    fitted, test = (np.zeros(shape, np.float32) for _ in range(2))
    inner = grid.shape[3:]
    for model in range(grid.num_models):
        seen, kind, width = NETWORKS[task][_spread(model, grid.num_models)]
        for kind_number, augmentation in enumerate(grid.augmentations):
            examples = _examples(data, profile, seen, augmentation, tested=tested)
            net = nets.make(kind, num_inputs=examples["val"].inputs.shape[1], width=width)
            for length, epochs in enumerate(grid.epochs):
                for seed in range(NUM_SEEDS):
                    found = _group(net, grid, examples, epochs=epochs, seed=seed)
                    place = (seed, model, kind_number, length)
                    val[place] = found.val.reshape(*inner, TICKS)
                    small[place] = found.small.reshape(*inner, TICKS)
                    fitted[place] = found.train.reshape(inner)
                    test[place] = found.test.reshape(inner)
            print(f"{task}: {seen} {kind} {width}, {augmentation}", file=sys.stderr)
    return Table(grid, profile, val, small, fitted, test)


def _spread(model: int, num_models: int) -> int:
    """Return which network stands for a model where there are fewer models than networks."""
    return model * 8 // num_models


def _group(
    net: nets.Net, grid: Grid, examples: dict[str, Examples], *, epochs: int, seed: int
) -> Curves:
    lr, decay, smoothing, layer = torch.tensor(list(grid.recipes())).T
    recipe = Recipe(
        lr=lr * LR_SCALE,
        weight_decay=decay * DECAY_SCALE,
        label_smoothing=smoothing,
        layer_decay=layer,
    )
    return train(
        net,
        recipe,
        epochs=epochs,
        seed=seed,
        train=examples["train"],
        val=examples["val"],
        test=examples.get("test"),
    )


def _examples(
    data: dict[str, sources.Split], profile: Profile, seen: str, augmentation: str, *, tested: bool
) -> dict[str, Examples]:
    """Return what a network sees of each split; scaled by train's statistics."""
    rng = np.random.default_rng(5)
    images = {name: part.half() if profile.half else part.whole for name, part in data.items()}
    plain = images["train"]
    copies = (
        [plain]
        if augmentation == "none"
        else [features.augment(plain, augmentation, rng) for _ in range(features.COPIES)]
    )
    extract = features.EXTRACTORS[seen]
    base = extract(plain, plain)
    centre, spread = base.mean(0), base.std(0) + 1e-3

    def inputs(found: Array) -> torch.Tensor:
        scaled = (extract(found, plain) - centre) / spread
        return torch.from_numpy(scaled.astype(np.float32))

    made = {
        "train": Examples(
            torch.stack([inputs(copy) for copy in copies]),
            torch.from_numpy(data["train"].labels),
        )
    }
    for name in ("val", "test") if tested else ("val",):
        made[name] = Examples(inputs(images[name]), torch.from_numpy(data[name].labels))
    return made


def write(home: Path, task: str, name: str, *, quick: bool = False) -> Path:
    """Make a table and write it, unless it is there."""
    path = path_of(home, task, name)
    if path.exists():
        return path
    profile = (QUICK_PROFILES if quick else PROFILES)[name]
    table = make(task, profile, QUICK if quick else GRIDS[task], tested=name == "full")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: getattr(table, key) for key in ("val", "small", "train", "test")}
    beside = path.with_suffix(".tmp.npz")
    np.savez_compressed(beside, **arrays)
    beside.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=sorted(sources.TASKS))
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=["reduced", "full"])
    parser.add_argument("--quick", action="store_true", help="A small grid, in demo/search/quick.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    home = HOME / "quick" if options.quick else HOME
    for task in options.tasks:
        for name in options.profiles:
            started = time.process_time()
            path = write(home, task, name, quick=options.quick)
            print(f"{path}: {time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
