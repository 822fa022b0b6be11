"""How fast a configuration trains here, from a few seconds of training it.

``aiornot tune fast --plan`` asks this of every model of a chain. The weights are random and need no
network: how long a step takes does not depend on their values.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from aiornot.config import TrainConfig
from aiornot.training import checkpoints, loader, loop, snapshot
from aiornot.training.run import Run, aside

FEW = 4
"""Images that a slow processor is measured with; one alone would be too few for batch norm."""

_WARM_UP = 3  # steps: memory is allocated, a GPU compiles and tries algorithms
_LONGEST = 5000  # steps; more than all that are measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """What one worker on one device, or on its share of the cores, gets done."""

    train_images_per_second: float
    """Augmentation, both passes and the optimizer included."""
    val_images_per_second: float
    start_seconds: float
    """From the configuration to the first step."""
    checkpoint_seconds: float
    """To write a checkpoint and to keep it on a local disk."""
    checkpoint_bytes: int


def measure(
    config: TrainConfig, *, data: Path, device: torch.device, seconds: float, num_threads: int
) -> Pace:
    """Train and evaluate a model of its own for a while.

    A processor on which one batch would take longer than ``seconds`` is measured with a few images.

    Args:
        config: Its ``epochs`` do not matter.
        data: A prepared file.
        device: Where to train.
        seconds: How long to train, once it is warm; as much again goes into all the rest.
        num_threads: CPU threads.

    Raises:
        InputError: The configuration does not fit the data, the model or the device.
    """
    plain = dataclasses.replace(config, pretrained=False, weights=None)
    with _threads(num_threads):
        if device.type == "cpu":
            few = dataclasses.replace(plain, batch_size=min(FEW, plain.batch_size))
            found = _measure(few, data, device, seconds=0.0)
            if plain.batch_size > seconds * found.train_images_per_second:
                return found
        return _measure(plain, data, device, seconds=seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(config: TrainConfig, data: Path, device: torch.device, *, seconds: float) -> Pace:
    started = time.perf_counter()
    with aside(config, data, device, steps=_LONGEST) as run:
        start_seconds = time.perf_counter() - started
        train_rate = _train_rate(run, seconds)
        checkpoint_bytes, checkpoint_seconds = _checkpoint(run)
        return Pace(
            train_images_per_second=train_rate,
            val_images_per_second=_val_rate(run, seconds / 2, num_images=train_rate * seconds),
            start_seconds=start_seconds,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint_bytes=checkpoint_bytes,
        )


def _train_rate(run: Run, seconds: float) -> float:
    steps = loop.steps(run, _LONGEST)
    return run.config.batch_size * _rate(lambda: next(steps), run.device, seconds)


def _val_rate(run: Run, seconds: float, *, num_images: float) -> float:
    """Evaluate up to ``num_images`` of the val split, a batch at most, again and again."""
    wanted = max(FEW, min(loop.EVAL_BATCH * run.config.batch_size, int(num_images)))
    fraction = min(1.0, wanted / len(run.val_split))
    split = loader.Split(run.data, "val", device=run.device, fraction=fraction)

    def evaluate() -> torch.Tensor:
        return loop.evaluate(
            run.module, split, batch_size=wanted, mean=run.mean, std=run.std, dtype=run.dtype
        )

    return len(split) * _rate(evaluate, run.device, seconds)


def _rate(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return how often per second something is done: at least once, after it was done before.

    The host waits for a GPU after the first time and at the end only: in training it never does.
    """
    for _ in range(_WARM_UP if seconds else 1):
        work()
    _wait(device)
    started, count, more = time.perf_counter(), 0, 1
    while more > 0:
        for _ in range(more):
            work()
        _wait(device)
        elapsed, count = time.perf_counter() - started, count + more
        more = int(count * (seconds - elapsed) / elapsed)
    return count / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _checkpoint(run: Run) -> tuple[int, float]:
    """Write and keep a checkpoint as a tick does; return its bytes, and the seconds it took."""
    with tempfile.TemporaryDirectory(prefix="aiornot-") as name:
        folder = Path(name, "written")
        folder.mkdir()
        started = time.perf_counter()
        snapshot.save(run, folder)
        checkpoints.keep(folder, str(Path(name, "kept")), {"tick": 1, "best_tick": 1})
        seconds = time.perf_counter() - started
        return sum(path.stat().st_size for path in folder.iterdir()), seconds
