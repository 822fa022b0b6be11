"""What ``aiornot train --watch all`` costs: CPU time of a training with it against one without.

    python benchmarks/watch_cost.py --data data/prepared/full.h5 --rounds 5

Both train the same configuration on one thread each, tick by tick in turns, with evaluation; the
files and pictures of the watched one are made and count. Medians are of pairs of ticks.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tables
import torch

from aiornot.config import TrainConfig
from aiornot.data import hdf5
from aiornot.training import loop, strips, watch

CPU = torch.device("cpu")


def in_turns(ways: list[Callable[[Callable[..., None]], None]]) -> list[list[float]]:
    """Run trainings that call back at each tick, a tick of each in turn.

    Returns:
        CPU seconds of every tick of every training, what it did for its start among the first's.
    """
    turns = [threading.Semaphore(number == 0) for number in range(len(ways))]
    found: list[list[float]] = [[] for _ in ways]

    def run(number: int) -> None:
        following = turns[(number + 1) % len(ways)]
        turns[number].acquire()
        since = time.thread_time()

        def report(*_: Any) -> None:
            nonlocal since
            found[number].append(time.thread_time() - since)
            following.release()
            turns[number].acquire()
            since = time.thread_time()

        try:
            ways[number](report)
        finally:
            following.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measure(config: TrainConfig, data: Path, rounds: int, folder: Path) -> dict[str, Any]:
    def train(report: Callable[..., None], watching: watch.Watch | None = None) -> None:
        loop.train(config, data=data, device=CPU, report=report, watch=watching)

    every = strips.watch(watch.parse("all"), folder)
    pairs: list[tuple[float, float]] = []
    costs = []
    for _ in range(rounds):
        plain, watched = in_turns([train, partial(train, watching=every)])
        pairs += list(zip(plain, watched, strict=True))[1:]  # the first holds the start
        costs.append(100 * (sum(watched[1:]) / sum(plain[1:]) - 1))
    plain_tick = median(plain for plain, _ in pairs)
    added = median(watched - plain for plain, watched in pairs)
    return {
        "steps": loop_steps(config, data),
        "tick_ms": round(1000 * plain_tick),
        "added_ms_per_tick": round(1000 * added, 1),
        "cost_percent": round(100 * added / plain_tick, 2),
        "cost_percent_of_rounds": [round(cost, 2) for cost in costs],
    }


def loop_steps(config: TrainConfig, data: Path) -> int:
    return hdf5.slots(data)["train"].count // config.batch_size * config.epochs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared file")
    parser.add_argument("--model", default="test_resnet.r160_in1k")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    config = TrainConfig(
        model=options.model, pretrained=False, batch_size=options.batch, epochs=options.epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, options.data, options.rounds, Path(folder))
    found |= tables.environment("torch", "timm", "pillow") | {"load": os.getloadavg()[0]}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
